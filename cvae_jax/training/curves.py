"""The figure of a run's terms over epochs."""

import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def training_curves(rows: list[dict[str, Any]], path: pathlib.Path, units: Mapping[str, str]) -> None:
    """Saves every term of the loss over epochs, training and validation, a panel a term and a line of panels a stage.

    Args:
      rows: of metrics.jsonl; none: no figure.
      path: of the PNG.
      units: of terms that are not nats per example.
    """
    if not rows:
        return
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    terms = {stage: _terms([row for row in rows if row["stage"] == stage]) for stage in stages}
    width = max(len(names) for names in terms.values())
    figure = Figure(figsize=(3.2 * width, 2.6 * len(stages)), layout="constrained")
    axes = figure.subplots(len(stages), width, squeeze=False)
    for line, stage in zip(axes, stages, strict=True):
        for panel in line:
            panel.axis("off")
        of_stage = [row for row in rows if row["stage"] == stage]
        seeds = list(dict.fromkeys(row["seed"] for row in of_stage))
        for panel, term in zip(line, terms[stage], strict=False):
            panel.axis("on")
            panel.set_title(f"{stage}: {term}", fontsize=9)
            panel.set_xlabel("epoch", fontsize=8)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.set_ylabel(units.get(term, "nats per example"), fontsize=8)
            panel.tick_params(labelsize=7)
            for split, style in (("train", "-"), ("valid", "--")):
                if f"{split}/{term}" not in of_stage[0]:
                    continue
                for number, seed in enumerate(seeds):
                    own = [row for row in of_stage if row["seed"] == seed]
                    epochs, values = [row["epoch"] for row in own], [row[f"{split}/{term}"] for row in own]
                    many = len(seeds) > 1
                    colour = f"C{number if many else int(split == 'valid')}"
                    panel.plot(epochs, values, style, color=colour, label=split + f", seed {seed}" * many)
            panel.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _terms(rows: list[dict[str, Any]]) -> list[str]:
    """The names of a stage's terms, the loss first."""
    names = {name.split("/", 1)[1] for row in rows for name in row if "/" in name}
    return sorted(names, key=lambda name: (name != "loss", name))
