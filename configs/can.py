"""CAN (arXiv 2210.16870) on CIFAR-10: contrast, hidden patches and noise at once, a ViT-tiny of 4 px patches.

    python -m simclr_jax.main --config=configs/can.py --config.data.download=True

From the paper: half of the patches of both views are hidden, the visible ones get noise up to σ 0.05, weights
0.03 (contrast), 0.67 (reconstruction) and 0.3 (noise), features are the mean of the tokens. From its released
code: AdamW with decay 0.05, rate 2.5e-4 · batch / 256, 40 epochs of warm-up. The paper trains ViT-B and ViT-L
on ImageNet and JFT-300M, with a decoder of 8 blocks and width 512; this one has 2 blocks and width 192. Its
noise is added to normalised images, here to images in [0, 1].
Hardware: one GPU; to try it on CPU add --config.model.vit.depth=2 --config.train.batch_size=64. Time: not
measured yet.
Expected: no published figure on CIFAR-10, and not measured here yet. On ImageNet CAN is 1.3 points above
SimCLR (ViT-B, linear).
"""

from simclr_jax import config


def get_config():
    c = config.default()
    c.data.source = "tfds:cifar10"
    c.data.image_size = 32
    c.augment.device = "all"  # the images live on the accelerator
    c.augment.jitter_strength = 0.5
    c.augment.blur = 0.0
    c.model.encoder = "vit"
    c.model.vit.size = "Ti"
    c.model.vit.patch = 4
    c.model.vit.pool = "mean"
    c.model.decoder.variant = "tokens"
    c.model.decoder.channels = 192
    c.model.decoder.blocks = 2
    c.loss.name = "nt_xent+masked"
    c.loss.scale = 0.03  # of the contrast; the other weights are the term's defaults
    c.loss.temperature = 0.1
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 2.5e-4
    c.optimizer.scaling = "linear"
    c.optimizer.weight_decay = 0.05
    c.optimizer.warmup = config.duration(epochs=40)
    c.train.epochs = 800.0
    c.train.batch_size = 1024
    c.checkpoint.every = config.duration(epochs=20)
    c.eval.every = config.duration(epochs=50)
    c.eval.batch_size = 2048  # small images: an accelerator would wait for the next batch
    return c
