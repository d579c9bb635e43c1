"""What is said of a run while it trains: that it diverges, that a posterior has collapsed, and a line an epoch."""

import logging

import numpy as np

from cvae_jax import objectives
from cvae_jax.errors import DivergenceError
from cvae_jax.model import Stage
from cvae_jax.training.checkpoints import Checkpoints

LOGGER = logging.getLogger(__name__)


OF_ALL = ("beta", "teacher_forcing")  # terms that are one number for the whole batch


def check_finite(
    stage: Stage, first_step: int, terms: dict[str, np.ndarray], seeds: np.ndarray, checkpoints: Checkpoints
) -> None:
    """Raises DivergenceError for the first of the steps at which a term [seeds, steps] is not finite."""
    bad = np.stack([~np.isfinite(values) for values in terms.values()])  # [terms, seeds, steps]
    if not bad.any():
        return
    offset = int(bad.any((0, 1)).argmax())
    at_step = bad[:, :, offset]
    names = ", ".join(name for number, name in enumerate(terms) if at_step[number].any())
    seed = f" of seed {seeds[at_step.any(0).argmax()]}" if len(seeds) > 1 else ""
    saved = checkpoints.steps()
    last = f"the last good checkpoint is step {saved[0]}" if saved else "there is no checkpoint yet"
    raise DivergenceError(
        f"{stage.name}: {names}{seed} not finite at step {first_step + offset}; {last}. Lower "
        f"{stage.name}.optimizer.learning_rate or set {stage.name}.optimizer.clip_norm, in a new --workdir"
    )


def describe(stage: Stage, epoch: int, values: dict[str, np.ndarray]) -> str:
    """An epoch's metrics [seeds], their mean over the seeds, as a line of text."""
    own = ("valid/loss", "best_loss")
    mean = {name: value.mean() for name, value in values.items()}
    count = len(values["best_loss"])
    terms = [f", {name} {mean[name]:.3f}" for name in mean if name.startswith("valid/") and name not in own]
    return (
        f"{stage.name} epoch {epoch}/{stage.settings.epochs}: train/loss {mean['train/loss']:.3f}, "
        f"valid/loss {mean['valid/loss']:.3f} (best {mean['best_loss']:.3f}){''.join(terms)}"
        f"{f' (means of {count} seeds)' if count > 1 else ''}"
    )


def describe_batches(
    stage: Stage, first_step: int, per_epoch: int, terms: dict[str, np.ndarray], seed: int | None
) -> list[str]:
    """A line for every `log_every`-th step of an epoch among those of a call, from its terms [seeds, steps].

    They are means times the batch's size, so sums over the batch where every example has one y, but for the KL's
    weight; of the first of these seeds: `seed`, or None where there is no other. For the ELBO they are the loss as
    reconstruction + KL, as weighted.
    """
    settings, lines = stage.settings, []
    count = len(terms["loss"][0])
    for step in range(first_step, first_step + count) if settings.log_every else ():
        within = step % per_epoch
        if within % settings.log_every:
            continue
        means = {name: values[0, step - first_step] for name, values in terms.items()}
        sums = {name: mean if name in OF_ALL else settings.batch_size * mean for name, mean in means.items()}
        epoch = f"epoch {step // per_epoch + 1}" + (f" of seed {seed}" if seed is not None else "")
        head = f"{stage.name} {epoch}, {within * settings.batch_size:,} examples, sums of a batch: "
        if settings.objective.name == "elbo" and "log_p_y" in sums:
            loss, reconstruction = sums["loss"], -sums["log_p_y"]
            lines.append(head + f"loss {loss:.3f} = {reconstruction:.3f} + {loss - reconstruction:.3f}")
        else:
            lines.append(
                head + ", ".join(f"{name} {sums[name]:.3f}" for name in ("loss", *sorted(sums.keys() - {"loss"})))
            )
    return lines


COLLAPSED_KL = 0.1  # nats in all latent units together
COLLAPSED_EPOCHS = 5  # in a row: a KL that is still growing is small too


def warn_of_collapse(
    stage: Stage, step: int, values: dict[str, np.ndarray], seeds: np.ndarray, before: int, last: bool
) -> int:
    """Warns, once and at the last epoch, of a q that has collapsed onto p though the KL's full weight is on.

    Returns:
      For how many epochs in a row that has been so, given that number `before` this one.
    """
    objective = stage.settings.objective
    if "valid/kl" not in values or step < objective.annealing_steps or not objectives.trains_recognition(objective):
        return 0
    least = int(values["valid/kl"].argmin())
    if values["valid/kl"][least] >= COLLAPSED_KL:
        return 0
    if before + 1 == COLLAPSED_EPOCHS or (last and before >= COLLAPSED_EPOCHS):
        which = f" of seed {seeds[least]}" if len(seeds) > 1 else ""
        free_bits = f", {stage.name}.objective.free_bits" * ("free_bits" in objectives.OBJECTIVES[objective.name].reads)
        LOGGER.warning(
            "%s: the posterior%s has collapsed: KL(q || p) is %.3f nats on validation, so z tells nothing of y. Try "
            "%s.objective.annealing=linear with annealing_steps%s, or a smaller %s.objective.beta",
            *(stage.name, which, values["valid/kl"][least], stage.name, free_bits, stage.name),
        )
    return before + 1
