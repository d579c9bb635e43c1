"""Commands: python -m cvae_jax train, eval, or a task's own, such as python -m cvae_jax rna_boxes make.

`train` and `eval` take the flags of train.py and eval.py, which call the same functions.
"""

import importlib
import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

import cvae_jax
from cvae_jax import command_line, config, evaluation, tasks


def train() -> None:
    """Trains the models of a config. The same command again goes on where it stopped."""
    sys.argv = config.resolve(sys.argv)
    chosen = config_flags.DEFINE_config_file(
        "config", None, "Config file, or the name of cvae_jax's own, with its variant after a colon.", lock_config=True
    )
    workdir = flags.DEFINE_string("workdir", None, "Folder that receives checkpoints, metrics, figures.", required=True)
    task_module = _task_module()
    flags.mark_flag_as_required("config")

    def main() -> None:
        for module in task_module.value:
            tasks.import_module(module)
        cvae_jax.train(chosen.value, workdir.value)

    command_line.run(main)


def evaluate() -> None:
    """Measures trained models: prints a table of log p(y|x) with its errors, and draws figures of samples."""
    settings = evaluation.Ais()
    names = ", ".join(evaluation.ESTIMATOR_NAMES)
    workdir = flags.DEFINE_multi_string(
        "workdir", None, "Folder of a trained run; repeat the flag to compare runs.", required=True
    )
    values = {
        "estimators": flags.DEFINE_list("estimator", ["elbo", "is"], f"Any of {names}, bdmc."),
        "num_samples": flags.DEFINE_list(
            "num_samples",
            None,
            "Samples for every example; several give a row each. Default 1000, or as the config says.",
        ),
        "num_chains": flags.DEFINE_integer("num_chains", 32, "Chains of ais and bdmc for every example."),
        "split": flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "Split to measure."),
        "num_examples": flags.DEFINE_integer("num_examples", 0, "The first so many examples of the split; 0: all."),
        "seed": flags.DEFINE_integer("seed", 0, "Of the evaluation's random numbers."),
        "data_dir": flags.DEFINE_string("data_dir", None, "Where the data lie now, if not where training found them."),
        "task_metrics": flags.DEFINE_bool("task_measures", True, "Also what the task measures, such as an accuracy."),
        "changes": flags.DEFINE_multi_string("change", [], "KEY=VALUE of a run's config, KEY beginning with measure_."),
        "output": flags.DEFINE_string("output", None, "Folder for what is written; default WORKDIR/eval_SPLIT."),
    }
    ais = {
        "num_steps": flags.DEFINE_integer("ais_steps", settings.num_steps, "Temperatures of ais and bdmc."),
        "num_leapfrog": flags.DEFINE_integer("ais_leapfrog", settings.num_leapfrog, "Leapfrog steps at each of them."),
        "start": flags.DEFINE_enum("ais_start", settings.start, ["recognition", "prior"], "Where they start."),
    }
    task_module = _task_module()

    def main() -> None:
        for module in task_module.value:
            tasks.import_module(module)
        chosen: dict[str, Any] = {name: flag.value for name, flag in values.items()}
        annealing: dict[str, Any] = {name: flag.value for name, flag in ais.items()}
        request = evaluation.Request(**chosen, ais=evaluation.Ais(**annealing))
        print(evaluation.evaluate(workdir.value, request))

    command_line.run(main)


def _task_module() -> flags.FlagHolder:
    """Defines the last flag of a command, and has --help list them all, whichever script was started."""
    holder = flags.DEFINE_multi_string(
        "task_module", [], "Module that registers a task, see cvae_jax.tasks; repeatable."
    )
    for flag in flags.FLAGS.get_key_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    return holder


def main() -> None:
    """Runs the command that the first argument names, with the others as its flags."""
    commands = {"train": train, "eval": evaluate}
    own = [path.parent.name for path in sorted(pathlib.Path(tasks.__path__[0]).glob("*/commands.py"))]
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in commands:
        sys.argv = [f"python -m cvae_jax {name}", *sys.argv[2:]]
        commands[name]()
    elif name in own:
        importlib.import_module(f"cvae_jax.tasks.{name}.commands").main(sys.argv[2:], cvae_jax.load)
    elif name in ("-h", "--help"):
        print(f"python -m cvae_jax COMMAND. Commands: {', '.join([*commands, *own])}; each has --help.")
    else:
        sys.exit(f"error: {name or 'nothing'!r} is no command; choose from {', '.join([*commands, *own])}")


if __name__ == "__main__":
    main()
