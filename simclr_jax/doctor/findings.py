"""Findings, and the report that lists them. Nothing here imports JAX."""

import enum
import textwrap
from collections.abc import Iterable, Mapping
from typing import NamedTuple

WIDTH = 80  # columns of the page
INDENT = 11  # columns of the marks, before the text


class Mark(enum.IntEnum):
    """How much a finding matters."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3


class Finding(NamedTuple):
    """A line of the report; warnings and errors have a remedy."""

    mark: Mark
    text: str
    remedy: str = ""


def ok(text: str) -> Finding:
    """All is well."""
    return Finding(Mark.OK, text)


def note(text: str) -> Finding:
    """Good to know; nothing has to be done."""
    return Finding(Mark.NOTE, text)


def warning(text: str, remedy: str) -> Finding:
    """The run would work, but worse or slower than it could."""
    return Finding(Mark.WARNING, text, remedy)


def error(text: str, remedy: str) -> Finding:
    """The run would fail."""
    return Finding(Mark.ERROR, text, remedy)


def of_error(problem: Exception) -> Finding:
    """The finding for an exception of the run; its remedy follows the last semicolon or line break."""
    message = str(problem).strip()
    text, _, remedy = message.rpartition("\n" if "\n" in message else "; ")
    return error(text or message, remedy if text else "put that right; the run would end with this line")


def exit_code(findings: Iterable[Finding]) -> int:
    """0: nothing but notes; 1: warnings; 2: errors."""
    return max(0, max((finding.mark for finding in findings), default=0) - Mark.NOTE)


def page(title: str, sections: Mapping[str, list[Finding]]) -> str:
    """The page: each section's findings, and a last line that counts the warnings and errors."""
    lines = [title]
    for name, findings in sections.items():
        lines += ["", name, *(line for finding in findings for line in _lines(finding))] if findings else []
    return "\n".join([*lines, "", verdict([f for findings in sections.values() for f in findings])])


def verdict(findings: list[Finding]) -> str:
    """One line: whether to start."""
    errors, warnings = (sum(f.mark == mark for f in findings) for mark in (Mark.ERROR, Mark.WARNING))
    if errors:
        more = f", and {_count(warnings, 'warning')}" if warnings else ""
        return f"{_count(errors, 'error')}{more}: the run would not go."
    return f"{_count(warnings, 'warning')}: the run would go." if warnings else "All is well: start the run."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _lines(finding: Finding) -> list[str]:
    first = f"  {finding.mark.name.lower()}".ljust(INDENT)
    lines = []
    for text in finding.text.splitlines():
        lines += _wrapped(text, first if not lines else " " * INDENT)
    return lines + (_wrapped(f"→ {finding.remedy}", " " * INDENT, 2) if finding.remedy else [])


def _wrapped(text: str, first: str, more: int = 0) -> list[str]:
    """Lines of at most WIDTH columns; a path or an option that is longer stays whole."""
    wrapper = textwrap.TextWrapper(
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * (INDENT + more),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(text)
