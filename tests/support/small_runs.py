"""The config of runs that take seconds."""

from configs import digits_quadrants


def small_config(**changes):
    config = digits_quadrants.get_config("1,smoke")
    for stage in (config.baseline, config.cvae):
        stage.update(hidden=(16,), checkpoint_every=1, figure_every=0)
    config.cvae.latent = 4
    for key, value in changes.items():
        config.update_from_flattened_dict({key: value})
    return config
