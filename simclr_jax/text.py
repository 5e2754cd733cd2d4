"""Names from outside, as text."""


def printable(name: str, most: int | None = 60) -> str:
    """A name in one line of UTF-8: a line break in it, or a byte that is no text, is spelt out.

    Of more than `most` characters the end is cut off; None: never.
    """
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    return text if most is None or len(text) <= most else text[: most - 3] + "..."
