"""Curves as pictures: the losses of a run, and figures over what was varied."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geo3d.errors import InputError
from geo3d.writing import replacing

#: Points below which each is marked.
_FEW = 20
#: Between the marks of lines that are not joined, of which the places are 1 apart.
_BESIDE = 0.1


def metrics_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Lines of a metrics.jsonl and their records, in order; a last line that was cut off is left out.

    Raises:
        InputError: a line is no record; says which.
    """
    found = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                break
            try:
                record = json.loads(line)
                if not isinstance(record["step"], int):
                    raise ValueError("its step is no whole number")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(f"{path}: line {number} is damaged ({error}); take it out of the file") from error
            found.append((line, record))
    return found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl, as :func:`metrics_lines` finds them; none where there is no such file."""
    return [record for _, record in metrics_lines(path)] if path.is_file() else []


def draw_loss_curve(metrics: Path, picture: Path, title: str = "", measured: str | None = None) -> None:
    """Draw the losses of ``metrics`` (a metrics.jsonl) and the learning rate over steps into ``picture`` (a PNG).

    ``measured`` is the key of a figure that some records hold, drawn below.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    every = read_metrics(metrics)
    records, points = ([r for r in every if key in r] for key in ("loss", measured))
    if not records:
        return
    steps = np.array([record["step"] for record in records])
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [2, 1] if points else [1]
    axes, *below = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    axes.plot(steps, _column(records, "loss"), color="tab:blue", alpha=0.3, linewidth=1, label="loss")
    few = {"marker": "."} if len(steps) < _FEW else {}  # of which a line alone may show nothing
    axes.plot(steps, _column(records, "loss_smooth"), color="tab:blue", label="loss, smoothed", **few)
    parts = [key for key in records[-1] if key.startswith("loss/")]
    for key in parts if len(parts) > 1 else []:
        axes.plot(steps, _column(records, key), alpha=0.6, linewidth=1, label=key.removeprefix("loss/"))
    axes.set(ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    rates = axes.twinx()
    rates.plot(steps, _column(records, "lr"), color="grey", linewidth=1, linestyle=":")
    rates.set_ylabel("learning rate (dotted)", color="grey")
    rates.set_ylim(bottom=0)
    for lower in below:
        lower.plot([p["step"] for p in points], _column(points, measured), color="tab:orange", marker=".")
        lower.set(ylabel=measured)
        lower.grid(alpha=0.3)
    figure.axes[len(below)].set_xlabel("step")
    with replacing(picture) as unfinished:
        figure.savefig(unfinished, dpi=100)


@dataclass(frozen=True)
class Panel:
    """Lines over one axis.

    Args:
        axis: what it says.
        places: (n,) along it; 1 apart where they are not joined.
        labels: (n,) what stands below them.
        lines: name -> (n,) values, and (n,) how far they spread to either side.
        joined: whether what lies between the places means something; else values stand alone.
    """

    axis: str
    places: Sequence[float]
    labels: Sequence[str]
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    joined: bool = True


def draw_panels(panels: Sequence[Panel], picture: Path, title: str, values: str) -> None:
    """Draw panels side by side, with one scale of values and one legend, into ``picture`` (a PNG).

    Args:
        panels: one or more, with the same names of lines.
        picture: the file to write.
        title: of the whole.
        values: what their axis says.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 3.6 * len(panels), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels):
        for number, (name, (line, spread)) in enumerate(panel.lines.items()):
            if panel.joined:
                (drawn,) = axes.plot(panel.places, line, marker=".", label=name)
                low, high = np.subtract(line, spread), np.add(line, spread)
                axes.fill_between(panel.places, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
            else:
                beside = _BESIDE * (number - (len(panel.lines) - 1) / 2)
                axes.errorbar(np.add(panel.places, beside), line, spread, fmt="o", markersize=4, label=name)
        axes.set_xticks(panel.places, panel.labels)
        if not panel.joined:
            axes.set_xlim(min(panel.places) - 0.5, max(panel.places) + 0.5)
        axes.set_xlabel(panel.axis)
        axes.grid(alpha=0.3)
    first = figure.axes[0]
    first.set_ylabel(values)
    first.set_ylim(bottom=0)
    figure.suptitle(title)
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=len(panels))
    with replacing(picture) as unfinished:
        figure.savefig(unfinished, dpi=100, format="png")


def _column(records: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([record.get(key) for record in records], dtype=float)  # None, a bad step, becomes nan
