"""What others published for the same setting: theirs, measured by them, and marked so in the report."""

from typing import Any

from ml_collections import ConfigDict

from simclr_jax.results import Cell


def _setting(name: str, depth: int, batch: int | None, epochs: int) -> dict[str, Any]:
    """A setting with a published accuracy; batch None: any batch size."""
    known = {"source": f"tfds:{name}", "depth": depth, "epochs": epochs}
    return known if batch is None else {**known, "batch": batch}


# SimCLR (arXiv 2002.05709), Table B.1, linear scaling of the rate: ImageNet, ResNet-50, by batch and epochs.
TABLE_B1 = {
    256: {100: 57.5, 200: 61.9, 400: 64.7, 800: 66.6},
    512: {100: 60.7, 200: 64.0, 400: 66.2, 800: 67.8},
    1024: {100: 62.8, 200: 65.3, 400: 67.2, 800: 68.5},
    2048: {100: 64.0, 200: 66.1, 400: 68.1, 800: 68.9},
    4096: {100: 64.6, 200: 66.5, 400: 68.2, 800: 68.9, 1000: 69.3},
    8192: {100: 64.8, 200: 66.6, 400: 67.8, 800: 69.0},
}
# ({what must hold of the config}, {row of the table: %}, whose).
FIGURES = (
    *(
        (_setting("imagenet2012", 50, batch, epochs), {"sgd": percent}, "SimCLR paper, Table B.1")
        for batch, by_epochs in TABLE_B1.items()
        for epochs, percent in by_epochs.items()
    ),
    (_setting("imagenet2012", 50, 256, 100), {"knn_200": 44.8}, "lightly"),
    (
        _setting("imagenet2012", 50, 4096, 1000),
        {"finetune_0.01": 48.3, "finetune_0.1": 65.6},
        "SimCLR paper",
    ),
    (_setting("cifar10", 18, 128, 200), {"knn_200": 84.7}, "lightly, best epoch"),
    (_setting("cifar10", 18, 512, 200), {"knn_200": 84.8}, "lightly, best epoch"),
    (_setting("cifar10", 18, 512, 800), {"knn_200": 87.9}, "lightly, best epoch"),
    (_setting("cifar10", 18, None, 1000), {"sgd": 90.74}, "solo-learn, online"),
    (_setting("cifar10", 50, 1024, 1000), {"sgd": 94.0}, "SimCLR paper"),
    (_setting("cifar100", 18, None, 1000), {"sgd": 65.78}, "solo-learn, online"),
)


def figures(config: ConfigDict) -> dict[str, Cell]:
    """{row: accuracy} that others published for this data set, encoder, batch and length."""
    model, train = config.model, config.train
    if config.task != "pretrain" or model.encoder != "resnet" or model.width != 1 or model.sk_ratio:
        return {}
    mine = {
        "source": config.data.source,
        "depth": model.depth,
        "batch": train.batch_size,
        "epochs": 0 if train.steps or train.examples else train.epochs,
    }
    return {
        row: Cell(percent / 100, by=by)
        for must, percents, by in FIGURES
        if all(mine[field] == value for field, value in must.items())
        for row, percent in percents.items()
    }
