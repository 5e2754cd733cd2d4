"""report.html: one file that opens offline, on a phone too."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from simclr_jax.evaluate.report import percent
from simclr_jax.measures.ranking import RANKED
from simclr_jax.results import ALIKE, HEAD, WHO, Cell, Row, alike

# Headings, with the figures and the protocols' notes below each; what is not named comes last.
SECTIONS = (
    ("Training", ("curves",), ()),
    ("What it confuses", ("lbfgs_confusion",), ()),
    ("What it finds similar", ("retrieval", "tsne", "umap"), ("maps",)),
    ("Class by class", ("lbfgs_classes", "lbfgs_calibration"), ()),
    ("When images change", ("robustness", "invariance"), ("robustness", "invariance")),
    ("Health of the representation", ("spectrum",), ("health",)),
    ("Where it looks", ("class_maps", "similarity_maps"), ("saliency",)),
    ("What the decoder makes of images", ("reconstructions",), ("reconstructions",)),
    ("Unusual images", ("duplicates", "outliers"), ("neighbours",)),
    ("How the classifiers were chosen", ("knn_grid", "penalties", "sweep"), ()),
)
WORST = 30  # classes in the table of them
STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #666; --line: #ddd; --paper: #fff; --blue: #2166ac }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #a8a8a8; --line: #444; --paper: #1b1b1b;
  --blue: #7fb2e5 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
.soft { color: var(--soft); font-size: .9rem; overflow-wrap: anywhere }
.verdict { font-size: 1.15rem; border-left: .3rem solid var(--blue); padding: .2rem 0 .2rem .9rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .92rem; min-width: 100% }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 8rem }
th { white-space: normal; vertical-align: bottom }
td small { color: var(--soft); display: block } .mine { font-weight: 600 }
@media (max-width: 30rem) { body { padding: .7rem } table { font-size: .78rem }
  th, td { padding: .25rem } th:first-child, td:first-child { min-width: 5.5rem } }
figure { margin: 1rem 0 } figcaption { color: var(--soft); font-size: .9rem }
img { max-width: 100%; height: auto; background: #fff; border-radius: .3rem }
pre { overflow-x: auto; font-size: .8rem }
"""


def render(made: Mapping[str, Any], folder: epath.Path) -> str:
    """The page of a report; figures are read from `folder/figures` and become part of it."""
    figures = {name.removesuffix(".png"): caption for name, caption in made["curves"]}
    notes, rows = {}, [Row.of(row) for row in made["rows"]]
    for name, result in made["protocols"].items():
        figures |= {file.removesuffix(".png"): caption for file, caption in result.get("figures", ())}
        notes[name] = result.get("notes", [])
    parts = []
    for title, names, protocols in SECTIONS:
        lines = [note for name in protocols for note in notes.pop(name, [])]
        drawn = [figure(folder, name, figures.pop(name)) for name in names if name in figures]
        parts.append(
            _section(title, lines, drawn + [_metrics(made), _classes(made)] * (title == "Class by class"))
        )
    rest = [figure(folder, name, caption) for name, caption in figures.items()]
    parts.append(_section("More", [note for some in notes.values() for note in some], rest))
    where = made["images"]
    test = f"; tested on {where['test'][1]:,} ({where['test'][0]})" if where["test"] else ""
    versions = made["environment"]["versions"]
    device = made["environment"]["device"]
    about = (
        f"Step {made['step']:,}, {made['config']['eval']['endpoint']}; {where['train'][1]:,} images to learn "
        f"from ({where['train'][0]}){test}. Written {made['written']}, {made['seconds']:.0f} s on "
        f"{device['count']} × {device['kind']}, jax {versions['jax']}."
    )
    config = json.dumps(made["config"], indent=1)
    title = html.escape(f"{epath.Path(made['workdir']).name}: evaluation")
    return document(
        title,
        f"<h1>{title}</h1>\n<p class=soft>{html.escape(about)}</p>\n"
        f"<p class=verdict>{html.escape(made['verdict'])}</p>\n{_table(rows)}\n"
        f"{_table_alike(rows, made['left_out'])}\n"
        + "\n".join(parts)
        + f"\n<h2>Config</h2><details><summary>all fields</summary><pre>{html.escape(config)}</pre>"
        "</details>\n",
    )


def document(title: str, body: str) -> str:
    """A whole page, from escaped HTML."""
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style>\n{body}</html>\n"
    )


def grid(lines: Sequence[Sequence[str]]) -> str:
    """A table of escaped cells, the first line its head."""
    tags = ("th", *("td" for _ in lines[1:]))
    rows = ("".join(f"<{tag}>{cell}</{tag}>" for cell in line) for tag, line in zip(tags, lines, strict=True))
    return f"<div class=scroll><table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table></div>"


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    columns = [who for who in WHO if any(who in row.cells for row in rows)]
    lines = [[HEAD, *map(WHO.get, columns)]]
    for row in rows:
        note = f"<small>{html.escape(row.note)}</small>" if row.note else ""
        lines.append([html.escape(row.title) + note, *(_cell(row.cells.get(who), who) for who in columns)])
    if any(row.published for row in rows):
        theirs = ("published (theirs)", *(_cell(row.published) for row in rows))
        lines = [[*line, cell] for line, cell in zip(lines, theirs, strict=True)]
    return grid(lines)


def _cell(one: Cell | None, who: str = "") -> str:
    if one is None:
        return ""
    small = (
        html.escape(one.by)
        if one.low is None or one.high is None
        else f"{100 * one.low:.1f} to {100 * one.high:.1f}"
    )
    return (
        f"<span{' class=mine' if who == 'simclr' else ''}>{100 * one.value:.1f}</span><small>{small}</small>"
    )


def _table_alike(rows: Sequence[Row], left_out: str) -> str:
    """What counts every class alike: this encoder's, and small below it the others'."""
    rows = [row for row in rows if "simclr" in row.cells and row.cells["simclr"].alike]
    if not rows:
        return ""
    lines = [["every class alike, with 95 % interval", *ALIKE.values()]]
    lines += [[html.escape(row.title), *(_cell_alike(row.cells, name) for name in ALIKE)] for row in rows]
    note = f"<p class=soft>{html.escape(left_out)}</p>" if left_out else ""
    return grid(lines) + note


def _cell_alike(cells: Mapping[str, Cell], name: str) -> str:
    others = {who: alike(cells.get(who), name) for who in WHO if who != "simclr"}
    small = "".join(f"<small>{WHO[who]} {text}</small>" for who, text in others.items() if text)
    return f"<span class=mine>{alike(cells['simclr'], name)}</span>{small}"


def _classes(made: Mapping[str, Any]) -> str:
    """The classes that fare worst with the classifier by L-BFGS, or another one."""
    found = _measured(made)
    if not found:
        return ""
    title = "linear, L-BFGS" if "linear, L-BFGS" in found else next(iter(found))
    numbers = zip(made["classes"], found[title]["per_class"], strict=True)
    classes = sorted(
        ((name, one) for name, one in numbers if one["support"]),
        key=lambda each: (each[1]["recall"], each[1].get("auroc") or 0),
    )
    heads = ("class", "test images", "recall", "precision", *(ALIKE[name] for name in RANKED))
    lines: list[Sequence[str]] = [heads]
    for name, one in classes[:WORST]:
        numbers = [f"{one['support']:,}", percent(one["recall"]), percent(one["precision"])]
        numbers += ["" if one.get(each) is None else f"{one[each]:.3f}" for each in RANKED]
        lines.append([html.escape(name), *numbers])
    some = f", the worst {WORST} of {len(classes):,}" if len(classes) > WORST else ", the worst first"
    note = f"<p>{html.escape(title)}{some}. All classes are in report.json. "
    note += (
        "A classifier that knows nothing has an AUROC of 0.5; its average precision is the class's share.</p>"
    )
    return note + grid(lines)


def _measured(made: Mapping[str, Any]) -> dict[str, Any]:
    """{title: what `classified.evaluate` found} of every classifier."""
    return {
        title: m for result in made["protocols"].values() for title, m in result.get("metrics", {}).items()
    }


def _metrics(made: Mapping[str, Any]) -> str:
    """Precision, recall, F1 and calibration of every classifier."""
    found = _measured(made)
    if not found:
        return ""
    heads = ("classifier", "top-1", "top-5", "balanced accuracy", "macro precision", "macro recall",
             "macro F1", "weighted F1", "calibration error")  # fmt: skip
    lines: list[Sequence[str]] = [heads]
    for title, m in found.items():
        macro = [m["macro"][name] for name in ("precision", "recall", "f1")]
        numbers = [m["top1"], m.get("top5"), m["mean_per_class"], *macro, m["weighted"]["f1"], m["ece"]]
        cells = ("" if value is None else percent(value) for value in numbers)
        lines.append([html.escape(title), *cells])
    return grid(lines)


def _section(title: str, notes: Sequence[str], contents: Sequence[str]) -> str:
    body = [f"<p>{html.escape(note)}</p>" for note in notes] + [part for part in contents if part]
    return f"<h2>{html.escape(title)}</h2>\n" + "\n".join(body) if body else ""


def figure(folder: epath.Path, name: str, caption: str) -> str:
    """The picture `folder/figures/NAME.png` with its caption, as part of a page; "" where it is not there."""
    path = folder / "figures" / f"{name}.png"
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    text = html.escape(caption)
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
