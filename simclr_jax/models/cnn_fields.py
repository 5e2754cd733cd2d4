"""Facts about the small CNN that need no JAX. Its only field is `config.model.width`."""

from simclr_jax.registry import Facts, Flat


def stages(flat: Flat) -> int:
    """The number of convolutions; convolution 1 is stage 1, because there is no stem."""
    return 3


def smallest(flat: Flat) -> tuple[int, str]:
    """(side of the smallest images, why)."""
    return 8, "the small CNN"


def parameters(flat: Flat) -> tuple[float, float]:
    """Approximate numbers of parameters and features."""
    return 1e5 * flat["model.width"] ** 2, 4 * 128 * flat["model.width"]


FACTS = Facts(stages=stages, smallest=smallest, parameters=parameters)
