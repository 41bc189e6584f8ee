"""The page of a report: one self-contained HTML file that includes its plots."""

import base64
import math
import struct
from collections.abc import Mapping
from html import escape

from lightning_signin._version import __version__
from lightning_signin.report.drawing import colour
from lightning_signin.report.pictures import PICTURES, Picture
from lightning_signin.report.runs import Run, in_order

# The security policy forbids the browser to load anything: no scripts, no fonts, no images except those in the file.
_HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; max-width: 1200px;
  padding: 1.25rem; box-sizing: border-box; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .25rem; }}
h2 {{ font-size: 1.1rem; margin: 0 0 .5rem; }}
p, ul {{ margin: .25rem 0; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: 1rem 0 1.5rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .9rem; border-bottom: 1px solid #ddd; text-align: right; font-weight: normal; }}
thead th {{ font-weight: 600; vertical-align: bottom; min-width: 5rem; overflow-wrap: break-word; }}
th:first-child {{ text-align: left; padding-left: 0; white-space: nowrap; }}
.dot {{ display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em; }}
main {{ display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.25rem; }}
section {{ border: 1px solid #ddd; border-radius: 6px; padding: 1rem; }}
.wide {{ grid-column: 1 / -1; }}
img {{ display: block; width: 100%; height: auto; }}
.wide img {{ min-width: 860px; }}
figure {{ margin: 0; }}
figcaption, footer, .path {{ color: #555; font-size: .9rem; }}
figcaption {{ margin-top: .5rem; }}
.without {{ margin-top: 1.25rem; }}
footer {{ margin-top: 1.25rem; }}
code {{ font-size: .9em; }}
@media (max-width: 760px) {{ body {{ padding: .75rem; }} main {{ grid-template-columns: minmax(0, 1fr); }}
  section {{ padding: .75rem; }} }}
</style>
</head>
"""
_PAPER = '<a href="https://arxiv.org/abs/2504.12801" rel="noreferrer">Sign-In to the Lottery</a>'


def page(runs: list[Run], drawn: Mapping[str, bytes]) -> str:
    """The HTML of a report.

    Args:
        runs: The runs to report.
        drawn: PNG files by the name of their plot; the others are listed as missing.

    Returns:
        A complete page that refers to the PNG files beside it.
    """
    title = escape(f"Training report: {', '.join(run.name for run in runs)}")
    missing = [_missing(picture) for picture in PICTURES if picture.name not in drawn]
    parts = [
        _HEAD.format(title=title),
        "<body>\n<header>\n<h1>Training report</h1>",
        *(f'<p class="path">{_dot(run)}{escape(run.name)}: {escape(_readable(run.folder))}</p>' for run in runs),
        f"</header>\n{_table(runs)}\n<main>",
        *(_section(picture, runs, drawn[picture.name]) for picture in PICTURES if picture.name in drawn),
        "</main>",
    ]
    if missing:
        items = "\n".join(missing)
        parts.append(f'<section class="without">\n<h2>Pictures without data</h2>\n<ul>{items}</ul></section>')
    parts.append(
        f"<footer>Figures and algorithms are those of the paper {_PAPER}. The plots are also PNG files next to this "
        f"page. Written by lightning-signin {__version__}.</footer>\n</body>\n</html>\n"
    )
    return "\n".join(parts)


def _section(picture: Picture, runs: list[Run], png: bytes) -> str:
    width, height = struct.unpack(">II", png[16:24])  # where the PNG format has them
    data = base64.b64encode(png).decode()
    lacking = ", ".join(escape(run.name) for run in runs if not picture.has(run))
    without = f" Without numbers in {_columns(picture)}: {lacking}." if lacking else ""
    alt = f"{picture.title}. {picture.caption}"
    return (
        f"<section{' class=wide' if picture.wide else ''}>\n<h2>{escape(picture.title)}</h2>\n<figure>"
        f'<div class="scroll"><img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(alt)}"></div>\n<figcaption>{escape(picture.caption)}{without}</figcaption></figure>\n</section>'
    )


def _missing(picture: Picture) -> str:
    return (
        f"<li>{escape(picture.title)}: needs numbers in {_columns(picture)}. {escape(picture.source, quote=False)}</li>"
    )


def _columns(picture: Picture) -> str:
    if picture.column.startswith("*"):
        return f"a column with <code>{escape(picture.column.strip('*'))}</code> in its name"
    return f"the column <code>{escape(picture.column)}{'…' if picture.column.endswith('/') else ''}</code>"


def _table(runs: list[Run]) -> str:
    head = "".join(f"<th scope=col>{_dot(run)}{_breakable(run.name)}</th>" for run in runs)
    users = [name for word in ("acc", "loss") for name in in_order({name for run in runs for name in run.named(word)})]
    rows = [_row("epochs trained", [str(run.epochs) for run in runs])]
    rows += [_row(name, [_number(run.last(name), "{:.4f}") for run in runs]) for name in users]
    shares = {"sparsity": "signin/sparsity", "sign flips since the start": "signin/sign_flips"}
    for name, column in shares.items():
        rows.append(_row(name, [_number(run.last(column), "{:.2%}") for run in runs]))
    rows.append(_row("sharpness", [_number(run.last("signin/sharpness"), "{:.4g}") for run in runs]))
    caption = "<caption hidden>Last numbers of each run</caption>"
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table>{caption}\n<thead><tr><th scope=col>last value</th>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(name: str, cells: list[str]) -> str:
    return f"<tr><th scope=row>{escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _number(value: float | None, form: str) -> str:
    if value is None:
        return "–"
    return form.format(value).replace("%", " %") if math.isfinite(value) else str(value)


def _breakable(name: str) -> str:
    return escape(name).replace("/", "/<wbr>")


def _dot(run: Run) -> str:
    return f'<span class="dot" style="background: {colour(run)}"></span>'


def _readable(path: object) -> str:
    return str(path).encode("utf-8", "replace").decode()
