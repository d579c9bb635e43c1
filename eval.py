"""Measures trained models: a table of log p(y|x) with its errors, and a figure of samples.

python eval.py --workdir=runs/q1 [--workdir=runs/q2 ...] [--estimator=elbo,mc,is] [--num_samples=1000]
python eval.py --workdir=runs/q1 --estimator=is,ais,bdmc --num_samples=5000 --num_examples=100

See `cvae_jax.evaluation.evaluate`.
"""

from cvae_jax import __main__ as commands

if __name__ == "__main__":
    commands.evaluate()
