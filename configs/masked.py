"""Contrast and masked reconstruction with a small CNN: Fashion-MNIST, half of each view hidden in 4×4 blocks.

    python -m simclr_jax.main --config=configs/masked.py --config.data.download=True

Hidden pixels get the mean of the visible ones, and a decoder that mirrors the CNN makes them from its last
maps; the absolute error of the hidden pixels (SimMIM, arXiv 2111.09886) is added to the contrastive loss. No
paper joins the two for such a network: this shows how it is done, and masked_psnr in the metrics how well.
Hardware: 2 CPU cores. Time: not measured yet.
Expected: no published figure, and not measured here yet.
"""

from simclr_jax import config


def get_config():
    c = config.default()
    c.data.source = "tfds:fashion_mnist"
    c.data.image_size = 28
    c.data.channels = 1
    c.augment.device = "all"  # from memory
    c.augment.crop_area = (0.3, 1.0)
    c.model.encoder = "cnn"
    c.model.projection_dim = 64
    c.model.decoder.width = 0.5  # at the encoder's own width it would take most of the time
    c.loss.name = "nt_xent+masked"
    c.loss.temperature = 0.2
    c.loss.masked.weight = 1.0
    c.loss.masked.loss = "laplace"
    c.loss.masked.block = 4
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 3e-3
    c.optimizer.scaling = "none"
    c.optimizer.weight_decay = 1e-4
    c.optimizer.warmup = config.duration(epochs=1)
    c.train.epochs = 10.0
    c.train.batch_size = 128
    c.checkpoint.every = config.duration(epochs=1)
    c.eval.every = config.duration(epochs=1)
    return c
