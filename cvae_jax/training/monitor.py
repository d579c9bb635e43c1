"""Messages while a stage trains: a line an epoch, a loss that diverges, a posterior that has collapsed."""

import logging

import numpy as np

from cvae_jax import objectives
from cvae_jax.errors import DivergenceError
from cvae_jax.task import Stage
from cvae_jax.training.checkpoints import Checkpoints

LOGGER = logging.getLogger(__name__)


def check_finite(
    stage: Stage, first_step: int, terms: dict[str, np.ndarray], seeds: np.ndarray, checkpoints: Checkpoints
) -> None:
    """Raises DivergenceError for the first of the steps at which a term is not finite.

    Args:
      stage: that is trained.
      first_step: of these steps.
      terms: name -> [seeds, steps].
      seeds: int32 [seeds].
      checkpoints: of the stage, the newest of which is named.
    """
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
        f"{stage.name}: {names}{seed} not finite at step {first_step + offset}; {last}. Look for "
        f"NaN in the data; else lower {stage.section}.optimizer.learning_rate or set {stage.section}.optimizer."
        "clip_norm, in a new --workdir"
    )


def describe(stage: Stage, epoch: int, values: dict[str, np.ndarray], best_name: str = "best_loss") -> str:
    """Returns an epoch's metrics, means over the seeds, as a line of text.

    Args:
      stage: that is trained.
      epoch: how many are done.
      values: name -> [seeds].
      best_name: which of them is the best value so far.
    """
    mean = {name: value.mean() for name, value in values.items()}
    count = len(values[best_name])
    best = "best" + best_name.removeprefix("best").replace("_", " ") * (best_name != "best_loss")
    terms = [f", {name} {mean[name]:.3f}" for name in mean if name.startswith("valid/") and name != "valid/loss"]
    return (
        f"{stage.name} epoch {epoch}/{stage.settings.epochs}: train/loss {mean['train/loss']:.3f}, "
        f"valid/loss {mean['valid/loss']:.3f} ({best} {mean[best_name]:.3f}){''.join(terms)}"
        f"{f' (means of {count} seeds)' if count > 1 else ''}"
    )


def describe_batches(
    stage: Stage, first_step: int, per_epoch: int, terms: dict[str, np.ndarray], seed: int | None
) -> list[str]:
    """Returns a line for every `log_every`-th step of an epoch among those of a call.

    Terms are means times the batch's size, so sums over the batch where every example has one y; those with a unit of
    their own, such as the KL's weight, stay as they are. The ELBO's are the loss as reconstruction + KL, as weighted.

    Args:
      stage: that is trained.
      first_step: of the call.
      per_epoch: steps of an epoch.
      terms: name -> [seeds, steps], of whose first seed the lines are.
      seed: that seed, or None where there is no other.
    """
    settings, lines = stage.settings, []
    count = len(terms["loss"][0])
    for step in range(first_step, first_step + count) if settings.log_every else ():
        within = step % per_epoch
        if within % settings.log_every:
            continue
        means = {name: values[0, step - first_step] for name, values in terms.items()}
        sums = {name: mean if name in stage.units else settings.batch_size * mean for name, mean in means.items()}
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


COLLAPSED_KL = 0.1  # nats in all latent dimensions together
COLLAPSED_EPOCHS = 5  # in a row: a KL that is still growing is small too


def warn_of_collapse(
    stage: Stage, step: int, values: dict[str, np.ndarray], seeds: np.ndarray, before: int, last: bool
) -> int:
    """Warns, once and at the last epoch, of a q that has collapsed onto p though the KL's full weight is on.

    Args:
      stage: that is trained.
      step: how many were taken.
      values: name -> [seeds], of this epoch.
      seeds: int32 [seeds].
      before: what this function returned an epoch ago, at first 0.
      last: whether this is the last epoch.

    Returns:
      For how many epochs in a row that has been so.
    """
    objective = stage.settings.objective
    if "valid/kl" not in values or step < objective.beta_steps or not objectives.trains_recognition(objective):
        return 0
    least = int(values["valid/kl"].argmin())
    if values["valid/kl"][least] >= COLLAPSED_KL:
        return 0
    if before + 1 == COLLAPSED_EPOCHS or (last and before >= COLLAPSED_EPOCHS):
        which = f" of seed {seeds[least]}" if len(seeds) > 1 else ""
        free_bits = f", {stage.section}.objective.free_bits" * (
            "free_bits" in objectives.OBJECTIVES[objective.name].reads
        )
        LOGGER.warning(
            "%s: the posterior%s has collapsed: KL(q || p) is %.3f nats on validation, so z tells nothing of y. Try "
            "%s.objective.beta_schedule=linear with beta_steps%s, or a smaller %s.objective.beta",
            *(stage.name, which, values["valid/kl"][least], stage.section, free_bits, stage.section),
        )
    return before + 1
