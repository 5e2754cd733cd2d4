"""The way from one latent to another."""

import numpy as np

PARALLEL = 1e-6  # sine of an angle below which the arc is the line


def line(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The latents `[k, d]` at the shares t `[k]` of the straight way from a `[d]` to b `[d]`."""
    t = np.asarray(t, np.float64)[:, None]
    return (1 - t) * a + t * b


def arc(a: np.ndarray, b: np.ndarray, t: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The latents `[k, d]` at the shares t `[k]` of the way from a to b around a centre, all `[d]`.

    Directions seen from the centre turn by equal angles (Shoemake, Animating Rotation with Quaternion Curves,
    1985; of latents: White, arXiv 1609.04468, section 2.1); lengths change evenly. Where the directions are
    parallel, or one of the ends is the centre, it is the line.
    """
    t = np.asarray(t, np.float64)[:, None]
    a, b = np.asarray(a, np.float64) - centre, np.asarray(b, np.float64) - centre
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    if not min(lengths):
        return centre + line(a, b, t[:, 0])
    u, v = a / lengths[0], b / lengths[1]
    angle = np.arccos(np.clip(u @ v, -1, 1))
    if np.sin(angle) < PARALLEL:
        return centre + line(a, b, t[:, 0])
    turned = (np.sin((1 - t) * angle) * u + np.sin(t * angle) * v) / np.sin(angle)
    return centre + ((1 - t) * lengths[0] + t * lengths[1]) * turned
