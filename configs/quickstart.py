"""Quickstart."""

from simclr_jax import config


def get_config():
    c = config.default()
    c.data.source = "builtin:mnist5k"
    c.data.image_size = 28
    c.data.channels = 1
    c.augment.crop_area = (0.3, 1.0)
    c.augment.flip = 0.0
    c.model.encoder = "cnn"
    c.model.projection_dim = 64
    c.loss.temperature = 0.2
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 3e-3
    c.optimizer.scaling = "none"
    c.optimizer.warmup.epochs = 1.0
    c.train.epochs = 5.0
    c.train.batch_size = 128
    c.eval.every.epochs = 2.0
    c.checkpoint.every.epochs = 2.0
    c.log.every.steps = 10
    return c
