"""Features as colours: one robust projection for all scenes and views, and likeness to one feature."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geo3d.errors import InputError
from geo3d.writing import replacing

#: What a point without a feature is drawn in, as points without a colour are.
UNKNOWN = (190, 190, 190)
#: Rows that a projection is fitted to at most, of each set as many as its share; more change no colour that one sees.
_MOST_ROWS = 20_000
#: Share of the rows, nearest to the median, that the axes are found from; a few odd features would take them over.
_KEPT = 0.98
#: Shares of the values along an axis that become the ends of a colour channel.
_ENDS = (0.02, 0.98)
#: Share of cosines beyond which all are the lightest: of one point's features few others are nearly as like.
_LIKEST = 0.995
#: Singular values, as shares of the largest, below which an axis is noise of rounding and shows nothing.
_FLAT = 1e-5
#: Likeness in colours, from unlike to like: dark blue, teal, green, yellow; even steps of brightness.
_UNLIKE_TO_LIKE = np.array([[48, 18, 90], [46, 94, 150], [38, 160, 136], [140, 208, 72], [253, 231, 37]], float)


@dataclass(frozen=True, eq=False)
class Projection:
    """Features to colours by their three main axes, the same for whatever is coloured by it.

    Args:
        centre: (C,) float64 that is taken off.
        axes: (C, 3) float64 directions; a column of zeros where features have fewer.
        low, high: (3,) values along the axes that become 0 and 255.
    """

    centre: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def fit(cls, features: Iterable[Any] | Any) -> Projection:
        """The projection of some features, which each set and each row of a set takes part in.

        Robust: the middle is the median, the few rows farthest from it do not turn the axes, and colours reach from the
        2 to the 98 % quantile. The same features give the same colours: rows are thinned out evenly, without chance,
        and an axis points to where it has the longer tail.

        Args:
            features: one array or tensor (N, C), or several of as many columns; rows that are not finite are left out.

        Raises:
            InputError: no row that is finite, arrays of another shape, or of different numbers of columns.
        """
        sets = [_rows(features)] if _is_array(features) else [_rows(f) for f in features]
        widths = {f.shape[1] for f in sets}
        if len(widths) != 1:
            told = ", ".join(map(str, sorted(widths))) or "none"
            raise InputError(f"features to project must all have as many columns, got {told}; use one encoder for all")
        known = [f[np.isfinite(f).all(1)] for f in sets]
        total = sum(map(len, known))
        if not total:
            raise InputError("features to project have no row that is finite, so there is nothing to colour")
        share = min(1.0, _MOST_ROWS / total)
        thinned = [f[np.linspace(0, len(f) - 1, max(1, round(share * len(f)))).astype(int)] for f in known if len(f)]
        rows = np.concatenate(thinned).astype(np.float64)
        centre = np.median(rows, axis=0)
        moved = rows - centre
        distances = np.linalg.norm(moved, axis=1)
        near = moved[distances <= np.quantile(distances, _KEPT)]
        near = near - near.mean(0)
        values, vectors = np.linalg.eigh(near.T @ near)
        values, vectors = np.sqrt(values[::-1][:3].clip(0)), vectors[:, ::-1][:, :3]
        axes = np.zeros((rows.shape[1], 3))
        shown = values > max(_FLAT * values[0], 1e-12)
        axes[:, : len(values)] = vectors * shown
        along = moved @ axes
        low, high = np.quantile(along, _ENDS, axis=0)
        turned = np.where(_points_down(along, low, high, axes), -1.0, 1.0)
        along = along * turned
        low, high = np.quantile(along, _ENDS, axis=0)
        return cls(centre, axes * turned, low, high)

    def colors(self, features: Any) -> np.ndarray:
        """(N, 3) uint8 of features (N, C), red along the first axis; grey where a row is not finite.

        Raises:
            InputError: features of another number of columns than those that it was fitted to.
        """
        rows = _rows(features)
        if rows.shape[1] != len(self.centre):
            raise InputError(
                f"the projection was fitted to features of {len(self.centre)} channels, got {rows.shape[1]}; use the "
                "encoder and layers that it was made with"
            )
        known = np.isfinite(rows).all(1)
        span = self.high - self.low
        flat = span <= 1e-12
        place = ((rows[known].astype(np.float64) - self.centre) @ self.axes - self.low) / np.where(flat, 1.0, span)
        colors = np.empty((len(rows), 3), np.uint8)
        colors[:] = UNKNOWN
        colors[known] = (255 * np.where(flat, 0.5, place).clip(0, 1)).round()
        return colors

    def save(self, path: str | Path) -> None:
        """Write it, as an NPZ file.

        Raises:
            InputError: the file cannot be written.
        """
        with replacing(Path(path)) as unfinished, unfinished.open("wb") as file:
            np.savez(file, centre=self.centre, axes=self.axes, low=self.low, high=self.high)

    @classmethod
    def load(cls, path: str | Path) -> Projection:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: there is no such file, or it holds no projection.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name].astype(np.float64) for name in ("centre", "axes", "low", "high")}
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(
                f"{path}: holds no projection of features ({error}); --save-projection writes one"
            ) from error
        channels = found["centre"].shape
        wanted = {"centre": channels, "axes": (*channels, 3), "low": (3,), "high": (3,)}
        if len(channels) != 1 or any(found[name].shape != shape for name, shape in wanted.items()):
            raise InputError(f"{path}: holds no projection of features, its arrays do not fit each other")
        return cls(**found)


def similarity(features: Any, query: Any) -> np.ndarray:
    """Cosine of features and one of them.

    Args:
        features: (N, C) array or tensor.
        query: (C,) feature, or the number of its row.

    Returns:
        (N,) float64 in [-1, 1]; NaN where a row, or the query, is not finite; 0 where one of them is all zeros.

    Raises:
        InputError: a row that there is not, or a query of another length.
    """
    rows = _rows(features).astype(np.float64)
    query = _array(query)
    if query.ndim == 0:
        number = int(query)
        if not 0 <= number < len(rows):
            raise InputError(f"there is no row {number} among {len(rows)} features")
        query = rows[number]
    query = query.astype(np.float64)
    if query.shape != rows.shape[1:]:
        raise InputError(f"the query must be {rows.shape[1:]}, as the features, got {query.shape}")
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
    return (rows @ query / np.where(lengths == 0, 1.0, lengths)).clip(-1, 1)


def similarity_colors(features: Any, query: Any) -> tuple[np.ndarray, np.ndarray]:
    """Likeness of features to one of them, as values and as colours.

    Args:
        features, query: as :func:`similarity` takes them.

    Returns:
        (N,) float64 cosines, and (N, 3) uint8 colours from dark blue to yellow between their 2 and 99.5 % quantiles,
        grey where there is no value.

    Raises:
        InputError: as :func:`similarity`.
    """
    values = similarity(features, query)
    return values, value_colors(values, *likeness_ends(values))


def likeness_ends(values: np.ndarray) -> tuple[float, float]:
    """Cosines that become the darkest and the lightest colour: the 2 and 99.5 % quantiles; the query itself is one."""
    known = values[np.isfinite(values)]
    low, high = np.quantile(known, (_ENDS[0], _LIKEST)) if len(known) else (0.0, 1.0)
    return float(low), float(high)


def value_colors(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(N,) values -> (N, 3) uint8 from dark blue at ``low`` to yellow at ``high``; grey where not finite."""
    colors = np.empty((len(values), 3), np.uint8)
    colors[:] = UNKNOWN
    known = np.isfinite(values)
    steps = len(_UNLIKE_TO_LIKE) - 1
    place = ((values[known] - low) / max(high - low, 1e-12)).clip(0, 1) * steps
    first = np.minimum(place.astype(np.int64), steps - 1)
    part = (place - first)[:, None]
    colors[known] = ((1 - part) * _UNLIKE_TO_LIKE[first] + part * _UNLIKE_TO_LIKE[first + 1]).round()
    return colors


def _points_down(along: np.ndarray, low: np.ndarray, high: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """(3,) which axes are to be turned round: the longer tail is the bright one, of equal tails the largest entry."""
    middle = np.median(along, axis=0)
    longer = (high - middle) - (middle - low)
    even = np.abs(longer) <= 1e-6 * np.maximum(high - low, 1e-12)
    largest = axes[np.abs(axes).argmax(0), range(3)]
    return np.where(even, largest < 0, longer < 0)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape")


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _rows(features: Any) -> np.ndarray:
    rows = _array(features)
    if rows.ndim != 2 or not rows.shape[1]:
        raise InputError(f"features must be (N, C), a row a point, got {rows.shape}")
    return rows


__all__ = ["UNKNOWN", "Projection", "likeness_ends", "similarity", "similarity_colors", "value_colors"]
