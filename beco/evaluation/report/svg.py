"""What the report's plots share: inline SVG that follows the page's light or dark scheme, colours, legends.

Series colours are those of Okabe & Ito ("Color Universal Design", 2008), which stay apart for colour-blind readers;
lines also differ in dashes and points in shape. Matplotlib is imported when the first plot is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C", "#A6761D"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
DASHES: list[Any] = ["-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3)), (0, (1, 1)), (0, (4, 1, 1, 1))]
# Placeholders that become the page's own text and line colours.
INK, RULE, PAPER = "#010203", "#040506", "#070809"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,  # a class may be called a$b
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def colour_of(names: Iterable[str]) -> dict[str, str]:
    """One colour per name, in order; they repeat after eight."""
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(dict.fromkeys(names))}


def drawn(draw: Any, width: float, height: float, label: str, columns: int = 1) -> str:
    """Let `draw(figure, axes)` paint, and return the SVG; `label` is read out by screen readers."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": label})  # type: ignore[dict-item]
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure, figure.subplots(1, columns))
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return _inline(stream.getvalue(), label)


def _inline(text: str, label: str) -> str:
    """A stand-alone SVG file as an element of a page: no prologue, no clashing ids, its own colours."""
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    width, height = size.groups() if size else ("600", "300")
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'#([\w-]+)["\)]', body))  # salted by matplotlib; all others repeat in every figure
    body = re.sub(r'\sid="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", body)
    body = body.replace(INK, "currentColor").replace(RULE, "var(--rule)").replace(PAPER, "var(--paper)")
    limits = f"max-width:{float(width):.0f}pt;min-width:{0.7 * float(width):.0f}pt"  # letters stay readable
    view = f'viewBox="0 0 {width} {height}" style="{limits}"'
    return f'<svg role="img" aria-label="{escape(label)}" {view}>{body}'


def legend(figure: Figure, axis: Axes, characters: int = 75) -> None:
    """A legend above the plot, as many entries in a line as about `characters` have room for."""
    handles, names = axis.get_legend_handles_labels()
    if names:
        fitting = max(characters // (max(map(len, names)) + 6), 1)
        figure.legend(handles, names, loc="outside upper left", ncols=min(fitting, len(names)), fontsize=9)


def whole_numbers(axis: Axes) -> None:
    """Ticks at whole numbers only, along x."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
