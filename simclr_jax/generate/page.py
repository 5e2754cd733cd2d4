"""generate.html: what was drawn, how near it comes to real images, and what it is."""

import html
from collections.abc import Mapping
from typing import Any

from etils import epath

from simclr_jax.evaluate.page import document, figure, grid
from simclr_jax.results import aligned

WHAT = (
    "These images are drawn from a density of the latents of an autoencoder: of the encoder that this run "
    "trained, and its decoder. The density learned which latents the training images have; the decoder was "
    "trained to undo the encoder, not to make images that look real.",
    "Expect blur. A squared or absolute error averages over all that the latents leave open, and contrast "
    "teaches the encoder to leave open what augmentation changes. No sample is sharper than reconstructions.",
    "The Fréchet distances are between features of this very encoder, on which the decoder was trained: they "
    "favour it, are no FID, and cannot be compared with published numbers, nor between two runs. Nothing on "
    "this page tells how accurate the encoder is.",
)
TRAINED_ON = (
    "There is no test split. The images that are held out here are training images of encoder and decoder; "
    "only the densities have not seen them. Expect less of images that are new to all three."
)
HELD = ("held-out images", "held-out training images")  # without a test split the latter
LABELS = {
    "held_out": "{}",
    "reconstructions": "reconstructions of {}",
    "gaussian": "samples of one Gaussian",
    "mixture": "samples of the mixture",
    "flow": "samples of the flow",
}


def render(made: Mapping[str, Any], folder: epath.Path) -> str:
    """The page; figures are read from `folder/figures` and become part of it."""
    title = html.escape(f"{epath.Path(made['workdir']).name}: generated images")
    figures = {name: figure(folder, name, caption) for name, caption in made["figures"]}
    images = made["images"]
    train, count = images["train"]
    about = (
        f"Step {made['step']:,}, seed {made['seed']}; {count:,} training images ({train}), "
        f"{images['held_out']:,} held out. Written {made['written']}, {made['seconds']:.0f} s."
    )
    parts = [f"<h1>{title}</h1>\n<p class=soft>{html.escape(about)}</p>"]
    notes = [*WHAT, *[TRAINED_ON] * images["trained_on"]]
    parts += [f"<p>{html.escape(line)}</p>" for line in notes]
    for heading, note, table in tables(made):
        cells = [[html.escape(cell) for cell in line] for line in table]
        parts.append(f"<h2>{html.escape(heading)}</h2>\n{grid(cells)}\n<p class=soft>{html.escape(note)}</p>")
    parts += ["<h2>Images</h2>", *figures.values()]
    return document(title, "\n".join(parts))


def lines(made: Mapping[str, Any]) -> list[str]:
    """The tables as lines of text."""
    parts = [[heading, *aligned(table), ""] for heading, _, table in tables(made)]
    return [line for part in parts for line in part][:-1]


def tables(made: Mapping[str, Any]) -> list[tuple[str, str, list[list[str]]]]:
    """(heading, what it means, rows of cells) of each table."""
    latents = made["latents"]
    return [
        (
            "Likelihood of held-out latents",
            f"Mean log-likelihood of a latent, in nats, along the {latents['axes']} principal axes that hold "
            f"{100 * latents['share']:g} % of the variance of its {latents['numbers']:,} numbers; higher is "
            "better. Densities of one run can be compared with each other, and with nothing else. Settings "
            "were chosen on a fifth of the training images.",
            _likelihood(made),
        ),
        (
            "Fréchet distance to other held-out images",
            f"In the encoder's own features, of sets of {made['images']['held_out'] // 2:,} images each: the "
            "fewer there are, the larger the distance of two sets of real images, which is the least to "
            "expect.",
            [["images", "distance"], *([_label(made, k), f"{v:.4g}"] for k, v in made["frechet"].items())],
        ),
        (
            "Copies",
            "How far each image is from the nearest training image: root mean square of the difference of "
            "pixels in [0, 1], cosine of the features. Near: nearer than all but 1 % of the reconstructions "
            "of held-out images, which are as blurred and cannot be copies. Much more than 1 % of samples "
            "would be copies.",
            _copies(made),
        ),
    ]


def _label(made: Mapping[str, Any], name: str) -> str:
    return LABELS[name].format(HELD[made["images"]["trained_on"]])


def _likelihood(made: Mapping[str, Any]) -> list[list[str]]:
    rows = [["density", "held out", "fitted", "chosen"]]
    for name, found in made["likelihood"].items():
        chosen = ", ".join(
            f"{key} {value:g}" for key, value in found.items() if key not in ("held_out", "fitted")
        )
        title = _label(made, name).removeprefix("samples of ")
        rows.append([title, f"{found['held_out']:.2f}", f"{found['fitted']:.2f}", chosen])
    return rows


def _copies(made: Mapping[str, Any]) -> list[list[str]]:
    rows = [["images", "pixels", "least", "near", "features", "most", "near"]]
    for name, one in made["copies"].items():
        cells = [f"{one['away']:.3f}", f"{one['least_away']:.3f}", f"{100 * one['near']:.1f} %"]
        cells += [f"{one['alike']:.3f}", f"{one['most_alike']:.3f}", f"{100 * one['similar']:.1f} %"]
        rows.append([_label(made, name), *cells])
    return rows
