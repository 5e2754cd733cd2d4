"""Restoration without learning: non-local means and wavelets, by scikit-image."""

from collections.abc import Callable
from typing import Any

import numpy as np

from simclr_jax.errors import SimclrError

Setting = tuple[str, dict[str, Any]]  # how it is called in the report, its options
# Non-local means in the settings that scikit-image recommends for a known sigma; h is in sigmas.
MEANS: tuple[Setting, ...] = tuple(
    (f"h = {h} sigma{', fast' if fast else ''}", {"h": h, "fast_mode": fast})
    for h, fast in ((0.8, False), (0.6, False), (0.8, True), (0.6, True))
)
WAVELETS: tuple[Setting, ...] = tuple(
    (f"{method}{', YCbCr' if ycc else ''}", {"method": method, "convert2ycbcr": ycc})
    for method, ycc in (("BayesShrink", False), ("BayesShrink", True), ("VisuShrink", False))
)
PATCH = {"patch_size": 5, "patch_distance": 6}  # pixels, of scikit-image's own example


def load(names: list[str]) -> dict[str, tuple[str, tuple[Setting, ...], Callable]]:
    """{name: (title, settings, function of (image [h, w, c], sigma or None, options))} of `--baselines`.

    Raises:
      SimclrError: there is no such baseline, or the libraries are not installed.
    """
    known = {
        "nlm": ("non-local means", MEANS, _means),
        "wavelet": ("wavelets", WAVELETS, _wavelets),
    }
    for name in names:
        if name not in known:
            raise SimclrError(
                f"--baselines={name}: must be one or more of {', '.join(known)}, or '' for none"
            )
    try:
        if names:
            import pywt  # noqa: F401 - scikit-image imports it late
            import skimage  # noqa: F401
    except ImportError as error:
        raise SimclrError(
            f"--baselines={','.join(names)}: need {error.name}: pip install 'simclr_jax[restore]', or give "
            "--baselines= for none"
        ) from None
    return {name: known[name] for name in names}


def settings(settings: tuple[Setting, ...], channels: int) -> tuple[Setting, ...]:
    """Those that work for images of so many channels."""
    return tuple(each for each in settings if channels == 3 or not each[1].get("convert2ycbcr"))


def _sigma(image: np.ndarray, sigma: float | None) -> float:
    from skimage import restoration

    if sigma is not None:
        return sigma
    return float(restoration.estimate_sigma(image, channel_axis=-1, average_sigmas=True))


def _means(image: np.ndarray, sigma: float | None, options: dict[str, Any]) -> np.ndarray:
    """Buades, Coll & Morel, Multiscale Modeling and Simulation 4 (2), 2005; fast: Darbon et al., 2008."""
    from skimage import restoration

    sigma = _sigma(image, sigma)
    strength = {"h": options["h"] * sigma, "fast_mode": options["fast_mode"], "sigma": sigma}
    return restoration.denoise_nl_means(image, **strength, **PATCH, channel_axis=-1)


def _wavelets(image: np.ndarray, sigma: float | None, options: dict[str, Any]) -> np.ndarray:
    """BayesShrink (Chang, Yu & Vetterli, IEEE TIP 9 (9), 2000), VisuShrink (Donoho & Johnstone, 1994)."""
    from skimage import restoration

    sigma = _sigma(image, sigma)
    if options["method"] == "VisuShrink":
        sigma = sigma / 2  # as in scikit-image's example: the universal threshold smooths too much
    return restoration.denoise_wavelet(image, sigma=sigma, rescale_sigma=True, channel_axis=-1, **options)
