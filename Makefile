# make demo: trains the models on digits drawn from fonts, prints the table and draws the figures
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
	@echo
	@echo "the table: runs/demo/results.md; samples: runs/demo/samples_demo_1.png; training: runs/demo_1/figures/"
	@echo "to go on:  source $(VENV)/bin/activate"
	@echo "           python eval.py --workdir=runs/demo_1 --estimator=is,ais --num_examples=20 --ais_steps=200"
	@echo "           and the README, for images of your own"

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
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "error: cvae_jax needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "installing into $(VENV), about 1.5 GB: some minutes ..."
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>&- || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
