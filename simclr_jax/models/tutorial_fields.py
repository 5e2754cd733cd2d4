"""Fields of the tutorials' encoder, `config.model.tutorial`; importing them needs no JAX."""

from simclr_jax.field import ARCHITECTURE, POSITIVE, Field
from simclr_jax.registry import Facts, Flat

WIDTHS = (32, 64, 128)  # channels of the convolutions
KERNEL = 4
STRIDE = 2 ** len(WIDTHS)  # of all convolutions together

FIELDS = {
    "features": Field(
        128,
        "numbers that an image becomes",
        POSITIVE,
        most=2**15,
        why="its dense layer would take gigabytes",
        decides=ARCHITECTURE,
    ),
}


def _stages(flat: Flat) -> int:
    """The number of the dense layer; the convolutions are stages 0 to 2."""
    return len(WIDTHS)


def _smallest(flat: Flat) -> tuple[int, str]:
    return STRIDE, "three convolutions of stride 2"


def _parameters(flat: Flat) -> tuple[float, float]:
    """Weights of the three convolutions and the dense layer, and the number of features."""
    features, before, count = flat["model.tutorial.features"], flat["data.channels"], 0.0
    for width in WIDTHS:
        width *= flat["model.width"]
        count, before = count + KERNEL**2 * before * width, width
    side = -(-flat["data.image_size"] // STRIDE)
    return count + side**2 * before * features, float(features)


FACTS = Facts(fields=FIELDS, stages=_stages, smallest=_smallest, parameters=_parameters)
