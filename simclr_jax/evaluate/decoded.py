"""Reconstructions: the protocol that decodes test images, and its scores."""

from typing import Any

import jax
import jax.numpy as jnp

from simclr_jax import decoding, figures
from simclr_jax.evaluate.subject import Subject
from simclr_jax.losses import reconstruction
from simclr_jax.measures.pictures import interval
from simclr_jax.protocols import protocol
from simclr_jax.results import Result

HALF = "the decoder learned the hidden parts of images of which it saw the rest; here it sees whole images"
IMAGES = 2000  # that are decoded, at most
COLUMNS, ROWS = 12, 3  # of the figure: images, and pairs of rows
SCORES = {
    "psnr": (reconstruction.psnr, "PSNR", "{:.2f}", " dB"),
    "ssim": (reconstruction.ssim, "SSIM", "{:.3f}", ""),
}


@protocol("reconstructions", "pictures")
def reconstructions(subject: Subject) -> Result:
    """PSNR and SSIM of test images after encoder and decoder, beside their mean image.

    Intervals are of the bootstrap over images. No accuracy follows from them: a decoder rewards pixels.
    """
    if decoding.term_of(subject.encoder) is None:
        return Result(skipped="the run has no decoder")
    autoencoder = decoding.Autoencoder(subject.encoder)

    def scored(made: jax.Array, views: jax.Array) -> dict[str, jax.Array]:
        return {name: score(made, views) for name, (score, *_) in SCORES.items()}

    @jax.jit
    def through(variables: Any, views: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        made = autoencoder.to_images(variables, autoencoder.to_latents(variables, views))
        return made, scored(made, views)

    @jax.jit
    def beside(_: Any, views: jax.Array) -> dict[str, jax.Array]:
        return scored(jnp.broadcast_to(mean, views.shape), views)

    views, labels = subject.gallery(IMAGES)
    mean = views.mean(axis=0, keepdims=True)
    made, found = subject.over(through, views)
    numbers = {"decoder": found, "mean_image": subject.over(beside, views)}
    told = {who: {name: interval(each) for name, each in scores.items()} for who, scores in numbers.items()}
    some = figures.spread(labels, COLUMNS * ROWS)
    blocks = [some[begin : begin + COLUMNS] for begin in range(0, len(some), COLUMNS)]
    rows = [images[block] for block in blocks for images in (views, made)]
    subject.draw("reconstructions.png", figures.rows, rows, ["image", "decoded"] * len(blocks))
    return Result(
        notes=[
            f"decoder, {len(views):,} images of {subject.shown.name}: {_line(told['decoder'])}",
            f"their mean image instead: {_line(told['mean_image'])}",
            *[HALF] * (autoencoder.term == "masked"),
        ],
        figures=[["reconstructions.png", "Images, and what the decoder makes of them"]],
        more={"images": len(views), **told},
    )


def _line(scores: dict[str, tuple[float, ...]]) -> str:
    """PSNR 21.30 dB [21.12, 21.49], SSIM 0.871 [0.868, 0.874]"""
    parts = []
    for name, (_, title, style, unit) in SCORES.items():
        value, *ends = (style.format(x) for x in scores[name])
        parts.append(f"{title} {value}{unit}" + (f" [{', '.join(ends)}]" if ends else ""))
    return ", ".join(parts)
