# make demo: trains the models on the embedded digits, prints the table and draws the figures
# make test: linters, type checker and the tests that are not slow, in two minutes
# make test-all: linters, type checker and every test
# make test-slow: the slow tests alone
# All set up $(VENV) first. Another interpreter: make PYTHON=python3.12 VENV=.venv312 test
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo lint test test-all test-slow

demo: $(VENV)/installed
	for quadrants in 1 2 3; do \
	  $(BIN)/python train.py --config=configs/glyphs_quadrants.py:$$quadrants --workdir=runs/demo_$$quadrants || exit 1; \
	done
	$(BIN)/python eval.py --workdir=runs/demo_1 --workdir=runs/demo_2 --workdir=runs/demo_3 \
	  --estimator=elbo,mc,is --num_samples=1000 --num_examples=500 --output=runs/demo
	@echo "figures: runs/demo/samples_demo_1.png (samples), runs/demo_1/figures/ (training curves, animation)"

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

test-slow: $(VENV)/installed
	$(PYTEST) -m slow

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
