"""Facts about the small CNN that need no JAX. Its only field is `config.model.width`."""

from simclr_jax.errors import SimclrError
from simclr_jax.registry import Facts, Flat

ONLY_RESNET = ("sk_ratio", "se_ratio", "dropblock_keep", "blocks")


def check(flat: Flat) -> None:
    """Raises SimclrError if a field asks for a feature that only ResNets have."""
    for field in ONLY_RESNET:
        if value := flat[f"model.{field}"]:
            raise SimclrError(
                f"config.model.{field}={value!r}: must be left at its default: only a ResNet has it"
            )


def stages(flat: Flat) -> int:
    """The number of convolutions; convolution 1 is stage 1, because there is no stem."""
    return 3


def smallest(flat: Flat) -> tuple[int, str]:
    """(side of the smallest images, why)."""
    return 8, "the small CNN"


def parameters(flat: Flat) -> tuple[float, float]:
    """Approximate numbers of parameters and features."""
    return 1e5 * flat["model.width"] ** 2, 4 * 128 * flat["model.width"]


FACTS = Facts(check=check, stages=stages, smallest=smallest, parameters=parameters)
