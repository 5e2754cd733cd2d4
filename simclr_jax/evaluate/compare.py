"""Evaluated runs side by side: scores, curves, and what their configs differ in."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from simclr_jax import figures, files, metrics, paths
from simclr_jax.config import flatten, lies_in
from simclr_jax.errors import SimclrError
from simclr_jax.evaluate import charts
from simclr_jax.evaluate.page import document, grid
from simclr_jax.results import ALIKE, Row, aligned, alike, shown

HEALTH = {
    "rank_me": "RankMe",
    "alignment": "alignment (0: views agree)",
    "uniformity": "uniformity (lower: more even)",
    "feature_std": "deviation (0: collapsed)",
}
SAME = ("eval.figures", "compile_cache", "log", "checkpoint", "data.threads")  # differences of no interest


def compare(workdirs: Sequence[epath.PathLike], out: epath.PathLike) -> str:
    """Writes a page `out` and returns its table as text.

    Raises:
      SimclrError: a run has not been evaluated, or there are fewer than two.
    """
    workdirs, out = list(map(paths.expand, workdirs)), paths.expand(out)
    if len(set(map(paths.real, workdirs))) < 2:
        raise SimclrError("--compare: give two runs or more")
    reports = {}
    for workdir in workdirs:
        made = files.read_json(workdir / "eval" / "report.json")
        if not made:
            raise SimclrError(
                f"{workdir}: not evaluated yet; python -m simclr_jax.evaluate --workdir={workdir}"
            )
        reports[str(workdir)] = made
    names = _names(list(reports))
    found = _scores(reports)
    changed = differences(reports)
    page = _page(names, found, changed, reports)
    files.write(out, page)
    return f"{_text(list(names.values()), found)}\n\n{_text(list(names.values()), changed)}\n\n{out}"


def differences(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """{field: its value in every run} of the config fields that are not the same in all."""
    flat = [flatten(made["config"]) for made in reports.values()]
    fields = sorted({field for one in flat for field in one})
    rows = {field: [repr(one[field]) if field in one else "–" for one in flat] for field in fields}
    return {f: values for f, values in rows.items() if len(set(values)) > 1 and not lies_in(f, SAME)}


def _names(workdirs: list[str]) -> dict[str, str]:
    """The last part of every workdir; the whole where two would be alike."""
    short = {workdir: epath.Path(workdir).name for workdir in workdirs}
    return short if len(set(short.values())) == len(short) else {workdir: workdir for workdir in workdirs}


def _scores(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """{title: a cell for every run}, in the order of the first that has the row."""
    rows: dict[str, list[str]] = {}
    found = [[Row.of(row) for row in made["rows"]] for made in reports.values()]
    uneven = {row.title for rows_of_one in found for row in rows_of_one if row.uneven}
    for number, rows_of_one in enumerate(found):
        for row in rows_of_one:
            cells = rows.setdefault(row.title, [""] * len(reports))
            cells[number] = shown(row.cells.get("simclr"))
            for name, title in ALIKE.items() if row.title in uneven else ():
                cells = rows.setdefault(f"{row.title}: {title}", [""] * len(reports))
                cells[number] = alike(row.cells.get("simclr"), name)
    health = [made["protocols"].get("health", {}).get("simclr", {}) for made in reports.values()]
    for field, title in HEALTH.items():
        values = [one.get(field) for one in health]
        if any(value is not None for value in values):
            rows[title] = ["" if value is None else f"{value:.2f}" for value in values]
    return {title: [cell or "–" for cell in cells] for title, cells in rows.items()}


def _text(names: list[str], rows: Mapping[str, list[str]]) -> str:
    if not rows:
        return "The configs are the same."
    return "\n".join(aligned([["", *names], *([title, *cells] for title, cells in rows.items())]))


def _page(
    names: Mapping[str, str],
    scores: Mapping[str, list[str]],
    changed: Mapping[str, list[str]],
    reports: Mapping,
) -> str:
    def table(rows: Mapping[str, list[str]]) -> str:
        lines = [["", *names.values()], *([title, *row] for title, row in rows.items())]
        return grid([[html.escape(cell) for cell in line] for line in lines])

    verdicts = "".join(
        f"<p><b>{html.escape(names[workdir])}</b>: {html.escape(made['verdict'])}</p>"
        for workdir, made in reports.items()
    )
    picture = io.BytesIO()
    curves = {name: metrics.read_rows(workdir) for workdir, name in names.items()}
    drawn = figures.attempt(print, picture, charts.curves, curves)
    data = base64.b64encode(picture.getvalue()).decode()
    training = f'<h2>Training</h2><img alt="curves" src="data:image/png;base64,{data}">' if drawn else ""
    differ = table(changed) if changed else "<p>None.</p>"
    return document(
        "Comparison",
        f"<h1>Runs side by side</h1>\n{verdicts}\n{table(scores)}\n{training}\n"
        f"<h2>Where the configs differ</h2>\n{differ}\n",
    )
