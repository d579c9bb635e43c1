"""Times the MNIST quadrants CVAE against PyTorch and Pyro; README.md tells how and what for.

python benchmarks/quadrants.py --data_dir=FOLDER_OF_IDX_FILES --torch_python=PYTHON_WITH_TORCH --output=FILE.md
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from typing import Any

import timing

HERE = pathlib.Path(__file__).resolve().parent
SWEEP = (500, 1000, 2000, 4000, 8000)
# Of one z through the generation network 200-500-500-784: its matmuls, nothing else.
FLOPS_PER_DRAW = 2 * (200 * 500 + 500 * 500 + 500 * 784)

OURS, TORCH, COMPILED, PYRO = "cvae_jax", "PyTorch", "PyTorch, torch.compile", "Pyro, as in its tutorial"


class Process:
    """A contender at work, or the reason why it is not."""

    def __init__(self, python: str, script: str, settings: dict[str, Any], env: dict[str, str]):
        self.trouble = ""  # why it does nothing any more
        self.failed: dict[str, str] = {}  # job -> why that one failed
        began = time.perf_counter()
        command = [python, str(HERE / script), json.dumps(settings)]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}
            )
        except OSError as error:
            self.trouble = str(error)
            return
        self.prepared = self.ask("prepare")
        self.trouble = self.trouble or self.failed.get("prepare", "")
        self.startup = time.perf_counter() - began

    def ask(self, job: str, **arguments: Any) -> dict[str, Any]:
        """The numbers of one job; {} when the contender cannot do it, and it is then not asked again."""
        if self.trouble or job in self.failed:
            return {}
        try:
            self.process.stdin.write(json.dumps({"do": job, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.trouble = f"the process ended with code {self.process.wait()}; its last words are above"
            return {}
        answer = json.loads(line)
        if "error" in answer:
            self.failed[job] = answer["error"]
            return {}
        return answer

    def close(self) -> None:
        """Ends the process."""
        if hasattr(self, "process") and self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait()


def cpu_model() -> str:
    """The processor's name, as Linux tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def summary(values: list[float], form: str = "{:.2f}") -> str:
    """Median, and the least and greatest in brackets."""
    if not values:
        return "-"
    low, high = form.format(min(values)), form.format(max(values))
    return f"{form.format(statistics.median(values))} ({low} - {high})"


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Round by round, so that a slow minute of the machine falls on both."""
    return [a / b for a, b in zip(above, below, strict=False)]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="folder of MNIST's IDX files; without it, noise of the same shape")
    parser.add_argument("--jax_python", default=sys.executable, help="Python that has cvae_jax's dependencies")
    parser.add_argument("--torch_python", default=sys.executable, help="Python that has PyTorch, pyro-ppl and Pillow")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--train_steps", type=int, default=429, help="steps per round; 429 are a whole epoch")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--num_samples", type=int, default=1000, help="importance samples per image")
    parser.add_argument("--num_examples", type=int, default=100, help="images whose log p(y|x) is estimated")
    parser.add_argument(
        "--pause", type=float, default=0.5, help="seconds between two turns, for threads to fall asleep"
    )
    parser.add_argument("--skip", default="", help="contenders to leave out: any of torch,compile,pyro")
    parser.add_argument("--only", choices=["train", "importance"], help="measure one of the two")
    parser.add_argument("--sweep", action="store_true", help="importance sampling at several draws_per_call")
    parser.add_argument("--profile", action="store_true", help="time the parts of importance sampling, each alone")
    parser.add_argument("--output", help="file that receives the report, beside stdout")
    return parser.parse_args()


def start(arguments: argparse.Namespace) -> dict[str, Process]:
    """All contenders, ready."""
    names = ("data_dir", "train_steps", "batch_size", "num_samples", "num_examples")
    settings = {name: getattr(arguments, name) for name in names}
    if settings["data_dir"]:
        settings["data_dir"] = str(pathlib.Path(settings["data_dir"]).resolve())
    env = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    skip = set(arguments.skip.split(","))
    wanted = {OURS: (arguments.jax_python, "contender_ours.py", {})}
    if "torch" not in skip:
        wanted[TORCH] = (arguments.torch_python, "contender_torch.py", {"compiled": False})
    if "compile" not in skip:
        wanted[COMPILED] = (arguments.torch_python, "contender_torch.py", {"compiled": True})
    if "pyro" not in skip and arguments.only != "importance":
        wanted[PYRO] = (arguments.torch_python, "contender_pyro.py", {})
    processes = {}
    for name, (python, script, more) in wanted.items():
        print(f"starting {name}", file=sys.stderr)
        processes[name] = Process(python, script, {**settings, **more}, env)
    return processes


def measure(arguments: argparse.Namespace, processes: dict[str, Process]) -> dict[tuple[str, str], list[Any]]:
    """Every contender's turn in every round: (contender, what) -> one answer a round."""
    turns: list[tuple[str, str, str, dict[str, Any]]] = []
    if arguments.only != "importance":
        turns += [(name, "train", "train", {}) for name in processes]
        turns += [(n, "bare", "bare", {"steps": min(100, arguments.train_steps)}) for n in (TORCH, COMPILED)]
        turns += [(OURS, "validate", "validate", {}), (PYRO, "data_only", "data_only", {})]
    if arguments.only != "train":
        turns.append((OURS, "matmul", "matmul", {}))
        turns += [(name, "importance", "importance", {}) for name in (OURS, TORCH, COMPILED)]
    if arguments.sweep:
        turns += [(OURS, f"sweep {n}", "importance", {"draws_per_call": n}) for n in SWEEP]
        for n in SWEEP:
            processes[OURS].ask("importance", draws_per_call=n, warm=True)
    if arguments.profile:
        turns.append((OURS, "profile", "profile", {}))
    found: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for number in range(1, arguments.rounds + 1):
        for name, what, job, more in turns:
            if name not in processes:
                continue
            time.sleep(arguments.pause)
            answer = processes[name].ask(job, **more)
            if answer:
                found[name, what].append(answer)
                took = f"{answer['seconds']:.3f} s" if "seconds" in answer else "done"
                print(f"round {number}/{arguments.rounds}: {name}, {what}: {took}", file=sys.stderr)
    return found


def report_training(arguments: argparse.Namespace, found: dict[tuple[str, str], list[Any]]) -> str:
    """The tables of training."""

    def per_step(name: str, what: str) -> list[float]:
        return [1e3 * one["seconds"] / one["steps"] for one in found[name, what]]

    ours = per_step(OURS, "train")
    kinds = [
        (OURS, "train", f"**{OURS}**, data included"),
        (TORCH, "bare", f"{TORCH}, step on a fixed batch, no data work"),
        (TORCH, "train", f"{TORCH}, data included"),
        (COMPILED, "bare", f"{COMPILED}, step on a fixed batch"),
        (COMPILED, "train", f"{COMPILED}, data included"),
        (PYRO, "train", f"{PYRO}, data included"),
        (PYRO, "data_only", "the data alone of the same"),
    ]
    rows = []
    for name, what, title in kinds:
        steps = per_step(name, what)
        if steps:
            epoch = summary([step * 429 / 1e3 for step in steps])
            rows.append([title, summary(steps), epoch, summary(ratios(steps, ours)) if name != OURS else "1"])
    header = ["contender", "ms per step", "s per epoch (429 steps)", f"time over {OURS}'s"]
    text = f"## Training: {arguments.train_steps} steps of {arguments.batch_size} a round\n\n{table(header, rows)}\n"
    validate = [one["seconds"] for one in found[OURS, "validate"]]
    if validate:
        text += f"\nNot in the table: validating the 5,000 images takes {OURS} {summary(validate)} s an epoch.\n"
    names = [name for name in (OURS, TORCH, COMPILED, PYRO) if found[name, "train"]]
    losses = [f"{name} {found[name, 'train'][-1]['loss']:.1f}" for name in names]
    return text + f"\nLoss of each one's last batch, to see that all of them train: {', '.join(losses)}.\n"


def report_importance(arguments: argparse.Namespace, found: dict[tuple[str, str], list[Any]]) -> str:
    """The tables of importance sampling."""

    def took(name: str, what: str = "importance") -> list[float]:
        return [one["seconds"] for one in found[name, what]]

    ours, peak = took(OURS), [one["peak"] for one in found[OURS, "matmul"]]
    draws = arguments.num_examples * arguments.num_samples
    rows = []
    for name in (OURS, TORCH, COMPILED):
        times = took(name)
        if times:
            rates = [draws * FLOPS_PER_DRAW / one for one in times]
            rows.append([
                f"**{name}**" if name == OURS else name,
                summary(times, "{:.3f}"),
                summary([draws / one / 1e3 for one in times], "{:.1f}"),
                summary([rate / 1e9 for rate in rates], "{:.1f}"),
                summary([100 * one for one in ratios(rates, peak)], "{:.0f}"),
                summary(ratios(times, ours)) if name != OURS else "1",
            ])  # fmt: skip
    header = ["contender", "s", "1000 draws/s", "GFLOP/s of the matmuls", "% of the matmul rate", f"time over {OURS}'s"]
    text = (
        f"## Importance sampling: {arguments.num_examples} images, {arguments.num_samples} samples each\n\n"
        f"{table(header, rows)}\n\nThe matmul rate, float32 at highest precision in JAX; the best square is 100 %:\n\n"
    )
    names = found[OURS, "matmul"][0]["rates"] if peak else []
    rows = [[n, summary([one["rates"][n] / 1e9 for one in found[OURS, "matmul"]], "{:.1f}")] for n in names]
    text += table(["matmul", "GFLOP/s"], rows) + "\n"
    if arguments.sweep:
        rows = []
        for n in SWEEP:
            times = took(OURS, f"sweep {n}")
            rates = [draws * FLOPS_PER_DRAW / one for one in times]
            percent = summary([100 * one for one in ratios(rates, peak)], "{:.0f}")
            rows.append([str(n), summary(times, "{:.3f}"), percent])
        text += f"\n### draws_per_call\n\n{table(['draws_per_call', 's', '% of the matmul rate'], rows)}\n"
    return text


def report_profile(found: dict[tuple[str, str], list[Any]]) -> str:
    """The table of the parts of importance sampling."""
    parts = [one["parts"] for one in found[OURS, "profile"]]
    if not parts:
        return ""
    rows = []
    for name in parts[0]:
        percent = [100 * one[name] / one["whole"] for one in parts]
        rows.append([name, summary([1e3 * one[name] for one in parts], "{:.0f}"), summary(percent, "{:.0f}")])
    return "## Parts of importance sampling, each alone\n\n" + table(["part", "ms", "% of the whole"], rows) + "\n"


def report_machine(arguments: argparse.Namespace, processes: dict[str, Process], load: list[float]) -> str:
    """Where, what and how often."""
    versions: dict[str, str] = {}
    for process in processes.values():
        versions |= {} if process.trouble else process.prepared["versions"]
    written = ", ".join(f"{name} {version}" for name, version in versions.items())
    data = "MNIST" if arguments.data_dir else "noise of MNIST's shape"
    loads = " to ".join(f"{one:.2f}" for one in load)
    lines = [
        f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, {platform.system()} {platform.machine()}",
        f"- {cpu_model()}, {timing.num_threads()} cores, load average before and after: {loads}",
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
    return "\n".join(lines) + "\n"


def report_once(processes: dict[str, Process]) -> str:
    """What is paid once in a process and is in no other number."""
    rows = []
    for name, process in processes.items():
        if not process.trouble:
            rows += [[name, what, f"{took:.1f}"] for what, took in process.prepared["once"].items()]
            rows.append([name, "start of the process until ready, all of that included", f"{process.startup:.1f}"])
    return "## Paid once, in no number above\n\n" + table(["contender", "what", "s"], rows) + "\n"


def main() -> None:
    """Measures and reports."""
    arguments = parse_arguments()
    load = [os.getloadavg()[0]]
    processes = start(arguments)
    try:
        if processes[OURS].trouble:
            sys.exit(f"error: {OURS} does not run: {processes[OURS].trouble}")
        found = measure(arguments, processes)
    finally:
        for process in processes.values():
            process.close()
    load.append(os.getloadavg()[0])
    sections = [report_machine(arguments, processes, load)]
    if arguments.only != "importance":
        sections.append(report_training(arguments, found))
    if arguments.only != "train":
        sections.append(report_importance(arguments, found))
    sections += [report_profile(found), report_once(processes)]
    text = "\n".join(section for section in sections if section)
    print(text)
    if arguments.output:
        pathlib.Path(arguments.output).write_text(text)


if __name__ == "__main__":
    main()
