"""Distillation and self-training: a student learns a teacher's labels (SimCLRv2, arXiv 2006.10029).

From a big encoder to a small one, or to itself; images without labels do.
"""

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import encoder, sharding
from simclr_jax.config.fields import deciding, flatten
from simclr_jax.data.splits import Splits
from simclr_jax.errors import SimclrError
from simclr_jax.feeds import create_feed
from simclr_jax.field import PIXELS
from simclr_jax.losses.classification import classification, distillation
from simclr_jax.tasks.supervised import classifier
from simclr_jax.tasks.task import Task


def create(config: ConfigDict, splits: Splits, mesh: Mesh) -> Task:
    """The task of `config`: the student is its model, the teacher `config.distill.teacher`.

    The loss is (1 - alpha) · cross entropy of the images whose label is known, + alpha · distillation of all
    (equation 3).

    Raises:
      SimclrError: the teacher has no classifier, or takes other images or has other classes than the data.
    """
    options = config.distill
    teacher = encoder.load(options.teacher, options.step)
    _check(teacher, config, splits)

    def loss(outputs, batch, step):
        logits = outputs["logits"]
        copied = distillation(logits, outputs["teacher"], options.temperature)
        labelled, accuracy = classification(logits[:, None], batch["label"])
        agree = jnp.argmax(logits, -1) == jnp.argmax(outputs["teacher"], -1)
        total = options.alpha * copied + (1 - options.alpha) * labelled
        metrics = {"loss": total, "distillation_loss": copied, "agreement": jnp.mean(agree)}
        if splits.train.classes:
            metrics |= {"label_loss": labelled, "accuracy": accuracy}
        return total, metrics

    feed = create_feed(config, splits, mesh, views=1)
    student = classifier(config, splits, mesh, teacher.classes, loss)

    def forward(params, model_state, batch, rng, step):
        outputs, model_state = student.forward(params, model_state, batch, rng, step)
        seen = teacher.reader.prepare(feed.views(params, batch)[:, 0], False, teacher.model.encoder.dtype)
        outputs["teacher"] = teacher.model.apply(params["teacher"], seen, method="classify")
        return outputs, model_state

    def fixed():
        return {**student.fixed(), "teacher": sharding.put_same(teacher.variables, sharding.replicated(mesh))}

    return student._replace(forward=forward, fixed=fixed)


def _check(teacher: encoder.Encoder, config: ConfigDict, splits: Splits) -> None:
    where = f"config.distill.teacher={config.distill.teacher!r}"
    if teacher.model.probe is None:
        raise SimclrError(f"{where}: has no classifier; fine-tune it first (task supervised)")
    for field in ("image_size", "channels"):
        mine, its = config.data[field], teacher.config.data[field]
        if mine != its:
            raise SimclrError(f"{where}: takes images of {field} {its}; set --config.data.{field}={its}")
    mine_all, its_all = flatten(config), flatten(teacher.config)
    for field in deciding(PIXELS):
        mine, its = mine_all[field], its_all[field]
        if mine != its:
            raise SimclrError(
                f"{where}: has config.{field}={its!r}, and the student {mine!r}: give both the same"
            )
    if config.distill.alpha < 1 and not splits.train.classes:
        raise SimclrError(
            f"config.distill.alpha={config.distill.alpha}: {splits.train.name} has no labels to mix in; use 1"
        )
    for split in splits:
        if split is None or not split.classes:
            continue
        # Numbers say nothing of what the classes are; names must agree.
        numbered = any(all(n.isdigit() for n in names) for names in (teacher.classes, split.classes))
        same = len(teacher.classes) == len(split.classes) if numbered else teacher.classes == split.classes
        if not same:
            raise SimclrError(
                f"{where}: knows {len(teacher.classes)} classes ({', '.join(teacher.classes[:3])} ...), "
                f"{split.name} has {len(split.classes)} ({', '.join(split.classes[:3])} ...): "
                "give images of the teacher's classes under its names, or without labels"
            )
