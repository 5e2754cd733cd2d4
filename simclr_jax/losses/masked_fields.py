"""Fields of the term `masked` (`config.loss.masked`); importing them needs no JAX.

Weights, ratio and sigma are those of CAN (arXiv 2210.16870); contrast then has `config.loss.scale` 0.03.
"""

from simclr_jax.errors import SimclrError
from simclr_jax.field import NOT_NEGATIVE, POSITIVE, Field, Rule, one_of
from simclr_jax.losses.reconstruction_fields import check_output
from simclr_jax.registry import Facts, Flat

FACTOR = (1e6, "products with it leave float32", 1e-6)

FIELDS = {
    "weight": Field(0.67, "multiplies the reconstruction of what is hidden", POSITIVE, *FACTOR),
    "noise": Field(0.3, "decoder tokens: multiplies the error of the predicted noise", NOT_NEGATIVE, *FACTOR),
    "ratio": Field(
        0.5,
        "share of the patches or blocks that is hidden",
        Rule(lambda value: 0 < value < 1, "above 0 and below 1"),
        1.0,
        "it is a share",
    ),
    "block": Field(
        4, "other decoders: side of the blocks that are hidden, pixels", POSITIVE, 2**14, "no image is larger"
    ),
    "sigma": Field(
        0.05,
        "decoder tokens: largest deviation of the noise, which is added to images in [0, 1]; 0: none",
        NOT_NEGATIVE,
        10.0,
        "nothing of an image is left",
        1e-6,
    ),
    "loss": Field("gaussian", "gaussian (squared error) or laplace (absolute error)",
        one_of("gaussian", "laplace")),
    "normalize": Field(
        True, "decoder tokens: reconstructs patches less their mean, over their deviation (MAE)"
    ),
}  # fmt: skip


def _check(flat: Flat) -> None:
    check_output(flat)
    side, block = flat["data.image_size"], flat["loss.masked.block"]
    if flat["model.decoder.variant"] != "tokens" and side and block >= side:
        raise SimclrError(
            f"config.loss.masked.block={block}: must be smaller than config.data.image_size={side}"
        )


FACTS = Facts(fields=FIELDS, check=_check, decodes=True)
