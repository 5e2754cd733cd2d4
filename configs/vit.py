"""ViT-S/16 on ImageNet with SimCLR's loss, as moco-v3's paper trains it (arXiv 2104.02057): 300 epochs.

    python -m simclr_jax.main --config=configs/vit.py

The patch projection stays random and positions are sines and cosines (sections 4.2 and 5); AdamW with decay
0.1 on every parameter, rate 1.5e-4 · batch / 256, 40 epochs of warm-up, temperature 0.2 (released code,
ViT-S). The paper swept rate and decay for SimCLR; of its sweep it shows a rate of 2e-4 (Figure 6, ViT-B).
Its projection head is 4,096 wide, this one as wide as the features; solarization is not part of this one.
ViT-B/16: `--config.model.vit.size=B`.
Hardware: 32 GPUs with 32 GB (released code, ViT-S), or TPU v3. Time: 6.3 hours for ViT-B/16 on 256 TPU v3
cores (paper, section 6, with a momentum encoder); not measured here.
Expected linear top-1 (paper, Table 4, SimCLR): 69.0 % with ViT-S/16, 73.9 % with ViT-B/16. Not measured here
yet.
"""

from simclr_jax import config


def get_config():
    """The configuration."""
    c = config.default()
    c.data.source = "tfds:imagenet2012"
    c.data.test_split = "validation"
    c.data.mean = (0.485, 0.456, 0.406)
    c.data.std = (0.229, 0.224, 0.225)

    c.augment.device = "photometric"  # the host decodes, crops and flips

    c.model.encoder = "vit"
    c.model.vit.size = "S"
    c.model.vit.heads = 12  # moco-v3's, also of ViT-S; DeiT's ViT-S has 6
    c.model.vit.positions = "sincos"
    c.model.vit.frozen_patch = True
    c.model.dtype = "bfloat16"
    c.model.projection_layers = 3
    c.model.projection_dim = 256

    c.loss.temperature = 0.2

    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 1.5e-4
    c.optimizer.scaling = "linear"
    c.optimizer.weight_decay = 0.1
    c.optimizer.decay_exclude = ()
    c.optimizer.warmup = config.duration(epochs=40)

    c.train.epochs = 300.0
    c.train.batch_size = 4096
    return c
