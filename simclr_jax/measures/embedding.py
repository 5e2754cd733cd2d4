"""Features in two dimensions, and as files for TensorBoard's embedding projector."""

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from etils import epath
from PIL import Image

from simclr_jax import files
from simclr_jax.measures import health

SPRITE = 8192  # px a side that a browser still draws
CONFIG = """\
embeddings {{
  tensor_name: "features"
  tensor_path: "tensors.tsv"
  metadata_path: "metadata.tsv"
{sprite}}}
"""
THUMBNAILS = """\
  sprite {{
    image_path: "sprite.png"
    single_image_dim: {width}
    single_image_dim: {height}
  }}
"""


def tsne(features: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """A t-SNE map `[n, 2]` (van der Maaten & Hinton, 2008) of features `[n, d]`, started from their PCA.

    None of fewer than five images, or where a feature is not a finite number; zeros if all are alike.
    """

    def fit(x: np.ndarray) -> np.ndarray:
        from sklearn.manifold import TSNE

        perplexity = min(30, (len(x) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)

    return _mapped(features, fit, seed)


def umap(features: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """A UMAP map `[n, 2]` (McInnes et al., arXiv 1802.03426) of features `[n, d]`.

    None where umap-learn is not installed (the extra "umap"), and otherwise as of `tsne`.
    """
    try:
        with _hidden(
            "tensorflow"
        ):  # umap-learn imports it, which takes ten seconds, for what is not used here
            from umap import UMAP
    except ImportError:
        return None

    def fit(x: np.ndarray) -> np.ndarray:
        # The spectral start needs more images than a handful. One job: with several the seed does not hold.
        start = "spectral" if len(x) >= 20 else "random"
        neighbours = min(15, len(x) - 1)
        return UMAP(n_neighbors=neighbours, init=start, random_state=seed, n_jobs=1).fit_transform(x)

    return _mapped(features, fit, seed)


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Within, a module that has not been imported yet cannot be."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # pyright: ignore[reportArgumentType]  # None: it cannot be imported
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)
            yield
    finally:
        del sys.modules[module]


def _mapped(features: np.ndarray, fit: Callable[[np.ndarray], np.ndarray], seed: int) -> np.ndarray | None:
    """`fit` on the 50 first principal axes of the normalised features, `[n, ≤ 50]` float32."""
    from sklearn.decomposition import PCA

    if len(features) < 5 or not np.isfinite(features).all():
        return None
    x = health.unit(features).astype(np.float32)
    if np.ptp(x, axis=0).max() < 1e-6:  # no axes
        return np.zeros((len(x), 2), np.float32)
    return fit(PCA(min(50, *x.shape), random_state=seed).fit_transform(x))


def projector(
    folder: epath.PathLike,
    features: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    images: np.ndarray | None,
) -> None:
    """Writes what `tensorboard --logdir folder` shows under Projector, with thumbnails of images.

    Args:
      features: `[n, d]`; labels: `[n]`, -1 for none; classes: their names.
      images: `[n, h, w, c]` float in [0, 1], gray or (of three channels or more) RGB; None: there are none.
    """
    folder = epath.Path(folder)
    with files.replacing(folder / "tensors.tsv") as half, half.open("w") as file:
        np.savetxt(file, features, fmt="%.6g", delimiter="\t")
    names = [_name(label, classes) for label in labels.tolist()]
    rows = [f"{i}\t{name}\n" for i, name in enumerate(names)]
    files.write(folder / "metadata.tsv", "index\tlabel\n" + "".join(rows))
    sprite = ""
    if images is not None:
        sheet, (height, width) = _sprite(images)
        with files.replacing(folder / "sprite.png") as half, half.open("wb") as file:
            sheet.save(file, "PNG")
        sprite = THUMBNAILS.format(width=width, height=height)
    files.write(folder / "projector_config.pbtxt", CONFIG.format(sprite=sprite))


def _name(label: int, classes: Sequence[str]) -> str:
    name = classes[label] if 0 <= label < len(classes) else str(label) if label >= 0 else ""
    return " ".join(name.split()) or "none"  # no tab or line break in a cell


def _sprite(images: np.ndarray) -> tuple[Image.Image, tuple[int, int]]:
    """All images row by row in a square of as many rows as columns, and the size of one, (height, width)."""
    n, height, width, channels = images.shape
    side = math.ceil(math.sqrt(max(n, 1)))
    most = SPRITE // side
    scale = min(1, most / max(height, width))
    small = max(1, int(height * scale)), max(1, int(width * scale))
    mode = "RGB" if channels >= 3 else "L"
    sheet = Image.new(mode, (side * small[1], side * small[0]))
    for i, image in enumerate(images):
        pixels = np.rint(np.clip(image.astype(np.float32), 0, 1) * 255).astype(np.uint8)
        one = Image.fromarray(pixels[..., :3] if channels >= 3 else pixels[..., 0])
        if scale < 1:
            one = one.resize((small[1], small[0]), Image.Resampling.BOX)
        sheet.paste(one, (i % side * small[1], i // side * small[0]))
    return sheet, small
