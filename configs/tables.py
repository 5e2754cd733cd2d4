"""SCARF on a table: scikit-learn's 1,797 digits as 64 numbers each, an MLP of four layers.

    python -m simclr_jax.main --config=configs/tables.py

Any other table: --config.data.source=table:/my/rows.csv (or .npz), --config.data.table.label=COLUMN.

Hardware: 2 CPU cores. Time: about a minute.
Expected (measured with 100 epochs, docs/tables.md): linear probe on 100 / all labels 87 / 96 %, kNN 91 %; raw
columns 88 / 95 and 96 %. With --config.data.table.corruption=0.3 92 / 97 and 96 %. SCARF (arXiv 2106.15147)
has no figure for this set: it fine-tunes, and reports how often pretraining wins on 69 sets.

As in the paper's section 4: 60 % of the features replaced, batch 128, Adam 1e-3, temperature 1, a head of two
layers of 256. Unlike it: the head has BatchNorm as SimCLR's, the loss takes both views' negatives
(loss.one_view=True takes the other view's alone, as the paper), and the number of epochs is fixed.
"""

from simclr_jax import config


def get_config():
    c = config.default()
    c.data.source = "table:sklearn/digits"
    c.data.table.corruption = 0.6
    c.model.encoder = "mlp"
    c.model.mlp.layers = 4
    c.model.mlp.hidden = 256
    c.model.projection_layers = 2
    c.model.projection_dim = 256
    c.loss.temperature = 1.0
    c.optimizer.name = "adam"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.scaling = "none"
    c.optimizer.warmup = config.duration(steps=0)
    c.optimizer.weight_decay = 0.0
    c.train.epochs = 200.0
    c.train.batch_size = 128
    c.checkpoint.every = config.duration(epochs=50)
    c.log.every = config.duration(steps=10)
    c.eval.every = config.duration(epochs=50)
    return c
