"""Figure 5 of the paper: single augmentations and pairs of them, of those that gray images have.

The paper's grid has colour drop, Sobel, cutout and noise too, and augments one view alone, the other being
cropped throughout; here both views get the same. Gray images have no colour: jitter is brightness and
contrast. The order of two is the pipeline's, so a pair counts once.
"""

import itertools

ON = {
    "crop": {"augment.crop_area": (0.3, 1.0)},
    "rotate": {"augment.rotation": 30.0},
    "flip": {"augment.flip": 0.5},
    "jitter": {"augment.jitter": 0.8},
    "blur": {"augment.blur": 0.5},
}
OFF = {
    "augment.crop_area": (1.0, 1.0),
    "augment.crop_aspect": (1.0, 1.0),
    "augment.rotation": 0.0,
    "augment.flip": 0.0,
    "augment.jitter": 0.0,
    "augment.blur": 0.0,
}


def _setting(*names: str) -> dict:
    setting = dict(OFF)
    for name in names:
        setting |= ON[name]
    if "crop" in names:
        setting["augment.crop_aspect"] = (3 / 4, 4 / 3)
    return setting


POINTS = [_setting(name) for name in ON] + [_setting(*pair) for pair in itertools.combinations(ON, 2)]
