"""How far predicted images are from the true ones: losses of a decoder, and scores of images.

Each function takes predicted images `[m, h, w, c]`, target images `[m, h, w, c]` in [0, 1] and, if only
some pixels count, their mask `[m, h, w, 1]` of 0 and 1 (or other weights). It returns a number for each
image, `[m]`, in at least float32. Where no pixel of an image counts, the mean is 0.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from simclr_jax.errors import SimclrError
from simclr_jax.losses.objective import ROWS, Metrics, Objective, Sizes
from simclr_jax.models import decoder as decoders

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian window, pixels
C1, C2 = 0.01**2, 0.03**2  # (K1 L)² and (K2 L)² for images of range L = 1
# Exponents of MS-SSIM, from the finest scale to the coarsest: Wang et al. 2003, section 3.2.
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
FLOOR = 1e-4  # of a factor of MS-SSIM: a power of 0 has an infinite gradient
LEAST = 1e-10  # mean squared error below which PSNR does not grow
SOFT = 1e-8  # added to the squared error in the loss: bounds the gradient


def gaussian(predicted: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The mean of (x̂ - x)²: the squared error.

    It is -2 log p(x) of a normal distribution with mean x̂ and deviation 1, per number and without its
    constant (Bishop, Pattern Recognition and Machine Learning, 2006, equation 1.62).
    """
    predicted, target = _high(predicted, target)
    return _mean((predicted - target) ** 2, mask)


def laplace(predicted: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The mean of |x̂ - x|: the absolute error.

    It is -log p(x) of a Laplace distribution with median x̂ and scale 1, per number and without its constant.
    """
    predicted, target = _high(predicted, target)
    return _mean(jnp.abs(predicted - target), mask)


def bernoulli(logits: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The mean of -x log σ(a) - (1 - x) log σ(-a) for logits a, written max(a, 0) - a x + log(1 + e^-|a|).

    The cross entropy of variational autoencoders on black and white images (Kingma & Welling,
    arXiv 1312.6114, appendix C.1). For targets between 0 and 1 its smallest value is above 0.
    """
    a, x = _high(logits, target)
    return _mean(jnp.maximum(a, 0) - a * x + jnp.log1p(jnp.exp(-jnp.abs(a))), mask)


def ssim(predicted: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The structural similarity, 1 for equal images: the mean over windows and channels of

        (2 μx μy + C1) (2 σxy + C2) / ((μx² + μy² + C1) (σx² + σy² + C2)).

    Wang, Bovik, Sheikh & Simoncelli, IEEE Transactions on Image Processing 13 (4), 2004, equation 13, with
    their window (11×11, Gaussian, deviation 1.5), K1 = 0.01, K2 = 0.03, biased moments, and only windows
    that lie in the image. A window counts as much as its central pixel does in the mask. In an image with a
    side below 11 pixels the window is the largest odd number of pixels that fits.
    """
    luminance, contrast = _similarities(*_high(predicted, target))
    return _mean(luminance * contrast, _central(mask, luminance.shape))


def ms_ssim(predicted: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The structural similarity at several scales, 1 for equal images: ssim_M^β_M · Π_{j<M} cs_j^β_j.

    Wang, Simoncelli & Bovik, Asilomar Conference on Signals, Systems and Computers 2003, equation 7, as their
    released code computes it: cs_j is the mean of (2 σxy + C2) / (σx² + σy² + C2) at scale j, ssim_M the mean
    of SSIM at the coarsest. The next scale is the mean of 2×2 pixels; an odd side repeats its last pixel.
    Channels are computed one by one and averaged. β are the five published exponents. They need images of 176
    pixels; in smaller images SSIM's window of 11 fits fewer scales (5 - log2(176 / side), rounded down, at
    least 1: 2 scales at 28 and 32 pixels), and the first exponents divided by their sum are used. Factors
    below 1e-4, as of negative correlation, count as 1e-4, without gradient.
    """
    x, y = _high(predicted, target)
    count = scales(x.shape[1:3])
    exponents = np.array(EXPONENTS[:count]) / sum(EXPONENTS[:count])
    score = jnp.ones((), x.dtype)
    for i, exponent in enumerate(exponents):
        luminance, contrast = _similarities(x, y)
        each = luminance * contrast if i == count - 1 else contrast
        factor = _mean(each, _central(mask, each.shape), channels=True)
        score = score * jnp.maximum(factor, FLOOR) ** float(exponent)
        x, y = _halved(x), _halved(y)
        mask = None if mask is None else _halved(mask)
    return jnp.mean(score, axis=-1)


def ssim_loss(predicted: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """1 - `ssim`, between 0 and 2 (Zhao et al., arXiv 1511.08861)."""
    return 1 - ssim(predicted, target, mask)


def ms_ssim_loss(predicted: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """1 - `ms_ssim`, between 0 and 1 (Zhao et al., arXiv 1511.08861)."""
    return 1 - ms_ssim(predicted, target, mask)


def psnr(predicted: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The peak signal-to-noise ratio in decibels, -10 log10(mean squared error); at most 100."""
    return -10 * jnp.log10(jnp.maximum(gaussian(predicted, target, mask), LEAST))


def psnr_loss(predicted: jax.Array, target: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """10 log10(mean squared error + 1e-8), decibels: -PSNR, without the steep slope at small errors.

    The loss of HINet (Chen et al., arXiv 2105.06086). Even images, whose errors are small, count as much as
    rough ones.
    """
    decibels = 10 * jnp.log10(gaussian(predicted, target, mask) + SOFT)
    return decibels if mask is None else jnp.where(jnp.any(mask > 0, axis=(1, 2, 3)), decibels, 0)


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "gaussian": gaussian,
    "laplace": laplace,
    "bernoulli": bernoulli,
    "ssim": ssim_loss,
    "ms_ssim": ms_ssim_loss,
    "psnr": psnr_loss,
}


def scales(image: tuple[int, ...]) -> int:
    """How many scales of MS-SSIM images of (h, w, ...) have."""
    side = min(image[:2])
    return min(len(EXPONENTS), 1 + int(math.log2(max(side / WINDOW, 1))))


def _high(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return tuple(array.astype(dtype) for array in arrays)


def _mean(each: jax.Array, mask: jax.Array | None, channels: bool = False) -> jax.Array:
    """Means over the pixels of `[m, h, w, c]`: `[m]`, or with `channels` `[m, c]`."""
    axes = (1, 2) if channels else (1, 2, 3)
    if mask is None:
        return jnp.mean(each, axis=axes)
    mask = jnp.broadcast_to(mask.astype(each.dtype), each.shape)
    total = jnp.sum(mask, axis=axes)
    return jnp.sum(each * mask, axis=axes) / jnp.where(total > 0, total, 1)


def _window(side: int, longest: int, dtype: jnp.dtype) -> jax.Array:
    """The matrix `[side - length + 1, side]` that applies SSIM's window along a side."""
    length = min(WINDOW, longest - (longest + 1) % 2)
    weights = np.exp(-((np.arange(length) - length // 2) ** 2) / (2 * SIGMA**2))
    rows = [np.pad(weights, (i, side - length - i)) for i in range(side - length + 1)]
    return jnp.asarray(np.stack(rows) / weights.sum(), dtype)


def _similarities(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(luminance, contrast · structure) of every window and channel, `[m, h', w', c]`."""
    height, width = x.shape[1:3]
    rows, columns = (_window(side, min(height, width), x.dtype) for side in (height, width))
    moments = jnp.stack([x, y, x**2, y**2, x * y])
    # Matrix products, because accelerators are slow at convolutions of single channels.
    mx, my, xx, yy, xy = jnp.einsum("ah,kmhwc,bw->kmabc", rows, moments, columns, precision=Precision.HIGHEST)
    luminance = (2 * mx * my + C1) / (mx**2 + my**2 + C1)
    return luminance, (2 * (xy - mx * my) + C2) / (xx - mx**2 + yy - my**2 + C2)


def _central(mask: jax.Array | None, shape: tuple[int, ...]) -> jax.Array | None:
    """The mask at the windows' central pixels, `[m, h', w', 1]`."""
    if mask is None:
        return None
    top, left = ((mask.shape[axis] - shape[axis]) // 2 for axis in (1, 2))
    return mask[:, top : top + shape[1], left : left + shape[2]]


def _halved(x: jax.Array) -> jax.Array:
    """The means of 2×2 pixels."""
    m, h, w, c = x.shape
    if h % 2 or w % 2:
        x = jnp.pad(x, [(0, 0), (0, h % 2), (0, w % 2), (0, 0)], "edge")
    return jnp.mean(x.reshape(m, (h + 1) // 2, 2, (w + 1) // 2, 2, c), axis=(2, 4))


# ---- the term of the loss --------------------------------------------------------------------------------


def create(name: str, options: Mapping[str, Any], sizes: Sizes) -> Objective:
    """The objective: a decoder of the encoder's endpoints, and how far its images are from the views.

    Its parameters are the decoder's. Fields: `options["reconstruction"]` (reconstruction_fields.py) and
    `config.model.decoder`; whatever its `output` is, loss bernoulli compares logits and all others images.

    Raises:
      SimclrError: another term hides patches from the encoder.
    """
    mine = options["reconstruction"]
    logits = mine["loss"] == "bernoulli"
    decoder, ends = decoder_of(sizes, "logits" if logits else "unit")

    def init(rng: jax.Array) -> tuple[Any, Any]:
        return decoder.init(rng, zeros(sizes, ends))["params"], {}

    def loss(params: Any, extra: Any, outputs: Any, batch: Any, step: Any) -> tuple[jax.Array, Metrics]:
        if "kept" in outputs:
            raise SimclrError(
                "config.loss.name: reconstruction must not be beside a term that hides patches; masked with "
                "config.model.decoder.variant=tokens reconstructs by itself"
            )
        target = outputs[mine["target"]]
        predicted = decode(decoder, params, seen(outputs, ends, target))
        value = LOSSES[mine["loss"]](predicted, rows(target))
        decibels = psnr(jax.nn.sigmoid(predicted) if logits else predicted, rows(target))
        value, decibels = (of_views(each, target) for each in (value, decibels))
        return mine["weight"] * value, {"reconstruction_psnr": decibels}

    return Objective(loss, scope=ROWS, needs=(*ends, mine["target"]), init=init)


def decoder_of(sizes: Sizes, output: str) -> tuple[nn.Module, tuple[str, ...]]:
    """(the decoder of `config.model.decoder` with another `output`, the endpoints that it reads)."""
    options, dtype = {**sizes.model["decoder"], "output": output}, jnp.dtype(sizes.model["dtype"])
    dtypes = {"dtype": dtype, "param_dtype": jnp.promote_types(dtype, jnp.float32)}
    needs = decoders.needs(options, sizes.encoder, sizes.ends)
    return decoders.create(options, sizes.encoder, sizes.ends, sizes.example, **dtypes), needs


def decode(decoder: nn.Module, params: Any, ends: Mapping[str, jax.Array], **given: Any) -> jax.Array:
    """The images `[m, h, w, c]` of endpoints `[m, ...]`."""
    return cast(jax.Array, decoder.apply({"params": params}, ends, **given))


def zeros(sizes: Sizes, ends: tuple[str, ...]) -> dict[str, jax.Array]:
    """Endpoints of two inputs, to initialise a decoder with."""
    return {name: jnp.zeros(sizes.ends[name].shape, sizes.ends[name].dtype) for name in ends}


def rows(x: jax.Array) -> jax.Array:
    """An output `[n, v, ...]` as `[n · v, ...]`."""
    return x.reshape(-1, *x.shape[2:])


def seen(outputs: Mapping[str, jax.Array], ends: tuple[str, ...], like: jax.Array) -> dict[str, jax.Array]:
    """Endpoints as rows `[n · v, ...]`, of the views of `like` `[n, v, ...]`: small views are behind."""
    return {name: rows(outputs[name][:, : like.shape[1]]) for name in ends}


def of_views(each: jax.Array, like: jax.Array) -> jax.Array:
    """Numbers `[n · v]` as the means over the views `[n]`; `like` is an output `[n, v, ...]`."""
    return jnp.mean(each.reshape(like.shape[:2]), axis=1)
