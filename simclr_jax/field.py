"""One field of a config, declared once: default, meaning, allowed values, and what it affects."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

# What a field decides.
RESULT = "result"  # the trained parameters: a run that goes on must have the same
ARCHITECTURE = "architecture"  # which parameters there are: a run takes it from the run that it starts from
PIXELS = "pixels"  # how files become pixels: a run takes it from the run that it starts from
NOTHING = "nothing"  # no parameter, beyond float32 rounding: it may differ when a run goes on


class Rule(NamedTuple):
    """A condition on a value, and the words for its error: "must be {allowed}"."""

    fits: Callable[[Any], bool]
    allowed: str


class Field(NamedTuple):
    """A field of a config. The default says its type.

    `most` is the largest magnitude, `least` the smallest other than 0; in a tuple both hold for every number.
    Beyond them the program would crash, hang or compute infinity; `why` says which.
    """

    default: Any
    help: str  # one line for --help
    rule: Rule | None = None
    most: float | None = None
    why: str = ""
    least: float = 0.0
    decides: str = RESULT


def one_of(*names: Any) -> Rule:
    """One of these values."""
    return Rule(lambda value: value in names, "one of " + ", ".join(map(str, names)))


def _ordered_pair(pair: Any) -> bool:
    return len(pair) == 2 and 0 < pair[0] <= pair[1]


POSITIVE = Rule(lambda value: value > 0, "above 0")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "0 or more")
PROBABILITY = Rule(lambda value: 0 <= value <= 1, "a probability, between 0 and 1")
BELOW_ONE = Rule(lambda value: 0 <= value < 1, "at least 0 and below 1")
SHARE = Rule(lambda value: 0 < value <= 1, "above 0, at most 1")
RANGE = Rule(_ordered_pair, "two numbers above 0, the smaller first")


def is_number(value: Any) -> bool:
    """Whether it is a whole number, of any length, or a finite float."""
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def shown(value: Any, most: int = 60) -> str:
    """A value as Python writes it, cut where it is long; Python does not write thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[: most - 1]}…"
