"""Distillation from a fine-tuned teacher, with or without labels (SimCLRv2, arXiv 2006.10029, section 2).

    python -m simclr_jax.main --config=configs/distill.py --config.distill.teacher=runs/finetuned

The student is the config's model (ResNet-50); to itself: the teacher's architecture and
`--config.distill.temperature=0.1`. Crop and flip only, 400 epochs, otherwise as in pretraining. Images whose
label is known can count too (`--config.distill.alpha`). Any labelled or unlabelled images do.
Hardware: 128 Cloud TPUs (paper). Expected top-1, ResNet-50 from ResNet-152 3× + SK: 73.9 % with 1 %, 77.5 %
with 10 % of the labels (paper, from memory). Not measured here yet.
"""

from simclr_jax import config


def get_config():
    """The configuration."""
    c = config.default()
    c.task = "distill"
    c.distill.teacher = "runs/finetuned"

    c.data.source = "tfds:imagenet2012"
    c.data.test_split = "validation"
    c.data.image_size = 0
    c.data.channels = 0

    c.augment.jitter = 0.0
    c.augment.grayscale = 0.0
    c.augment.blur = 0.0

    c.model.depth = 50
    c.model.projection = "none"
    c.model.dtype = "bfloat16"

    c.optimizer.learning_rate = 0.1
    c.optimizer.scaling = "sqrt"
    c.optimizer.weight_decay = 1e-4
    c.optimizer.warmup = config.duration(epochs=20)

    c.train.epochs = 400.0
    c.train.batch_size = 4096
    return c
