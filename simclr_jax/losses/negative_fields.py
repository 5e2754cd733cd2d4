"""Fields of the losses that choose, weigh or move negatives; importing them needs no JAX."""

from simclr_jax.errors import SimclrError
from simclr_jax.field import BELOW_ONE, NOT_NEGATIVE, POSITIVE, Field, Rule
from simclr_jax.registry import Facts, Flat

COSINE = Rule(lambda value: -1 <= value <= 1, "a cosine, between -1 and 1")
DECAY = Rule(lambda value: 0 < value < 1, "above 0 and below 1")
TAU_PLUS = Field(
    0.1, "probability that a negative is of the row's own class", BELOW_ONE, 1.0, "it is a probability"
)


def _cosines_only(flat: Flat) -> None:
    if not flat["loss.normalize"]:
        raise SimclrError(
            "config.loss.normalize=False: must be True for debiased and hcl, whose bound holds for cosines"
        )


def _on_the_sphere(flat: Flat) -> None:
    radius = flat["loss.adversarial.radius"]
    if flat["loss.normalize"] and radius > 2:
        raise SimclrError(
            f"config.loss.adversarial.radius={radius}: must be at most 2, the diameter of the unit sphere, "
            "or config.loss.normalize=False"
        )


DEBIASED = Facts(fields={"tau_plus": TAU_PLUS}, check=_cosines_only)
HCL = Facts(
    fields={
        "beta": Field(
            1.0, "a negative weighs e^(beta · logit); 0: debiased", NOT_NEGATIVE, 1e4, "one weight is left"
        ),
        "tau_plus": TAU_PLUS,
    },
    check=_cosines_only,
)
ADVERSARIAL = Facts(
    fields={
        "steps": Field(3, "of gradient ascent", NOT_NEGATIVE, 1000, "each compares all pairs again"),
        "step": Field(
            0.05,
            "its length; embeddings have length 1",
            POSITIVE,
            1e6,
            "products with it leave float32",
        ),
        "radius": Field(
            0.1, "how far a negative may move", NOT_NEGATIVE, 1e6, "products with it leave float32"
        ),
    },
    check=_on_the_sphere,
)
FNC = Facts(
    fields={
        "threshold": Field(0.7, "cosine above which a negative may be false", COSINE, 1.0, "it is a cosine"),
        "most": Field(10, "false negatives of a row, at most", NOT_NEGATIVE, 2**24, "no batch has more"),
        "attract": Field(False, "they become positives; False: they only leave the denominator"),
    }
)
QUEUE = Facts(
    fields={
        "length": Field(
            16384,
            "projections in the queue, two an image",
            POSITIVE,
            2**24,
            "every device holds them",
        ),
        "decay": Field(
            0.999, "of the moving average of encoder and head, a step", DECAY, 1.0, "it is a share"
        ),
    }
)
