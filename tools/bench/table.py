"""Tables for the terminal: numbers to the right; the first column and those without a title to the left."""

from collections.abc import Sequence

from bench.contest import PIPELINED
from simclr_jax.text import show_table

show = show_table


def number(value: float | None) -> str:
    """Three digits that count, or all before the point: 0.0123, 1.25, 102, 12,530; "" for None."""
    if value is None:
        return ""
    digits = 0
    while digits < 6 and value and abs(value) * 10**digits < 99.95:
        digits += 1
    return f"{value:,.{digits}f}"


def milliseconds(times: dict[str, float] | None) -> str:
    """Median and range of {"median", "min", "max"} seconds, in ms; None: there was no room to measure."""
    if times is None:
        return "out of memory"
    median, low, high = (number(1e3 * times[key]) for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def megabytes(size: float | None) -> str:
    """Bytes as MB."""
    return "" if size is None else number(size / 1e6)


def times_peer(rows: Sequence[dict], own: dict, key: str) -> str:
    """How many times the best peer's `key` (more is better) a row of our own reaches; "" without a peer.

    Pipelined rows are compared with pipelined ones.
    """
    like = [row for row in rows if row["name"].endswith(PIPELINED) == own["name"].endswith(PIPELINED)]
    best = max((row[key] for row in like if row["peer"] and row[key]), default=None)
    return "" if best is None or own["peer"] or not own[key] else f"{own[key] / best:.2f}×"
