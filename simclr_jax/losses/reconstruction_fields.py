"""Fields of the term `reconstruction` (`config.loss.reconstruction`); importing them needs no JAX."""

from simclr_jax.errors import SimclrError
from simclr_jax.field import POSITIVE, Field, one_of
from simclr_jax.registry import Facts, Flat

LOSSES = ("gaussian", "laplace", "bernoulli", "ssim", "ms_ssim", "psnr")
TARGETS = ("view", "clean")

FIELDS = {
    "weight": Field(1.0, "multiplies it", POSITIVE, 1e6, "products with it leave float32", 1e-6),
    "loss": Field(
        "gaussian",
        "gaussian (squared error), psnr (in decibels), laplace (absolute error), bernoulli (cross entropy), "
        "ssim, ms_ssim",
        one_of(*LOSSES),
    ),
    "target": Field(
        "view",
        "what the decoder is to make: the view itself, or clean (before color and blur; augment.device "
        "photometric or all)",
        one_of(*TARGETS),
    ),
}


def check_output(flat: Flat) -> None:
    """Raises SimclrError for another output than unit: there is no image to add to, and terms know logits."""
    output = flat["model.decoder.output"]
    if output != "unit":
        why = "its decoder sees no image" if output == "residual" else "the term itself takes logits"
        raise SimclrError(
            f"config.model.decoder.output={output!r}: must be unit for loss.name={flat['loss.name']!r}: {why}"
        )


def _check(flat: Flat) -> None:
    check_output(flat)
    if flat["loss.reconstruction.target"] == "clean" and flat["augment.device"] == "none":
        raise SimclrError(
            "config.loss.reconstruction.target='clean': needs config.augment.device=photometric or all; with "
            "none the host sends views with their colors and blur alone"
        )


FACTS = Facts(fields=FIELDS, check=_check, decodes=True)
