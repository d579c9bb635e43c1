"""The config of runs that take seconds, of the plain networks."""

import json

from specs import NOTHING, task_of

from configs import digits_quadrants
from cvae_jax import objectives
from cvae_jax.training import workdir


def small_config(**changes):
    config = digits_quadrants.get_config("1,smoke")
    for stage in (config.baseline, config.cvae):
        stage.update(hidden=(16,), checkpoint_every=1, figure_every=0)
    config.cvae.update(network="plain", latent=4)
    config.cvae.objective.update(objectives.DEFAULTS)
    config.cvae.optimizer.update(learning_rate=1e-3, weight_decay=0.0)
    for key, value in changes.items():
        config.update_from_flattened_dict({key: value})
    return config


def forget_run(workdir):
    """Makes the manifests of a workdir those of an older version, which did not say whose checkpoints they are."""
    for manifest in (workdir / "checkpoints").glob("*/*.sha256.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text())["files"]))


def small_identity(**changes):
    """What a workdir of `small_config` belongs to, without data."""
    config = small_config(**changes)
    return workdir.Identity(config, {"train": "12ab"}, NOTHING, task_of(config))
