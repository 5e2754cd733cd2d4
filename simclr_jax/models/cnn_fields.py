"""What is known of the small CNN before JAX is imported. It reads `config.model.width` alone."""

from simclr_jax.errors import SimclrError
from simclr_jax.registry import Facts, Flat

ONLY_RESNET = ("sk_ratio", "se_ratio", "dropblock_keep", "blocks")


def check(flat: Flat) -> None:
    """Raises SimclrError where a field asks for what only a ResNet has."""
    for field in ONLY_RESNET:
        if value := flat[f"model.{field}"]:
            raise SimclrError(
                f"config.model.{field}={value!r}: must be left at its default: only a ResNet has it"
            )


def stages(flat: Flat) -> int:
    """The convolutions; convolution 1 is stage 1, as there is no stem."""
    return 3


def smallest(flat: Flat) -> tuple[int, str]:
    """(side of the smallest images, why)."""
    return 8, "the small CNN"


def parameters(flat: Flat) -> tuple[float, float]:
    """About how many parameters there are, and features."""
    return 1e5 * flat["model.width"] ** 2, 4 * 128 * flat["model.width"]


FACTS = Facts(check=check, stages=stages, smallest=smallest, parameters=parameters)
