"""Measures trained models: a table of log p(y|x) with its errors, and a figure of samples.

python eval.py --workdir=runs/q1 [--workdir=runs/q2 ...] [--estimator=elbo,mc,is] [--num_samples=100]
python eval.py --workdir=runs/q1 --estimator=is,ais,bdmc --num_samples=5000 --num_examples=100
"""

from typing import Any

from absl import flags

from cvae_jax import command_line, evaluation, parallel
from cvae_jax.inference import draws as inference
from cvae_jax.inference.ais import Annealing

WORKDIR = flags.DEFINE_multi_string(
    "workdir", None, "Folder of a trained run; repeat the flag to compare runs.", required=True
)
ESTIMATOR = flags.DEFINE_list("estimator", ["elbo", "is"], f"Any of {', '.join(inference.ESTIMATOR_NAMES)}, bdmc.")
NUM_SAMPLES = flags.DEFINE_list("num_samples", ["100"], "Samples for every example; several give a row each.")
NUM_CHAINS = flags.DEFINE_integer("num_chains", 32, "Chains of ais and bdmc for every example.")
AIS_STEPS = flags.DEFINE_integer("ais_steps", Annealing().num_steps, "Temperatures of ais and bdmc.")
AIS_LEAPFROG = flags.DEFINE_integer("ais_leapfrog", Annealing().num_leapfrog, "Leapfrog steps at each of them.")
AIS_START = flags.DEFINE_enum("ais_start", Annealing().start, ["recognition", "prior"], "Where they start.")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "Split to measure.")
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 0, "The first so many examples of the split; 0: all.")
SEED = flags.DEFINE_integer("seed", 0, "Of the evaluation's random numbers.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data lie now, if not where training found them.")
TASK_MEASURES = flags.DEFINE_bool("task_measures", True, "Also what the task itself measures, such as an accuracy.")
CHANGE = flags.DEFINE_multi_string("change", [], "KEY=VALUE of a run's config whose name begins with measure_.")
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for results.json, results.md and figures; default WORKDIR/eval_SPLIT."
)


def main() -> None:
    """Measures."""
    parallel.use_every_core()
    start: Any = AIS_START.value
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
            num_chains=NUM_CHAINS.value,
            settings=Annealing(start=start, num_steps=AIS_STEPS.value, num_leapfrog=AIS_LEAPFROG.value),
            task_measures=TASK_MEASURES.value,
            changes=CHANGE.value,
        )
    )


if __name__ == "__main__":
    command_line.run(main)
