"""SimCLRv2 pretraining on ImageNet (arXiv 2006.10029): ResNet-50 with selective kernels, 800 epochs.

    python -m simclr_jax.main --config=configs/simclrv2.py

The other sizes of its table: `--config.model.depth=50|101|152 --config.model.width=1|2|3`, and
`--config.model.sk_ratio=0` without selective kernels; ResNet-152 3× + SK has 795 million parameters.
Three-layer projection head, rate 0.1·√batch with 5 % warm-up, decay 1e-4. The memory buffer (about +1 %,
never released) is not part of it.
Hardware: 128 Cloud TPUs (paper). Expected linear top-1: 74.6 % with SK, 71.7 % without (paper's table;
71.1 % without the memory buffer, by its author). Not measured here yet.
"""

from simclr_jax import config


def get_config():
    """The configuration."""
    c = config.default()
    c.data.source = "tfds:imagenet2012"
    c.data.test_split = "validation"

    c.model.depth = 50
    c.model.width = 1.0
    c.model.sk_ratio = 0.0625
    c.model.projection_layers = 3
    c.augment.device = "photometric"  # the host decodes, crops and flips
    c.model.dtype = "bfloat16"

    c.loss.scale = 2.0  # the original's loss

    c.optimizer.learning_rate = 0.1
    c.optimizer.scaling = "sqrt"
    c.optimizer.weight_decay = 1e-4
    c.optimizer.warmup = config.duration(epochs=40)

    c.train.epochs = 800.0
    c.train.batch_size = 4096
    return c
