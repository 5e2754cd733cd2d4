"""Fields of task restore, `config.restore`; importing them needs no JAX."""

from typing import Any

from simclr_jax import registry
from simclr_jax.errors import SimclrError
from simclr_jax.field import POSITIVE, PROBABILITY, Field, Rule, one_of
from simclr_jax.losses.reconstruction_fields import LOSSES

CORRUPTIONS = ("gaussian", "poisson", "salt_and_pepper", "jpeg", "fewer_pixels", "holes")


def _none_or_ordered(pair: Any) -> bool:
    return not pair or (len(pair) == 2 and 0 <= pair[0] <= pair[1])


FIELDS = {
    "corruption": Field(
        "gaussian", "noise: gaussian, poisson, salt_and_pepper; jpeg; fewer_pixels (super-resolution); holes "
        "(inpainting)", one_of(*CORRUPTIONS)),
    "sigma": Field(25.0, "gaussian: of the noise, in units of 1/255; it is not clipped", POSITIVE, 1e4,
        "images have 255 steps", 1e-3),
    "sigma_range": Field((), "gaussian: (least, largest), drawn for each image; () for sigma",
        Rule(_none_or_ordered, "() or two numbers from 0 up, the smaller first"), 1e4,
        "images have 255 steps", 1e-3),
    "peak": Field(30.0, "poisson: photons where an image is white", POSITIVE, 1e6, "no noise is left", 1e-3),
    "share": Field(0.25, "salt_and_pepper: of the values; holes: of the pixels, about", PROBABILITY, 1,
        "it is a share"),
    "quality": Field(20, "jpeg: 1 to 100", Rule(lambda value: 1 <= value <= 100, "from 1 to 100"), 100,
        "JPEG has no higher one"),
    "scale": Field(2, "fewer_pixels: 2 or 4 times as many a side are wanted", one_of(2, 4), 4,
        "no larger one is of use"),
    "hole": Field(8, "holes: side of the squares, pixels; they get the mean colour of all others", POSITIVE,
        2**14, "no image is larger"),
    "loss": Field("gaussian", "gaussian (squared error), psnr (in decibels), laplace (absolute error), "
        "bernoulli, ssim, ms_ssim", one_of(*LOSSES)),
    "crops": Field(1, "random crops of each image in a batch", POSITIVE, 4096, "a batch has few images"),
}  # fmt: skip


def check(flat: registry.Flat) -> None:
    """Raises SimclrError where fields do not go together."""
    if not registry.of_images(flat["data.source"]):
        raise SimclrError(f"config.data.source={flat['data.source']!r}: must hold images for task='restore'")
    if flat["restore.corruption"] == "jpeg" and flat["data.channels"] not in (0, 1, 3):
        raise SimclrError(
            f"config.data.channels={flat['data.channels']}: must be 1 or 3 for restore.corruption='jpeg'"
        )
    if flat["restore.corruption"] == "holes" and not 0 < flat["restore.share"] < 1:
        raise SimclrError(
            f"config.restore.share={flat['restore.share']}: must be above 0 and below 1 for "
            "restore.corruption='holes'"
        )
    logits = flat["model.decoder.output"] == "logits"
    if logits != (flat["restore.loss"] == "bernoulli"):
        raise SimclrError(
            f"config.restore.loss={flat['restore.loss']!r}: must be bernoulli for "
            "model.decoder.output='logits', and for no other"
        )


FACTS = registry.Facts(check=check, decodes=True)
