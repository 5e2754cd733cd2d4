"""Names from outside as text, and tables for the terminal."""

from collections.abc import Iterable, Sequence


def printable(name: str, most: int | None = 60) -> str:
    """A name in one line of UTF-8: a line break in it, or a byte that is no text, is spelt out.

    Of more than `most` characters the end is cut off; None: never.
    """
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    return text if most is None or len(text) <= most else text[: most - 3] + "..."


def with_interval(values: Sequence[float], form: str) -> str:
    """A value, and the ends of its interval where they follow: 29.03 (28.10 to 29.90)."""
    value, *ends = (format(each, form) for each in values)
    return f"{value} ({' to '.join(ends)})" if ends else value


def show_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()
) -> None:
    """Prints a table of texts: numbers to the right; the first column and those without a title to the left.

    Columns that are empty in every row are left out.
    """
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
