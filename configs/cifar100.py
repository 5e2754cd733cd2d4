"""CIFAR-100 with the settings of cifar10.py.

    python -m simclr_jax.main --config=configs/cifar100.py --config.data.download=True

Hardware: one GPU of 40 GB or a TPU v3-8 and up. Time: not measured yet.
Expected: not given in the paper. For comparison, solo-learn publishes 65.8 % online linear top-1 for a
ResNet-18 after 1000 epochs.
"""

from simclr_jax import config


def get_config():
    c = config.default()
    c.data.source = "tfds:cifar100"
    c.data.image_size = 32
    c.augment.device = "all"  # the images live on the accelerator
    c.augment.jitter_strength = 0.5
    c.augment.blur = 0.0
    c.model.stem = "cifar"
    c.loss.temperature = 0.5
    c.loss.scale = 2.0
    c.optimizer.learning_rate = 1.0
    c.train.epochs = 1000.0
    c.train.batch_size = 1024
    c.checkpoint.every = config.duration(epochs=20)
    c.eval.every = config.duration(epochs=50)
    c.eval.batch_size = 2048  # small images: an accelerator would wait for the next batch
    return c
