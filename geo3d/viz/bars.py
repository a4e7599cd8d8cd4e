"""Bars: figures of several things side by side, a panel for each figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from geo3d.writing import replacing


def draw_bars(panels: Mapping[str, Mapping[str, tuple[float, float]]], picture: Path, title: str) -> None:
    """Draw a panel of bars for each figure, each with a scale of its own, into ``picture`` (a PNG).

    Args:
        panels: title of a figure -> name -> its value and how far it spreads to either side; of the same names.
        picture: the file to write.
        title: of the whole.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(next(iter(panels.values())))
    figure = Figure(figsize=(2.2 + 2.4 * len(panels), 1.4 + 0.4 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (heading, values) in zip(every, panels.items()):
        lengths, spreads = zip(*(values[name] for name in names))
        axes.barh(names, lengths, color=[f"C{n}" for n in range(len(names))])
        if any(spreads):
            axes.errorbar(lengths, names, xerr=spreads, fmt="none", color="black", capsize=3)
        for name, length in zip(names, lengths):
            axes.annotate(f" {length:.3g}", (max(length, 0), name), va="bottom", fontsize=8)
        axes.margins(x=0.25)
        axes.set_title(heading, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    every[0].invert_yaxis()  # which they share: the first name is at the top
    figure.suptitle(title, fontsize=10)
    with replacing(picture) as unfinished:
        figure.savefig(unfinished, dpi=100, format="png")


__all__ = ["draw_bars"]
