"""What became of every fault, and the table of it."""

import collections
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """What one fault did."""

    fault: str  # its kind: the row of the table
    ok: bool | None  # the run survived; None: the fault could not be made here
    how: str  # in a few words, counted; of a loss what went wrong, in full


class Faults(NamedTuple):
    """The faults of a part: how many there will be, and the iterator that makes them."""

    count: int
    outcomes: Iterator[Outcome]


def rows(part: str, outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """A row for each kind of fault, in the order in which they came."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.fault, []).append(outcome)
    return [_row(part, fault, group) for fault, group in groups.items()]


def _row(part: str, fault: str, group: list[Outcome]) -> dict[str, Any]:
    survived = [outcome.how for outcome in group if outcome.ok]
    lost = [outcome.how for outcome in group if outcome.ok is False]
    skipped = [outcome.how for outcome in group if outcome.ok is None]
    return {
        "part": part,
        "fault": fault,
        "tries": len(survived) + len(lost),
        "survived": len(survived),
        "lost": len(lost),
        "how": _counted(survived) or ("; ".join(dict.fromkeys(skipped)) if not lost else ""),
        "losses": lost,
    }


def _counted(words: list[str]) -> str:
    """'as saved 12, fell back 3'; one word alone without its number."""
    counts = collections.Counter(word for word in words if word)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{word} {count}" for word, count in counts.most_common())


def table(found: Iterable[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| fault | tries | survived | lost | how |", "|---|---:|---:|---:|---|"]
    for row in found:
        losses = f"; lost: {row['losses'][0][:200]}" if row["losses"] else ""
        how = (row["how"] + losses).removeprefix("; ").replace("|", "/").replace("\n", " ")
        numbers = f"{row['tries']} | {row['survived']} | {row['lost']}"
        lines.append(f"| {row['part']}: {row['fault']} | {numbers} | {how} |")
    return "\n".join(lines)
