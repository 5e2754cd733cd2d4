"""SimCLRv2 fine-tuning with 1 % of ImageNet's labels, from the middle of the projection head.

    python -m simclr_jax.main --config=configs/simclrv2_finetune.py --config.start.workdir=runs/simclrv2

The classifier sits on the head's first layer (`model.probe_layer = 1`), which is fine-tuned with the encoder.
LARS, rate 0.005·√1024, no decay, 60 epochs; for 10 % of the labels 30 epochs
(`--config.data.source=tfds:imagenet2012_subset/10pct --config.train.epochs=30`), for all of them from h
(`--config.model.probe_layer=0 --config.data.source=tfds:imagenet2012 --config.train.epochs=30`).
Hardware: as for pretraining (simclrv2.py), or one GPU for ResNet-50. Expected top-1 with 1 % / 10 % / 100 %:
57.9 / 68.4 / 76.3 % for ResNet-50, 64.5 / 72.1 / 78.7 % with SK (the original's table). Not measured yet.
"""

from simclr_jax import config


def get_config():
    """The configuration."""
    c = config.default()
    c.task = "supervised"
    c.start.workdir = "runs/simclrv2"

    c.data.source = "tfds:imagenet2012_subset/1pct"
    c.data.test_split = "validation"
    c.data.image_size = 0
    c.data.channels = 0

    c.augment.jitter = 0.0
    c.augment.grayscale = 0.0
    c.augment.blur = 0.0

    c.model.probe_layer = 1
    c.model.dtype = "bfloat16"

    c.optimizer.learning_rate = 0.005
    c.optimizer.scaling = "sqrt"
    c.optimizer.weight_decay = 0.0
    c.optimizer.warmup = config.duration()

    c.train.epochs = 60.0
    c.train.batch_size = 1024
    c.eval.every = config.duration(epochs=5)
    return c
