"""One figure style for the whole book: colour-blind-safe, readable in light and dark, vector.

A plot is described once (:class:`Plot`) and drawn twice, for a light and for a dark page. Series differ by colour
*and* by marker or dash, so that no figure needs colour to be read.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from zfu_lib.report import cjk
from zfu_lib.report.statistics import over_seeds

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)))
Series = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Theme:
    """Colours of a drawing: ``ink`` for text and axes, ``grid`` for grid lines, ``colours`` for series."""

    ink: str
    grid: str
    colours: tuple[str, ...]

    def colour(self, number: int) -> str:
        """Colour of a series by its number; after the last it starts again."""
        return self.colours[number % len(self.colours)]


# Okabe and Ito's palette without its yellow, which is too faint on white; for dark pages the same hues, lighter.
THEMES = {
    "light": Theme("#1f2328", "#d4d9de", ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")),
    "dark": Theme("#e6edf3", "#454c55", ("#56B4E9", "#FF9E4A", "#4CC9A0", "#F0A6CA", "#B5DDF7", "#FFD166")),
}


@dataclass(frozen=True)
class Plot:
    """A figure waiting to be drawn: ``draw(axes, theme)`` paints it, ``data`` is what it shows, ``size`` in inches."""

    draw: Callable[[Axes, Theme], None]
    data: Any = None
    size: tuple[float, float] = (6.4, 3.6)


def curve(
    x: Sequence[float], by_seed: np.ndarray | Sequence[Sequence[float]], *, within: tuple[float, float] | None = None
) -> dict[str, list[float]]:
    """Mean and 95% interval over seeds at each x, for :func:`lines`.

    Args:
        by_seed: [seeds, len(x)].
        within: what the quantity can be at all; intervals are cut there, which loses nothing of their coverage.
    """
    found = [over_seeds(column) for column in np.asarray(by_seed, dtype=float).T]
    low, high = within or (-np.inf, np.inf)
    return {
        "x": list(x),
        "y": [interval.mean for interval in found],
        "low": [max(low, interval.low) for interval in found],
        "high": [min(high, interval.high) for interval in found],
    }


def lines(
    series: Series,
    *,
    xlabel: str,
    ylabel: str,
    log_x: int = 0,
    log_y: bool = False,
    mark: Mapping[str, float] | None = None,
    baseline: tuple[str, float] | None = None,
) -> Plot:
    """Curves with optional bands.

    Args:
        series: label -> ``{"x", "y"}`` and, for an interval, ``"low"`` and ``"high"``.
        log_x: base of a logarithmic x axis; 0 for a linear one.
        mark: vertical reference lines, label -> x.
        baseline: horizontal reference line (label, y).
    """

    def draw(axes: Axes, theme: Theme) -> None:
        for i, (label, s) in enumerate(series.items()):
            colour, dash = theme.colour(i), DASHES[i % len(DASHES)]
            few = len(s["x"]) <= 24
            marker = MARKERS[i % len(MARKERS)] if few else None
            axes.plot(s["x"], s["y"], color=colour, ls=dash, marker=marker, label=label)
            if "low" in s:
                axes.fill_between(s["x"], s["low"], s["high"], color=colour, alpha=0.18, lw=0)
        if mark:
            # Room for the labels above the curves.
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + 0.1 * (high - low))
        for label, x in (mark or {}).items():
            axes.axvline(x, color=theme.ink, lw=0.9, ls=":")
            axes.annotate(
                label,
                (x, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -3),
                textcoords="offset points",
                va="top",
                fontsize=8,
            )
        if baseline:
            axes.axhline(baseline[1], color=theme.ink, lw=0.9, ls=(0, (1, 2)))
            axes.annotate(
                baseline[0],
                (1, baseline[1]),
                xycoords=("axes fraction", "data"),
                xytext=(-3, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )
        if log_x:
            axes.set_xscale("log", base=log_x)
            # Powers of the base only: other points would crowd the labels.
            x = sorted({x for s in series.values() for x in s["x"]})
            ticks = [t for t in x if float(np.log(t) / np.log(log_x)).is_integer()]
            axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
            axes.minorticks_off()
        elif all(float(x).is_integer() for s in series.values() for x in s["x"]):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if log_y:
            axes.set_yscale("log")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if len(series) > 1:
            axes.legend()

    return Plot(draw, {"series": {k: {a: list(b) for a, b in v.items()} for k, v in series.items()}})


def intervals(rows: Mapping[str, Any], *, xlabel: str, baseline: tuple[str, float] | None = None) -> Plot:
    """One horizontal dot with its 95% interval per row, first row on top.

    Args:
        rows: label -> :class:`~zfu_lib.report.statistics.Interval` (or anything with mean, low, high).
    """

    def draw(axes: Axes, theme: Theme) -> None:
        for i, interval in enumerate(rows.values()):
            axes.plot([interval.low, interval.high], [i, i], color=theme.colour(0), lw=2, alpha=0.6)
            axes.plot(interval.mean, i, "o", color=theme.colour(0))
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        if baseline:
            axes.axvline(baseline[1], color=theme.ink, lw=0.9, ls=":")
            axes.annotate(
                baseline[0],
                (baseline[1], 0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=8,
            )
        axes.set(xlabel=xlabel)

    data = {label: [interval.mean, interval.low, interval.high] for label, interval in rows.items()}
    return Plot(draw, data, size=(6.4, 1.1 + 0.34 * len(rows)))


def bars(groups: Mapping[str, Sequence[float]], *, labels: Sequence[str], xlabel: str, ylabel: str) -> Plot:
    """Bars side by side: one group of bars per label, one colour and hatch per series."""

    def draw(axes: Axes, theme: Theme) -> None:
        width = 0.8 / len(groups)
        for i, (name, heights) in enumerate(groups.items()):
            x = np.arange(len(labels)) + (i - (len(groups) - 1) / 2) * width
            hatch = ("", "//", "..", "xx")[i % 4]
            look = {"color": theme.colour(i), "hatch": hatch, "edgecolor": theme.ink}
            axes.bar(x, heights, width * 0.92, label=name, **look)
        axes.set_xticks(range(len(labels)), labels)
        axes.grid(axis="x", visible=False)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.legend()

    return Plot(draw, {"labels": list(labels), "groups": {k: list(v) for k, v in groups.items()}})


def heat(
    matrix: Sequence[Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    colour_label: str,
    title: str = "",
    top: float | None = None,
    signed: bool = False,
    ticks: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Plot:
    """A matrix as colours (perceptually uniform map), row 0 on top; NaN stays empty.

    Args:
        top: the value of the brightest colour; where some lie above it, the colour bar ends in an arrow and says so.
        signed: values of both signs, with a map whose middle is zero.
        ticks: names of the columns and of the rows.
    """
    values = np.asarray(matrix, dtype=float)
    clipped = top is not None and bool((values > top + 1e-6 * abs(top)).any())

    def draw(axes: Axes, theme: Theme) -> None:
        most = top if top is not None else float(np.nanmax(np.abs(values))) if signed else None
        look = {"cmap": "PuOr", "vmin": -most} if signed else {"cmap": "viridis", "vmin": 0}
        image = axes.imshow(values, aspect="equal", interpolation="nearest", vmax=most, **look)
        if ticks:
            axes.set_xticks(range(len(ticks[0])), ticks[0])
            axes.set_yticks(range(len(ticks[1])), ticks[1])
        axes.grid(visible=False)
        label = f"{colour_label} (arrow: above {top:g})" if clipped else colour_label
        extend = "max" if clipped else "neither"
        axes.figure.colorbar(image, ax=axes, label=label, fraction=0.046, pad=0.04, extend=extend)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)

    height = 1 + 2.2 * values.shape[0] / values.shape[1]
    return Plot(draw, {"matrix": np.round(values, 4).tolist()}, size=(3.6, min(4.4, max(1.8, height))))


def switches(rows: Mapping[str, Sequence[bool]], *, xlabel: str, ticks: Sequence[str] = ()) -> Plot:
    """Yes (filled) or no (empty) along x, one named row each, first row on top; x counts from 0 or has ``ticks``."""

    def draw(axes: Axes, theme: Theme) -> None:
        for i, states in enumerate(rows.values()):
            for on, face in ((True, theme.colours[0]), (False, "none")):
                x = [j for j, state in enumerate(states) if bool(state) is on]
                axes.scatter(x, [i] * len(x), s=70, marker="s", facecolors=face, edgecolors=theme.colours[0])
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks)
        axes.grid(visible=False)
        axes.set(xlabel=xlabel)

    data = {label: [bool(state) for state in states] for label, states in rows.items()}
    return Plot(draw, data, size=(max(6.4, 0.6 + 0.2 * len(ticks)), 0.9 + 0.34 * len(rows)))


def timeline(rows: Mapping[str, Sequence[tuple[float, str]]], *, xlabel: str) -> Plot:
    """Events (x, kind) in named rows, first row on top; kinds differ by colour and marker."""
    kinds = list(dict.fromkeys(kind for events in rows.values() for _, kind in events))

    def draw(axes: Axes, theme: Theme) -> None:
        for k, kind in enumerate(kinds):
            points = [(x, i) for i, events in enumerate(rows.values()) for x, of in events if of == kind]
            look = {"color": theme.colour(k), "marker": MARKERS[k % len(MARKERS)], "ls": "", "alpha": 0.8}
            axes.plot(*zip(*points), label=kind, **look)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set(xlabel=xlabel)
        if len(kinds) > 1:
            axes.figure.legend(loc="outside upper center", ncols=len(kinds))

    return Plot(draw, {k: [list(event) for event in v] for k, v in rows.items()}, size=(6.4, 1.4 + 0.34 * len(rows)))


def graph(
    nodes: Mapping[str, tuple[float, float]],
    edges: Sequence[tuple[str, str]],
    *,
    marked: Collection[str],
    labels: Mapping[str, str] | None = None,
) -> Plot:
    """Boxes and arrows, without axes; ``marked`` boxes, and arrows between two of them, stand out by colour and line.

    Args:
        nodes: name -> (x, y) of its centre, in widths and heights of a box with some room.
        edges: arrows (from, to) by name.
        labels: what a box says instead of its name.
    """

    def draw(axes: Axes, theme: Theme) -> None:
        boxes = {}
        for name, place in nodes.items():
            on = name in marked
            look = {"boxstyle": "round,pad=0.35", "fc": "none", "ec": theme.colours[0] if on else theme.ink}
            look |= {"lw": 1.8 if on else 1.0, "ls": "-" if on else "--", "alpha": 1 if on else 0.5}
            said = (labels or {}).get(name, name)
            boxes[name] = axes.text(*place, said, ha="center", va="center", fontsize=9, bbox=look)
        for a, b in edges:
            on = a in marked and b in marked
            # Neighbours in a row are joined straight, others by a bow around what lies between.
            bow = 0.0 if nodes[a][1] != nodes[b][1] or abs(nodes[a][0] - nodes[b][0]) <= 1 else -0.35
            look = {"arrowstyle": "-|>", "color": theme.colours[0] if on else theme.ink, "alpha": 1 if on else 0.5}
            look |= {"lw": 1.8 if on else 1.0, "ls": "-" if on else "--", "connectionstyle": f"arc3,rad={bow}"}
            ends = {"patchA": boxes[a].get_bbox_patch(), "patchB": boxes[b].get_bbox_patch()}
            axes.annotate("", nodes[b], nodes[a], arrowprops=look | ends)
        axes.set_xlim(min(xs) - 0.6, max(xs) + 0.6)
        axes.set_ylim(min(ys) - 0.6, max(ys) + 0.7)
        axes.set_axis_off()

    xs, ys = zip(*nodes.values())
    size = (max(3.0, 1.25 * (max(xs) - min(xs) + 1.2)), max(1.6, 0.85 * (max(ys) - min(ys) + 1.3)))
    return Plot(draw, {"nodes": dict(nodes), "edges": list(edges), "marked": sorted(marked)}, size=size)


@dataclass(frozen=True)
class Row:
    """Panels of one figure: side by side where there is room for them, else below each other."""

    panels: tuple[Plot, ...]

    @property
    def data(self) -> list[Any]:
        """What the panels show."""
        return [plot.data for plot in self.panels]


def row(*plots: Plot) -> Row:
    """Panels of one figure, lettered (a), (b), ... for the caption."""
    return Row(plots)


def svg(plot: Plot, theme: str, letter: str = "") -> str:
    """``plot`` as a self-contained SVG with a transparent background for a ``light`` or ``dark`` page.

    Args:
        letter: of a panel, written before its title.
    """
    look = THEMES[theme]
    style = {
        "font.family": _families(),
        "font.size": 10,
        "axes.titlesize": 10,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "lines.linewidth": 1.7,
        "lines.markersize": 4.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.edgecolor": look.ink,
        "axes.labelcolor": look.ink,
        "text.color": look.ink,
        "xtick.color": look.ink,
        "ytick.color": look.ink,
        "grid.color": look.grid,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "svg.fonttype": "path",
        "svg.hashsalt": "zfu",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=plot.size, layout="constrained")
        axes = figure.subplots()
        plot.draw(axes, look)
        if letter:
            axes.set_title(f"({letter}) {axes.get_title()}".rstrip())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


@functools.cache
def _families() -> list[str]:
    """Fonts of every figure: what the first has no glyph for comes from the book's Chinese one."""
    if not cjk.font().is_file():
        return ["DejaVu Sans"]
    font_manager.fontManager.addfont(cjk.font())
    return ["DejaVu Sans", cjk.FAMILY]


def plain(data: Any) -> Any:
    """A figure's data as JSON has it: lists, numbers, words; None where there is no finite number."""
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, np.ndarray | np.generic):
        return plain(data.tolist())
    if isinstance(data, list | tuple):
        return [plain(item) for item in data]
    return None if isinstance(data, float) and not np.isfinite(data) else data


def markup(plot: Plot | Row, name: str, caption: str, alt: str) -> str:
    """HTML of a figure, every drawing in both themes: the page shows that of its own, without a theme the light one.

    A drawing stands in a frame that scrolls sideways where a screen is too narrow for its text.
    """

    def image(panel: Plot, theme: str, letter: str) -> str:
        data = base64.b64encode(svg(panel, theme, letter).encode()).decode()
        hidden = ' style="display:none"' if theme == "dark" else ""
        source = f"data:image/svg+xml;base64,{data}"
        said = html.escape(f"{alt} ({letter})" if letter else alt, quote=True)
        return f'<img class="zfu-{theme}"{hidden} alt="{said}" src="{source}"/>'

    def frame(panel: Plot, letter: str) -> str:
        # Matplotlib draws 72 points to the inch, a browser shows 96 pixels.
        width = f"--zfu-width:{96 * panel.size[0]:.0f}px"
        drawings = "".join(image(panel, theme, letter) for theme in THEMES)
        return f'<div class="zfu-frame" style="{width}">{drawings}</div>'

    panels = zip(plot.panels, string.ascii_lowercase, strict=False) if isinstance(plot, Row) else [(plot, "")]
    frames = "".join(frame(panel, letter) for panel, letter in panels)
    caption = f"<figcaption>{html.escape(caption)}</figcaption>"
    anchor = html.escape(name, quote=True)
    return f'<figure class="zfu-figure" id="fig-{anchor}"><div class="zfu-panels">{frames}</div>{caption}</figure>'
