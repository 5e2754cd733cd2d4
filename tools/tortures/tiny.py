"""The run that is tortured: seconds long, from memory, every kind of write in it.

    python -m simclr_jax.main --config=tools/tortures/tiny.py --config.data.source=npz:FILE --workdir=DIR

Expected: nothing; its images are noise.
"""

from simclr_jax import config


def get_config():
    c = config.default()
    c.data.source = "npz:"  # the tool makes one
    c.data.image_size = 8
    c.data.channels = 1
    c.augment.device = "all"
    c.augment.blur = 0.0
    c.model.encoder = "cnn"
    c.model.width = 0.25
    c.model.projection_dim = 8
    c.loss.temperature = 0.5
    c.optimizer.name = "adamw"
    c.optimizer.scaling = "none"
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup = config.duration(steps=5)
    c.train.steps = 120
    c.train.batch_size = 16
    c.mesh.devices = 1
    c.log.every = config.duration(steps=1)
    c.checkpoint.every = config.duration(steps=10)
    c.eval.every = config.duration(steps=40)
    c.eval.batch_size = 32
    c.eval.final = False
    c.eval.figures = False
    c.eval.knn.k = 10
    c.eval.linear.draws = 1
    c.eval.linear.iterations = 5
    return c
