"""What others published for the same setting: theirs, measured by them, and marked so in the report."""

from typing import Any

from ml_collections import ConfigDict

# SimCLR (arXiv 2002.05709), Table B.1, linear scaling of the rate: ImageNet, ResNet-50, by batch and epochs.
TABLE_B1 = {
    256: {100: 57.5, 200: 61.9, 400: 64.7, 800: 66.6},
    512: {100: 60.7, 200: 64.0, 400: 66.2, 800: 67.8},
    1024: {100: 62.8, 200: 65.3, 400: 67.2, 800: 68.5},
    2048: {100: 64.0, 200: 66.1, 400: 68.1, 800: 68.9},
    4096: {100: 64.6, 200: 66.5, 400: 68.2, 800: 68.9, 1000: 69.3},
    8192: {100: 64.8, 200: 66.6, 400: 67.8, 800: 69.0},
}
# ({what must hold of the config}, row of the table, %, whose).
FIGURES = (
    ({"source": "tfds:imagenet2012", "depth": 50, "batch": 256, "epochs": 100}, "knn_200", 44.8, "lightly"),
    (
        {"source": "tfds:imagenet2012", "depth": 50, "batch": 4096, "epochs": 1000},
        "finetune_0.01",
        48.3,
        "SimCLR paper",
    ),
    (
        {"source": "tfds:imagenet2012", "depth": 50, "batch": 4096, "epochs": 1000},
        "finetune_0.1",
        65.6,
        "SimCLR paper",
    ),
    (
        {"source": "tfds:cifar10", "depth": 18, "batch": 128, "epochs": 200},
        "knn_200",
        84.7,
        "lightly, best epoch",
    ),
    (
        {"source": "tfds:cifar10", "depth": 18, "batch": 512, "epochs": 200},
        "knn_200",
        84.8,
        "lightly, best epoch",
    ),
    (
        {"source": "tfds:cifar10", "depth": 18, "batch": 512, "epochs": 800},
        "knn_200",
        87.9,
        "lightly, best epoch",
    ),
    ({"source": "tfds:cifar10", "depth": 18, "epochs": 1000}, "sgd", 90.74, "solo-learn, online"),
    ({"source": "tfds:cifar10", "depth": 50, "batch": 1024, "epochs": 1000}, "sgd", 94.0, "SimCLR paper"),
    ({"source": "tfds:cifar100", "depth": 18, "epochs": 1000}, "sgd", 65.78, "solo-learn, online"),
)


def figures(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """{row: {value (a fraction), by}} that others published for this data set, encoder, batch and length."""
    model, train = config.model, config.train
    if config.task != "pretrain" or model.encoder != "resnet" or model.width != 1 or model.sk_ratio:
        return {}
    mine = {
        "source": config.data.source,
        "depth": model.depth,
        "batch": train.batch_size,
        "epochs": 0 if train.steps or train.examples else train.epochs,
    }
    found = {
        row: {"value": percent / 100, "by": by}
        for must, row, percent, by in FIGURES
        if all(mine[field] == value for field, value in must.items())
    }
    if mine["source"] == "tfds:imagenet2012" and mine["depth"] == 50:
        percent = TABLE_B1.get(mine["batch"], {}).get(mine["epochs"])
        if percent and "sgd" not in found:
            found["sgd"] = {"value": percent / 100, "by": "SimCLR paper, Table B.1"}
    return found
