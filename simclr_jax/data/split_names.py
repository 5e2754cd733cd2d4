"""Usual names of the training and test split, as folders or in a table."""

from collections.abc import Iterable

from simclr_jax.text import printable

TRAIN = ("train", "training")
TEST = ("test", "val", "validation", "valid", "testing", "eval", "evaluation", "dev")


def first_named(present: Iterable[str], wanted: Iterable[str]) -> str | None:
    """The first of the names `wanted` that is `present`: as it is written, or else in other capitals."""
    present, wanted = list(present), [name for name in wanted if name]
    folded: dict[str, str] = {}
    for name in sorted(present):
        folded.setdefault(name.casefold(), name)
    exact = next((name for name in wanted if name in present), None)
    return exact or next((folded[name.casefold()] for name in wanted if name.casefold() in folded), None)


def lines_of(what: str, train: str, test: str | None, wanted: tuple[str, str]) -> list[str]:
    """A line on the splits found, if their names differ from the config's; `what`: "folder", say."""
    if (train, test or "") in (wanted, (wanted[0], "")):
        return []
    tested = f", {printable(test)} the one to test on" if test else ""
    return [f"{printable(train)} is the {what} to train on{tested}"]
