"""Times the MNIST quadrants CVAE against PyTorch and Pyro; benchmarks/README.md says how, and what for.

python -m benchmarks.compare quadrants --data_dir=FOLDER_OF_IDX_FILES --torch_python=PYTHON_WITH_TORCH --output=FILE.md
"""

import argparse
import datetime
import functools
import os
import pathlib
import platform
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.process import Process
from benchmarks.quadrants.problem import FLOPS_PER_DRAW
from benchmarks.rounds import Answer, Comparison, Results, Turn, num_threads, of_step, ratios, summary, table

ROUNDS, PAUSE = 7, 0.5
SWEEP = (500, 1000, 2000, 4000, 8000)
STEPS_OF_EPOCH = 429

OURS, TORCH, COMPILED, PYRO = "cvae_jax", "PyTorch", "PyTorch, torch.compile", "Pyro, as in its tutorial"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this comparison's flags."""
    parser.add_argument("--data_dir", help="folder of MNIST's IDX files; without it, noise of the same shape")
    parser.add_argument("--jax_python", default=sys.executable, help="Python that has cvae_jax's dependencies")
    parser.add_argument("--torch_python", default=sys.executable, help="Python that has PyTorch, pyro-ppl and Pillow")
    parser.add_argument(
        "--train_steps", type=int, default=STEPS_OF_EPOCH, help=f"steps per round; {STEPS_OF_EPOCH} are a whole epoch"
    )
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--num_samples", type=int, default=1000, help="importance samples per image")
    parser.add_argument("--num_examples", type=int, default=100, help="images whose log p(y|x) is estimated")
    parser.add_argument(
        "--matmul_sizes",
        type=lambda text: [int(size) for size in text.split(",")],
        default=[2048, 3072, 4096],
        help="of the squares that give the matmul rate",
    )
    parser.add_argument("--skip", default="", help="contenders to leave out: any of torch,compile,pyro")
    parser.add_argument("--only", choices=["train", "importance"], help="measure one of the two")
    parser.add_argument("--sweep", action="store_true", help="importance sampling at several draws_per_call")
    parser.add_argument("--profile", action="store_true", help="time the parts of importance sampling, each alone")


def comparisons(arguments: argparse.Namespace) -> Iterator[Comparison]:
    """Yields the comparison of all contenders, each a process that is ready."""
    load = os.getloadavg()[0]
    processes = start(arguments)
    try:
        if processes[OURS].trouble:
            sys.exit(f"error: {OURS} does not run: {processes[OURS].trouble}")
        turns = turns_of_round(arguments, processes)
        yield Comparison(turns, lambda results: report(arguments, processes, load, results))
    finally:
        for process in processes.values():
            process.close()


def start(arguments: argparse.Namespace) -> dict[str, Process]:
    """Starts all contenders, and returns them once they are ready."""
    names = ("data_dir", "train_steps", "batch_size", "num_samples", "num_examples", "matmul_sizes")
    settings = {name: getattr(arguments, name) for name in names}
    if settings["data_dir"]:
        settings["data_dir"] = str(pathlib.Path(settings["data_dir"]).resolve())
    skip = set(arguments.skip.split(","))
    contenders = {OURS: (arguments.jax_python, "ours", {})}
    if "torch" not in skip:
        contenders[TORCH] = (arguments.torch_python, "torch_plain", {"compiled": False})
    if "compile" not in skip:
        contenders[COMPILED] = (arguments.torch_python, "torch_plain", {"compiled": True})
    if "pyro" not in skip and arguments.only != "importance":
        contenders[PYRO] = (arguments.torch_python, "pyro_tutorial", {})
    processes = {}
    for name, (python, module, more) in contenders.items():
        print(f"starting {name}", file=sys.stderr)
        processes[name] = Process(python, f"benchmarks.quadrants.{module}", {**settings, **more})
    return processes


def turns_of_round(arguments: argparse.Namespace, processes: dict[str, Process]) -> list[Turn]:
    """Returns every contender's turns in a round."""
    turns: list[Turn] = []

    def add(name: str, what: str, job: str = "", **more: Any) -> None:
        if name in processes:
            turns.append(Turn(name, what, functools.partial(processes[name].ask, job or what, **more)))

    if arguments.only != "importance":
        for name in processes:
            add(name, "train")
        for name in (TORCH, COMPILED):
            add(name, "bare", steps=min(100, arguments.train_steps))
        add(OURS, "validate")
        add(PYRO, "data_only")
    if arguments.only != "train":
        add(OURS, "matmul")
        for name in (OURS, TORCH, COMPILED):
            add(name, "importance")
    if arguments.sweep:
        for draws in SWEEP:
            add(OURS, f"sweep {draws}", "importance", draws_per_call=draws)
            processes[OURS].ask("importance", draws_per_call=draws, warm=True)
    if arguments.profile:
        add(OURS, "profile")
    return turns


def report(arguments: argparse.Namespace, processes: dict[str, Process], load: float, results: Results) -> str:
    """Returns all sections."""
    sections = [report_machine(arguments, processes, (load, os.getloadavg()[0]))]
    if arguments.only != "importance":
        sections.append(report_training(arguments, results))
    if arguments.only != "train":
        sections.append(report_importance(arguments, results))
    sections += [report_profile(results), report_once(processes)]
    return "\n\n".join(section for section in sections if section)


def took(answers: list[Answer]) -> list[float]:
    """Returns the seconds of every round."""
    return [answer["seconds"] for answer in answers]


def report_training(arguments: argparse.Namespace, results: Results) -> str:
    """Returns the tables of training."""
    ours = of_step(results[OURS, "train"])
    kinds = [
        (OURS, "train", f"**{OURS}**, data included"),
        (TORCH, "bare", f"{TORCH}, step on a fixed batch, no data work"),
        (TORCH, "train", f"{TORCH}, data included"),
        (COMPILED, "bare", f"{COMPILED}, step on a fixed batch"),
        (COMPILED, "train", f"{COMPILED}, data included"),
        (PYRO, "train", f"{PYRO}, data included"),
        (PYRO, "data_only", "the data alone of the same"),
    ]
    lines = [["contender", "ms per step", f"s per epoch ({STEPS_OF_EPOCH} steps)", f"time over {OURS}'s"]]
    for name, what, title in kinds:
        steps = of_step(results[name, what])
        if steps:
            epoch = summary([step * STEPS_OF_EPOCH / 1e3 for step in steps])
            lines.append([title, summary(steps), epoch, summary(ratios(steps, ours)) if name != OURS else "1"])
    sections = [f"## Training: {arguments.train_steps} steps of {arguments.batch_size} a round", table(lines)]
    validate = took(results[OURS, "validate"])
    if validate:
        sections.append(f"Not in the table: validating the 5,000 images takes {OURS} {summary(validate)} s an epoch.")
    names = [name for name in (OURS, TORCH, COMPILED, PYRO) if results[name, "train"]]
    losses = [f"{name} {results[name, 'train'][-1]['loss']:.1f}" for name in names]
    sections.append(f"Loss of each one's last batch, to see that all of them train: {', '.join(losses)}.")
    return "\n\n".join(sections)


def report_importance(arguments: argparse.Namespace, results: Results) -> str:
    """Returns the tables of importance sampling."""
    matmuls = results[OURS, "matmul"]
    ours, peak = took(results[OURS, "importance"]), [answer["peak"] for answer in matmuls]
    draws = arguments.num_examples * arguments.num_samples

    def rates(times: list[float]) -> list[float]:
        return [draws * FLOPS_PER_DRAW / seconds for seconds in times]

    def percent(times: list[float]) -> str:
        return summary([100 * share for share in ratios(rates(times), peak)], ".0f")

    lines = [
        ["contender", "s", "1000 draws/s", "GFLOP/s of the matmuls", "% of the matmul rate", f"time over {OURS}'s"]
    ]
    for name in (OURS, TORCH, COMPILED):
        times = took(results[name, "importance"])
        if times:
            lines.append([
                f"**{name}**" if name == OURS else name,
                summary(times, ".3f"),
                summary([draws / seconds / 1e3 for seconds in times], ".1f"),
                summary([rate / 1e9 for rate in rates(times)], ".1f"),
                percent(times),
                summary(ratios(times, ours)) if name != OURS else "1",
            ])  # fmt: skip
    names = matmuls[0]["rates"] if matmuls else []
    squares = [[name, summary([answer["rates"][name] / 1e9 for answer in matmuls], ".1f")] for name in names]
    sections = [
        f"## Importance sampling: {arguments.num_examples} images, {arguments.num_samples} samples each",
        table(lines),
        "The matmul rate, float32 at highest precision in JAX; the best square is 100 %:",
        table([["matmul", "GFLOP/s"], *squares]),
    ]
    if arguments.sweep:
        by_draws = {draws: took(results[OURS, f"sweep {draws}"]) for draws in SWEEP}
        rows = [[str(draws), summary(times, ".3f"), percent(times)] for draws, times in by_draws.items()]
        sections += ["### draws_per_call", table([["draws_per_call", "s", "% of the matmul rate"], *rows])]
    return "\n\n".join(sections)


def report_profile(results: Results) -> str:
    """Returns the table of the parts of importance sampling."""
    rounds = [answer["parts"] for answer in results[OURS, "profile"]]
    if not rounds:
        return ""
    lines = [["part", "ms", "% of the whole"]]
    for name in rounds[0]:
        percent = [100 * parts[name] / parts["whole"] for parts in rounds]
        milliseconds = [1e3 * parts[name] for parts in rounds]
        lines.append([name.replace("|", "\\|"), summary(milliseconds, ".0f"), summary(percent, ".0f")])
    return "## Parts of importance sampling, each alone\n\n" + table(lines)


def cpu_model() -> str:
    """Returns the processor's name, as Linux has it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def report_machine(arguments: argparse.Namespace, processes: dict[str, Process], load: tuple[float, float]) -> str:
    """Returns where, what and how often; `load` is the machine's, before and after."""
    versions: dict[str, str] = {}
    for process in processes.values():
        versions |= {} if process.trouble else process.prepared["versions"]
    written = ", ".join(f"{name} {version}" for name, version in versions.items())
    data = "MNIST" if arguments.data_dir else "noise of MNIST's shape"
    loads = " to ".join(f"{average:.2f}" for average in load)
    lines = [
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, {platform.system()} {platform.machine()}",
        f"- {cpu_model()}, {num_threads()} cores, load average before and after: {loads}",
        f"- Python {platform.python_version()}, {written}",
        f"- {data}; {arguments.rounds} rounds, contenders in turn; median (least - greatest)",
    ]
    for name, process in processes.items():
        if process.trouble:
            lines.append(f"- {name} was not measured, or not to the end: {process.trouble}")
            continue
        lines += [f"- {name} could not do {job!r}: {why}" for job, why in process.failed.items()]
        if "chosen" in process.prepared:
            lines.append(f"- {name} chose the fastest: {process.prepared['chosen']}")
    return "\n".join(lines)


def report_once(processes: dict[str, Process]) -> str:
    """Returns what is paid once in a process and is in no other number."""
    lines = [["contender", "what", "s"]]
    for name, process in processes.items():
        if not process.trouble:
            lines += [[name, what, f"{once:.1f}"] for what, once in process.prepared["once"].items()]
            lines.append([name, "start of the process until ready, all of that included", f"{process.startup:.1f}"])
    return "## Paid once, in no number above\n\n" + table(lines)
