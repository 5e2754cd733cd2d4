"""ImageNet as in the SimCLR paper: ResNet-50, batch 4096, 100 epochs, LARS with sqrt scaling.

    python -m simclr_jax.main --config=configs/imagenet.py --config.data.data_dir=gs://BUCKET/tfds \
        --workdir=gs://BUCKET/runs/imagenet

Hardware: a TPU slice of 32 cores (v3) or more. Time: about 6 hours on 32 v3 cores for the original code
(its README); not measured yet for this one.
Expected: 64.5 % linear top-1 (paper, Table B.1: batch 4096, 100 epochs, sqrt scaling); 69.3 % with
--config.train.epochs=1000.

The images are read from TFDS's imagenet2012, prepared as ArrayRecord
(tfds build imagenet2012 --file_format=array_record), or as TFRecord: that is read in sequence, with a
weaker promise, which the run prints.
"""

from simclr_jax import config


def get_config():
    c = config.default()  # ResNet-50, 224 px, batch 4096, 100 epochs, temperature 0.1, LARS
    c.data.source = "tfds:imagenet2012"
    c.data.test_split = "validation"
    c.augment.device = "photometric"  # the host decodes, crops and flips
    c.model.dtype = "bfloat16"
    c.loss.scale = 2.0
    c.optimizer.learning_rate = 0.075
    c.optimizer.scaling = "sqrt"
    c.log.every = config.duration(steps=100)
    c.eval.batch_size = 2048
    return c
