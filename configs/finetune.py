"""Fine-tuning any run's encoder with labels, as in the paper's semi-supervised evaluation.

    python -m simclr_jax.main --config=configs/finetune.py --config.start.workdir=runs/imagenet

SGD with Nesterov momentum, rate 0.05 · batch / 256, no warm-up, no decay, crop and flip only; 30 epochs for
10 % of ImageNet's labels, 60 for 1 % (SimCLR, B.5), `tfds:imagenet2012_subset/10pct` and `/1pct`.
Hardware: one GPU for ResNet-50 (`--config.train.batch_size=256`). Expected: top-1 65.6 % with 10 % and 48.3 %
with 1 % of the labels (paper, Table B.4). Not measured here yet.
"""

from simclr_jax import config


def get_config():
    """The configuration."""
    c = config.default()
    c.task = "supervised"
    c.start.workdir = "runs/imagenet"

    c.data.source = "tfds:imagenet2012_subset/10pct"
    c.data.test_split = "validation"
    c.data.image_size = 0
    c.data.channels = 0

    c.augment.jitter = 0.0
    c.augment.grayscale = 0.0
    c.augment.blur = 0.0

    c.model.dtype = "bfloat16"

    c.optimizer.name = "sgd"
    c.optimizer.nesterov = True
    c.optimizer.learning_rate = 0.05
    c.optimizer.weight_decay = 0.0
    c.optimizer.warmup = config.duration()

    c.train.epochs = 30.0
    c.train.batch_size = 4096
    c.eval.every = config.duration(epochs=5)
    return c
