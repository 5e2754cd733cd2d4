"""Tables for the terminal: numbers to the right; the first column and those without a title to the left."""

from collections.abc import Iterable, Sequence

from bench.contest import PIPELINED


def show(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()
) -> None:
    """Prints a table of texts; columns that are empty in every row are left out."""
    rows = [["" if cell is None else str(cell) for cell in row] for row in rows]
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    print(f"\n{title}")
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
    for line in (columns, *rows):
        cells = [
            line[i].ljust(widths[i]) if i == kept[0] or not columns[i] else line[i].rjust(widths[i])
            for i in kept
        ]
        print("   ".join(cells).rstrip())
    for note in notes:
        print(f"  {note}")


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
