"""What is known of the small CNN before JAX is imported. It reads `config.model.width` alone."""

from simclr_jax.registry import Facts, Flat


def stages(flat: Flat) -> int:
    """The convolutions; convolution 1 is stage 1, as there is no stem."""
    return 3


def smallest(flat: Flat) -> tuple[int, str]:
    """(side of the smallest images, why)."""
    return 8, "the small CNN"


def parameters(flat: Flat) -> tuple[float, float]:
    """About how many parameters there are, and features."""
    return 1e5 * flat["model.width"] ** 2, 4 * 128 * flat["model.width"]


FACTS = Facts(stages=stages, smallest=smallest, parameters=parameters)
