"""Looking inside: health of the representation, what is similar, what stands out, where the encoder looks."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax import figures
from simclr_jax.data.sources import Source
from simclr_jax.evaluate import charts
from simclr_jax.evaluate.frozen import FIT, classifier_weights
from simclr_jax.evaluate.subject import Subject
from simclr_jax.measures import curation, embedding, health, knn, linear, saliency
from simclr_jax.measures.features import some
from simclr_jax.models import simclr
from simclr_jax.protocols import protocol
from simclr_jax.results import WHO, Result

MAPPED = 2000  # images in the maps and for the measures of health, at most
INSPECTED = 20_000  # images among which duplicates and outliers are looked for, at most
QUERIES, NEIGHBOURS = 10, 8  # rows and columns of the retrieval figure
SHOWN = 8  # images, or pairs, in the other figures


@protocol("health")
def representation(subject: Subject) -> Result:
    """Whether the representation has collapsed, without labels.

    RankMe (Garrido et al., arXiv 2210.02885), alignment and uniformity (Wang & Isola, arXiv 2005.10242), the
    deviation of normalised features (SimSiam, arXiv 2011.10566).
    """
    views, _ = subject.gallery(MAPPED)
    changed = subject.augmented(views)
    found, spectra = {}, {}
    for who in ("simclr", "untrained"):
        plain, other = subject.h_of_gallery(MAPPED, who), subject.h_of(changed, who)
        found[who] = health.report(plain, other)
        if np.isfinite(plain).all():
            spectra[who] = np.linalg.svd(plain, compute_uv=False)
    subject.draw("spectrum.png", charts.spectra, spectra)
    notes = [_health_line(WHO[name], one) for name, one in found.items()]
    shown = [["spectrum.png", "Singular values of the features; a collapse would be a cliff"]]
    return Result(notes=notes, figures=shown, more=found)


def _health_line(who: str, one: dict[str, Any]) -> str:
    if one["rank_me"] is None:
        broken = "COLLAPSED: features that are no finite numbers"
        return f"{who}: {broken if one['collapsed'] else 'too few images to tell'}"
    verdict = "COLLAPSED, images look alike to it" if one["collapsed"] else "no collapse"
    return (
        f"{who}: {verdict}; RankMe {one['rank_me']:.1f} of {one['dimensions']} dimensions, alignment "
        f"{one['alignment']:.2f} (0: views agree), uniformity {one['uniformity']:.2f} (lower: more even), "
        f"deviation {one['feature_std']:.2f} (0: collapsed)"
    )


@protocol("neighbours", "random access")
def neighbourhood(subject: Subject) -> Result:
    """Nearest training images of test images, and near-duplicates and outliers of the training images."""
    train, mesh = cast(Source, subject.splits.train), subject.mesh  # it has random access
    views, labels = subject.gallery(MAPPED)
    whole = subject.features("simclr", "train")
    numbered = whole._replace(features={**whole.features, "at": subject.rows("simclr", "train")})
    bank = some(numbered, INSPECTED)
    vectors, at = bank.features["encoder"], bank.features["at"]
    shown = []
    if subject.splits.test and subject.feed.pictures:
        queries = figures.spread(labels, QUERIES)
        _, near = knn.nearest(vectors, subject.h_of(views[queries]), NEIGHBOURS, mesh)
        images = subject.pictures(train, at[near].ravel()).reshape(*near.shape, *views.shape[1:])
        answers = (images, labels[queries], bank.labels[near])
        subject.draw("retrieval.png", charts.retrieval, views[queries], *answers)
        shown.append(["retrieval.png", "Test images, and the training images most similar to each"])
    twins = curation.near_duplicates(vectors, mesh)
    odd = curation.outliers(vectors, mesh)
    if twins and subject.feed.pictures:
        pairs = at[np.array([pair[:2] for pair in twins[:SHOWN]])]
        images = subject.pictures(train, pairs.ravel()).reshape(*pairs.shape, *views.shape[1:])
        titles = [f"{similarity:.3f}" for *_, similarity in twins[:SHOWN]]
        title = "Most similar pairs of training images"
        subject.draw("duplicates.png", charts.pairs, images, titles, title)
        shown.append(["duplicates.png", f"{title}, with their cosine similarity"])
    if odd and subject.feed.pictures:
        images = subject.pictures(train, at[[i for i, _ in odd[: 2 * SHOWN]]])
        titles = [f"{similarity:.2f}" for _, similarity in odd[: 2 * SHOWN]]
        title = "Training images least like any other"
        subject.draw("outliers.png", charts.grid, images, titles, title)
        shown.append(["outliers.png", f"{title}: mean similarity to their 10 nearest"])

    def name(i):
        return train.names[at[i]] if train.names else int(at[i])

    named = {
        "near_duplicates": [[name(i), name(j), s] for i, j, s in twins],
        "outliers": [[name(i), s] for i, s in odd],
    }
    note = f"{len(twins)} near-duplicate pairs and {len(odd)} outliers are named in report.json"
    return Result(notes=[f"{note} (of {len(vectors):,} training images)"], figures=shown, more=named)


@protocol("saliency", "pictures", after="lbfgs", options=FIT)
def where_it_looks(subject: Subject) -> Result:
    """Grad-CAM for the class of an image (arXiv 1610.02391) and for the similarity of two (arXiv 1901.00536).

    On the last block group; classes are those of the L-BFGS classifier.
    """
    views, labels = subject.gallery(MAPPED)
    chosen = figures.spread(labels, SHOWN)
    pictures = views[chosen]
    size, encoder = views.shape[1], subject.encoder.model.encoder
    last = encoder.last
    if last is None:
        return Result(skipped="no picture: the encoder has no maps")

    @jax.jit
    def maps_of(variables: Any, x: jax.Array) -> jax.Array:
        return cast(jax.Array, encoder.maps(last, subject.endpoints(variables, x)[last]))

    found = subject.over(maps_of, pictures)
    if encoder.pool(found[:1]) is None:
        return _attention(subject, pictures, size)
    pool = cast(saliency.Pool, encoder.pool)  # it is not None here
    shown = []
    if not subject.unscorable() and subject.config.eval.endpoint in simclr.FEATURES:
        weights = classifier_weights(subject)
        features = subject.h_of(pictures)
        predicted = np.argmax(np.asarray(linear.logits(weights, features)), axis=1)
        heat = saliency.heat(saliency.class_map(found, pool, weights["kernel"], predicted), size)
        titles = [subject.classes[c] for c in predicted]
        title = "Predicted class, and where it shows"
        subject.draw("class_maps.png", charts.overlays, pictures, np.asarray(heat), titles, title)
        shown.append(["class_maps.png", "Grad-CAM: what speaks for the predicted class, in red"])
    everyone = subject.h_of_gallery(MAPPED)
    _, near = knn.nearest(everyone, everyone[chosen], 2, subject.mesh)
    other = np.array([next((i for i in row if i != q), q) for row, q in zip(near, chosen, strict=True)])
    partner = views[other]
    left, right = saliency.similarity_maps(found, subject.over(maps_of, partner), pool)
    pairs = np.stack([pictures, partner], axis=1)
    heats = np.stack([np.asarray(saliency.heat(x, size)) for x in (left, right)], axis=1)
    subject.draw("similarity_maps.png", charts.overlay_pairs, pairs, heats)
    shown.append(["similarity_maps.png", "What makes an image and its nearest neighbour similar, in red"])
    return Result(figures=shown)


def _attention(subject: Subject, pictures: np.ndarray, size: int) -> Result:
    """What the class token of a transformer attends to, mean over the heads of the last block."""

    ends = jax.eval_shape(subject.endpoints, subject.variables("simclr"), pictures)
    if "attention" not in ends:
        return Result(skipped="no picture: features are no function of maps, and there is no attention")

    @jax.jit
    def attention_of(variables: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(subject.endpoints(variables, x)["attention"], axis=1)

    heat = saliency.heat(saliency.relative(subject.over(attention_of, pictures)), size)
    title = "Attention of the class token"
    subject.draw("attention.png", charts.overlays, pictures, np.asarray(heat), [""] * len(pictures), title)
    return Result(figures=[["attention.png", f"{title} in the last block, mean over the heads, in red"]])


@protocol("maps")
def maps(subject: Subject) -> Result:
    """t-SNE and UMAP of the features, and files for TensorBoard's projector."""
    views, labels = subject.gallery(MAPPED)
    features = subject.h_of_gallery(MAPPED)
    shown, notes = [], []
    if subject.first:
        methods = {"t-SNE": ("tsne.png", embedding.tsne), "UMAP": ("umap.png", embedding.umap)}
        for name, (file, method) in methods.items():
            with figures.guard(print, file):
                points = method(features)
                if points is None:
                    why = "pip install umap-learn" if name == "UMAP" else "too few images"
                    notes.append(f"no {name}: {why}")
                    continue
                subject.draw(file, figures.embedding, points, labels, subject.classes, name)
                shown.append([file, f"{name} map: images that the encoder finds similar lie together"])
        projector, images = subject.folder / "projector", views if subject.feed.pictures else None
        if figures.attempt(print, projector, embedding.projector, features, labels, subject.classes, images):
            notes.append(f"TensorBoard's projector: tensorboard --logdir {projector}")
    return Result(notes=notes, figures=shown)
