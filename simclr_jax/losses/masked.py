"""Masked reconstruction beside contrast: parts of each view are hidden, and a decoder is to make them.

With `config.model.decoder.variant` tokens it is CAN (A simple, efficient and scalable contrastive masked
autoencoder, arXiv 2210.16870): hidden patches are dropped before the ViT, the visible ones get noise, and one
decoder makes the hidden patches and predicts the noise of the visible ones. With any other decoder, as for
convolutional encoders, blocks of pixels are hidden as in SimMIM (arXiv 2111.09886): they get the mean color
of the visible pixels.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax import draws, masking
from simclr_jax.errors import SimclrError
from simclr_jax.losses import reconstruction
from simclr_jax.losses.objective import ROWS, Metrics, Objective, Sizes
from simclr_jax.losses.reconstruction import LOSSES, decode, of_views, rows

LEVEL = 128  # numbers that tell the decoder the level of the noise, as in CAN's released code
STEPS = 1000  # levels are counted up to it, as the steps of a diffusion are
VARIANCE = 1e-6  # is added to a patch's: MAE's released code


def create(name: str, options: Mapping[str, Any], sizes: Sizes) -> Objective:
    """The objective; its parameters are the decoder's. Fields: `options["masked"]` (masked_fields.py)."""
    if sizes.model["decoder"]["variant"] == "tokens":
        return _patches(options["masked"], sizes)
    return _blocks(options["masked"], sizes)


def _blocks(mine: Mapping[str, Any], sizes: Sizes) -> Objective:
    """Blocks of pixels are hidden from an encoder of any kind."""
    decoder, ends = reconstruction.decoder_of(sizes, "unit")

    def change(keys: jax.Array, views: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        hidden = masking.blocks(keys, views.shape[1:], mine["block"], mine["ratio"])
        return masking.filled(views.astype(_high(sizes)), hidden), {"hidden": hidden}

    def init(rng: jax.Array) -> tuple[Any, Any]:
        return decoder.init(rng, reconstruction.zeros(sizes, ends))["params"], {}

    def loss(params: Any, extra: Any, outputs: Any, batch: Any, step: Any) -> tuple[jax.Array, Metrics]:
        view = outputs["view"]
        predicted = decode(decoder, params, {name: rows(outputs[name]) for name in ends})
        compared = predicted, rows(view), rows(outputs["hidden"])
        value, decibels = LOSSES[mine["loss"]](*compared), reconstruction.psnr(*compared)
        return mine["weight"] * of_views(value, view), {"masked_psnr": of_views(decibels, view)}

    return Objective(loss, scope=ROWS, needs=(*ends, "view", "hidden"), init=init, change=change)


def _patches(mine: Mapping[str, Any], sizes: Sizes) -> Objective:
    """Patches are hidden from a ViT.

    The paper's loss is 0.03 of contrast + 0.67 · the error of the hidden patches + 0.3 · that of the noise
    σ e of the visible ones; σ is uniform in [0, 0.05]. As in the released code (github.com/shlokk/
    mae-contrastive) the noise is a target as it is, and the decoder gets σ as sines and cosines through two
    dense layers, added to its tokens. Unlike there, σ is first counted in thousandths of its largest value:
    the sines of σ itself hardly differ. Hidden patches are compared without noise, and normalised as in MAE
    (arXiv 2111.06377, section 3).

    Raises:
      SimclrError: the encoder takes no part of the patches, or no patch would be hidden.
    """
    decoder, ends = reconstruction.decoder_of(sizes, "logits")
    height, width, _ = sizes.example.shape
    patch, sigma, high = decoder.patch, mine["sigma"], _high(sizes)
    grid = height // patch[0], width // patch[1]
    total = grid[0] * grid[1]
    if round(total * (1 - mine["ratio"])) >= total:
        raise SimclrError(
            f"config.loss.masked.ratio={mine['ratio']}: must be larger: it hides none of {total} patches"
        )

    def change(keys: jax.Array, views: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        kept = masking.kept_patches(draws.named_keys(keys, "patches"), total, mine["ratio"])
        noise, level = masking.noise(draws.named_keys(keys, "noise"), views.shape[1:], sigma, high)
        return views + noise, {"kept": kept, "noise": noise, "level": level}

    def told(level: jax.Array) -> jax.Array | None:
        return waves(level * (STEPS / sigma)) if sigma else None

    def init(rng: jax.Array) -> tuple[Any, Any]:
        given = reconstruction.zeros(sizes, ends)
        everything = jnp.broadcast_to(jnp.arange(total, dtype=jnp.int32), (2, total))
        return decoder.init(rng, given, kept=everything, condition=told(jnp.zeros(2, high)))["params"], {}

    def loss(params: Any, extra: Any, outputs: Any, batch: Any, step: Any) -> tuple[jax.Array, Metrics]:
        view, kept = outputs["view"], rows(outputs["kept"])
        seen, level = {name: rows(outputs[name]) for name in ends}, told(rows(outputs["level"]))
        predicted = decode(decoder, params, seen, kept=kept, condition=level)
        hidden = masking.hidden_by(kept, grid, patch)
        target = rows(view).astype(high)
        target = normalized(target, patch) if mine["normalize"] else target
        pixels = LOSSES[mine["loss"]](predicted, target, hidden)
        noise = LOSSES[mine["loss"]](predicted, rows(outputs["noise"]), 1 - hidden)
        pixels, noise = of_views(pixels, view), of_views(noise, view)
        value = mine["weight"] * pixels + (mine["noise"] * noise if sigma else 0)
        return value, {"masked_patches": pixels, "masked_noise": noise}

    needs = (*ends, "view", "kept", "noise", "level")
    return Objective(loss, scope=ROWS, needs=needs, init=init, change=change)


def _high(sizes: Sizes) -> Any:
    """The type of the encoder's computation, float32 at least."""
    return jnp.promote_types(sizes.model["dtype"], jnp.float32)


def waves(x: jax.Array, width: int = LEVEL) -> jax.Array:
    """Sines and cosines `[m, width]` of numbers `[m]`, at the frequencies 10000^(-2k/width), k = 0, 1, ...

    As positions are embedded in Vaswani et al. (arXiv 1706.03762, section 3.5), sines first.
    """
    omega = 10_000.0 ** -(np.arange(width // 2) / (width // 2))
    angles = x[:, None] * jnp.asarray(omega, x.dtype)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def normalized(images: jax.Array, patch: tuple[int, int]) -> jax.Array:
    """Images `[m, h, w, c]`, every patch less its mean over its deviation.

    The targets of MAE's released code: moments over the pixels and channels of a patch, the variance without
    bias and 1e-6 larger.
    """
    m, h, w, c = images.shape
    x = images.reshape(m, h // patch[0], patch[0], w // patch[1], patch[1], c)
    mean = jnp.mean(x, axis=(2, 4, 5), keepdims=True)
    variance = jnp.var(x, axis=(2, 4, 5), keepdims=True, ddof=1)
    return ((x - mean) * jax.lax.rsqrt(variance + VARIANCE)).reshape(m, h, w, c)
