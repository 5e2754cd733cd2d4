"""Large images in overlapping tiles of one shape, mixed with smooth weights; and sides a network can take."""

import math
from collections.abc import Callable

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]  # [n, h, w, c] -> [n, h, w, d], each image by itself


def reflected(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image `[h, w, c]` that is continued by its mirror image, below and right, to this size."""
    h, w = image.shape[:2]
    return np.pad(image, [(0, max(height - h, 0)), (0, max(width - w, 0)), (0, 0)], mode="reflect")


def whole(image: np.ndarray, function: Function, stride: int) -> np.ndarray:
    """`function` of an image `[h, w, c]` at once, reflected until `stride` divides both sides."""
    h, w = image.shape[:2]
    padded = reflected(image, h + -h % stride, w + -w % stride)
    return function(padded[None])[0, :h, :w]


def ensembled(image: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The mean of `function` over the eight turns and reflections of an image `[h, w, c]`, each turned back.

    The self-ensemble of EDSR (Lim et al., arXiv 1707.02921, section 3.4).
    """
    total = np.zeros((), np.float32)
    for turns in range(4):
        turned = np.rot90(image, turns)
        for step in (1, -1):  # and its mirror image
            total = total + np.rot90(function(np.ascontiguousarray(turned[:, ::step]))[:, ::step], -turns)
    return total / 8


def starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side: `overlap` or more is shared, the last one ends with the image."""
    if size <= tile:
        return [0]
    count = math.ceil((size - overlap) / (tile - overlap))
    return [min(i * (tile - overlap), size - tile) for i in range(count)]


def window(tile: int, overlap: int) -> np.ndarray:
    """Weights `[tile]` along a side: raised cosines over `overlap` pixels at both ends, 1 between.

    Those of two tiles that share `overlap` pixels sum to 1.
    """
    rise = np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / max(overlap, 1)) ** 2
    return np.concatenate([rise, np.ones(tile - 2 * overlap), rise[::-1]])


def blended(image: np.ndarray, function: Function, tile: int, overlap: int, batch: int = 4) -> np.ndarray:
    """`function` of an image `[h, w, c]` of any size, tile by tile.

    Every call gets `[batch, tile, tile, c]`: one program is compiled for all images. Where tiles overlap, the
    result is their weighted mean (`window`); at the borders of the image nothing is faded.

    Args:
      overlap: pixels that neighbours share, at most half a tile.
    """
    if not 0 <= overlap <= tile // 2:
        raise ValueError(f"an overlap of {overlap} pixels must be between 0 and half a tile of {tile}")
    h, w = image.shape[:2]
    padded = reflected(image, tile, tile)
    places = [
        (y, x) for y in starts(padded.shape[0], tile, overlap) for x in starts(padded.shape[1], tile, overlap)
    ]
    one = window(tile, overlap)
    weight = np.outer(one, one)[..., None]
    total, mass = np.zeros(()), np.zeros((*padded.shape[:2], 1))
    for begin in range(0, len(places), batch):
        some = places[begin : begin + batch]
        parts = [padded[y : y + tile, x : x + tile] for y, x in some]
        found = function(np.stack(parts + parts[-1:] * (batch - len(some))))
        if not begin:  # only now the channels are known
            total = np.zeros((*padded.shape[:2], found.shape[-1]))
        for (y, x), part in zip(some, found, strict=False):
            total[y : y + tile, x : x + tile] += weight * part
            mass[y : y + tile, x : x + tile] += weight
    return (total / mass)[:h, :w].astype(np.float32)
