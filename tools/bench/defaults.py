"""The config of the parts that need none: the package's defaults, to be varied by --config.FIELD=VALUE."""

from simclr_jax import config


def get_config():
    """The configuration."""
    return config.default()
