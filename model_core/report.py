"""The evaluation report: one HTML page that needs nothing else, pictures inside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1f }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) { background: #f3f3f6 }
img { max-width: 100%; image-rendering: auto } .warning { background: #fff1d6; padding: .5rem 1rem }
@media (prefers-color-scheme: dark) { body { background: #17171a; color: #e8e8ec }
  tr:nth-child(even) { background: #24242a } .warning { background: #4a3a10 } img { background: #fff } }
"""


class Section(NamedTuple):
    """A part of the page: what is shown, and how to read it."""

    title: str
    text: str
    rows: Sequence[Sequence[str]] = ()  # a table; the first row is its head
    figures: Sequence[tuple[str, Figure]] = ()  # with the words that stand in for each picture
    warnings: Sequence[str] = ()


def render_page(title: str, sections: Sequence[Section]) -> str:
    """The page as HTML text. All words are escaped; pictures are PNG in data URIs, so it can be sent as one file."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>",
        *(_render_section(section) for section in sections),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _render_section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>", f"<p>{html.escape(section.text)}</p>"]
    parts += [f'<p class="warning">{html.escape(warning)}</p>' for warning in section.warnings]
    if section.rows:
        head, *body = section.rows
        parts.append("<table><thead>" + _render_row(head, "th") + "</thead><tbody>")
        parts += [_render_row(row, "td") for row in body]
        parts.append("</tbody></table>")
    parts += [f'<p><img alt="{html.escape(words)}" src="{data_uri(figure)}"></p>' for words, figure in section.figures]
    return "\n".join(parts)


def _render_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def data_uri(figure: Figure) -> str:
    """A figure as a PNG in a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def draw_class_shares(shares: dict[str, np.ndarray]) -> Figure:
    """Class histograms side by side, in percent; `shares` maps a name to [classes]."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(shares)
    for number, (name, values) in enumerate(shares.items()):
        axes.bar(np.arange(len(values)) + (number - (len(shares) - 1) / 2) * width, 100 * values, width, label=name)
    axes.set(
        xlabel="class, as the classifier sees it", ylabel="percent", xticks=range(len(next(iter(shares.values()))))
    )
    axes.legend()
    return figure
