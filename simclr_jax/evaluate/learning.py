"""Protocols that train or take other images: fine-tuning with few labels, transfer to other sets."""

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from simclr_jax import encoder, train
from simclr_jax.data import multilabel
from simclr_jax.data import splits as data_splits
from simclr_jax.data.sources import Source
from simclr_jax.data.splits import Splits
from simclr_jax.errors import SimclrError
from simclr_jax.evaluate.frozen import FIT, fit_l2
from simclr_jax.evaluate.subject import Subject, identity
from simclr_jax.feeds import load_splits
from simclr_jax.measures import classified, linear
from simclr_jax.measures.classified import cell
from simclr_jax.measures.features import Features
from simclr_jax.protocols import protocol
from simclr_jax.results import WHO, Cell, Result, Row
from simclr_jax.tasks.supervised import plain_recipe

# The sets whose published figure is the mean over classes (SimCLR, B.8); others are told by accuracy.
MEAN_PER_CLASS = ("fgvc_aircraft", "oxford_iiit_pet", "caltech101", "oxford_flowers102")
ROW = ", L-BFGS"  # of a row's title
METRICS = {"mean per class": "mean_per_class", "11-point mAP": "map"}
# Splits to learn from and to test on, where they are not train and test (B.8).
SPLITS = {
    "food101": ("train", "validation"),
    "imagenet2012": ("train", "validation"),
    "fgvc_aircraft": ("train+validation", "test"),
    "voc": ("train+validation", "test"),
    "dtd": ("train+validation", "test"),
    "oxford_flowers102": ("train+validation", "test"),
}
SUBSETS = {0.01: "1pct", 0.1: "10pct"}  # of tfds:imagenet2012_subset, the official lists


@protocol("finetune", "labels", options=("finetune.shares", "finetune.epochs", "finetune.learning_rate"))
def few_labels(subject: Subject) -> Result:
    """Fine-tuning with a share of the labels, beside training from scratch on the same images (SimCLR, B.5).

    SGD with Nesterov momentum, rate 0.05 · batch / 256, no warm-up, no decay, crop and flip; 60 epochs for
    1 %, 30 for the others. Labels are balanced over the classes; of ImageNet the official lists are taken.
    """
    options, rows, results = subject.config.eval.finetune, [], {}
    for share, epochs in zip(options.shares, options.epochs, strict=True):
        splits = _few(subject, share)
        cells = {}
        for who in ("simclr", "untrained"):
            config = _finetuning(subject, epochs, splits.train.size, scratch=who == "untrained")
            name = f"finetune-{share:g}-{'scratch' if who == 'untrained' else 'encoder'}"
            folder = subject.run_folder(name, config)
            train.run(config, folder, splits=splits)
            tuned = Subject(folder, config, encoder.load(folder), splits, subject.mesh)
            found = tuned.labelled("simclr", "test", "logits")
            scores = np.asarray(jax.nn.softmax(found.features, axis=1))
            measured = classified.evaluate(scores, found.labels)
            cells[who] = cell(measured)
            subject.predicted(name, found.labels, predicted=np.argmax(scores, axis=1))
        labels = _counts(subject, splits)
        title = f"fine-tuned, {100 * share:g} % of the labels"
        note = f"{splits.train.size:,} images; untrained: from scratch"
        rows.append(Row(f"finetune_{share:g}", title, cells, note))
        results[f"{share:g}"] = {
            "images": splits.train.size,
            "of_each_class": None if labels is None else [int(labels.min()), int(labels.max())],
            **{who: one.value for who, one in cells.items()},
        }
    return Result(rows=rows, more={"shares": results})


def _counts(subject: Subject, splits: Splits) -> np.ndarray | None:
    """How many of each class there are to learn from, where that can be told at once."""
    if not isinstance(splits.train, Source):
        return None
    labels = subject.train_labels() if splits.train is subject.splits.train else splits.train.labels()
    return np.bincount(labels[labels >= 0], minlength=len(splits.train.classes))


def _few(subject: Subject, share: float) -> Splits:
    """The splits with `share` of the training labels, as many of each class as there are."""
    source, (whole, test) = subject.config.data.source, subject.splits
    if source.split("/")[0].split(":")[:2] == ["tfds", "imagenet2012"] and share in SUBSETS:
        options = {**subject.config.data.to_dict(), "source": f"tfds:imagenet2012_subset/{SUBSETS[share]}"}
        return data_splits.load(**{**options, "train_split": "train"})._replace(test=test)
    if not isinstance(whole, Source):
        if share == 1:
            return subject.splits
        raise SimclrError(
            f"{whole.name}: a share of the labels needs random access; prepare it as ArrayRecord"
        )
    labels = subject.train_labels()
    known = np.flatnonzero(labels >= 0)
    count = max(len(np.unique(labels[known])), round(share * len(known)))
    rows = linear.balanced_draw(labels[known], count, np.random.default_rng(subject.config.seed))
    return Splits(whole.subset(np.sort(known[rows])), test)


def _finetuning(subject: Subject, epochs: float, examples: int, *, scratch: bool) -> ConfigDict:
    """The config of `configs/finetune.py` for these images."""
    config = plain_recipe(subject.config, subject.config.eval.finetune.learning_rate, epochs)
    config.task = "supervised"
    config.start.workdir = "" if scratch else str(subject.workdir)
    config.start.step = 0 if scratch else subject.encoder.step
    config.model.probe_layer, config.model.norm_groups, config.finetune.after_block = 0, 1, -1
    config.train.batch_size = subject.batch_size(examples)
    return config


def key_of(subject: Subject, data: "Labelled") -> str:
    """Changes with the images or labels of a set."""
    targets = [] if data.targets is None else [data.targets[part].tobytes() for part in ("train", "test")]
    digest = hashlib.sha256(b"".join(targets)).hexdigest()
    return subject.key_of(*identity(data.splits), digest)


class Labelled(NamedTuple):
    """A set to transfer to, with the config that reads it; targets: where images have several labels each."""

    splits: Splits
    config: ConfigDict
    metric: str
    targets: dict[str, np.ndarray] | None  # {train, test: [n, classes] bool}


def load(config: ConfigDict, source: str) -> Labelled:
    """The labelled set `tfds:NAME`, `folder:PATH`, `list:FILE` or `npz:PATH`, read as `config` reads its own.

    Raises:
      SimclrError: it is not there, or has no labels.
    """
    kind, _, where = source.partition(":")
    try:
        if kind not in ("tfds", "folder", "list", "npz", "builtin"):
            raise SimclrError("must be tfds:NAME, folder:PATH, list:FILE or npz:PATH")
        config, name = config.copy_and_resolve_references(), where.split("/")[0] if kind == "tfds" else ""
        config.data.source = source
        config.data.train_split, config.data.test_split = SPLITS.get(name, ("train", "test"))
        if several := multilabel.load(**config.data):
            return Labelled(several.splits, config, "11-point mAP", several.targets)
        splits = load_splits(config)
        if splits.test is None or not (splits.train.classes and splits.test.classes):
            raise SimclrError("needs labels and a test split")
    except SimclrError as error:
        raise SimclrError(f"--transfer={source}: {error}") from None
    return Labelled(splits, config, "mean per class" if name in MEAN_PER_CLASS else "top-1", None)


@protocol("transfer", options=FIT)
def transfer(subject: Subject) -> Result:
    """Other labelled sets, by L-BFGS on frozen features, the penalty chosen on a hold-out (SimCLR, B.8).

    Aircraft, Pets, Caltech-101 and Flowers are told by the mean over classes, sets with several labels an
    image (VOC2007) by the 11-point mean average precision, the others by accuracy.
    """
    iterations = subject.before.get("options", {}).get("linear.iterations")
    before = subject.before if iterations == subject.config.eval.linear.iterations else {}
    rows = [
        row for row in map(Row.of, before.get("rows", ())) if row.title.removesuffix(ROW) not in subject.sets
    ]
    results = {s: found for s, found in before.get("sets", {}).items() if s not in subject.sets}
    for source, data in subject.sets.items():
        measured = _transferred(subject, source, data)
        key = METRICS.get(data.metric)
        cells = {who: Cell(one[key]) if key else cell(one) for who, one in measured.items()}
        rows.append(Row(f"transfer_{source}", f"{source}{ROW}", cells, data.metric))
        results[source] = measured
    return Result(rows=rows, more={"sets": results})


def _transferred(subject: Subject, source: str, data: Labelled) -> dict[str, Any]:
    """What was measured of each contender."""
    other = Subject(subject.workdir, data.config, subject.encoder, data.splits, subject.mesh)
    other.folder, measured = subject.folder, {}
    if data.targets:
        for who in WHO:
            found, test = (other.features(who, part).features["encoder"] for part in ("train", "test"))
            targets = data.targets["train"][other.rows(who, "train")]
            weights, _ = fit_l2(other, Features(found, targets), targets.shape[1], None)
            scores = np.asarray(linear.logits(weights, test))
            measured[who] = {"map": classified.eleven_point_map(scores, data.targets["test"])}
        return measured
    if reason := other.unscorable():
        raise SimclrError(f"--transfer={source}: {reason}")
    for who in WHO:
        found, test = (other.labelled(who, part) for part in ("train", "test"))
        weights, _ = fit_l2(other, found, len(other.classes), other.groups(who))
        scores = np.asarray(linear.probabilities(weights, test.features))
        measured[who] = classified.evaluate(scores, test.labels)
    return measured
