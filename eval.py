"""Measures trained models: a table of log p(y|x) with its errors, and a figure of samples.

python eval.py --workdir=runs/q1 [--workdir=runs/q2 ...] [--estimator=elbo,mc,is] [--num_samples=100]
"""

from absl import flags

from cvae_jax import command_line, evaluation, parallel

WORKDIR = flags.DEFINE_multi_string(
    "workdir", None, "Folder of a trained run; repeat the flag to compare runs.", required=True
)
ESTIMATOR = flags.DEFINE_list("estimator", ["elbo", "is"], "Any of elbo, mc, is.")
NUM_SAMPLES = flags.DEFINE_list("num_samples", ["100"], "Samples for every example; several give a row each.")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "Split to measure.")
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 0, "The first so many examples of the split; 0: all.")
SEED = flags.DEFINE_integer("seed", 0, "Of the evaluation's random numbers.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data lie now, if not where training found them.")
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for results.json, results.md and figures; default WORKDIR/eval_SPLIT."
)


def main() -> None:
    """Measures."""
    parallel.use_every_core()
    print(
        evaluation.evaluate(
            WORKDIR.value,
            estimators=ESTIMATOR.value,
            num_samples=NUM_SAMPLES.value,
            split=SPLIT.value,
            num_examples=NUM_EXAMPLES.value,
            seed=SEED.value,
            data_dir=DATA_DIR.value,
            output=OUTPUT.value,
        )
    )


if __name__ == "__main__":
    command_line.run(main)
