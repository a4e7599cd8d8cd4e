"""The retrieve probe: the objects or places most alike to one, by the cosine of pooled frozen features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geo3d.datasets.rooms import make_rooms
from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least
from geo3d.models import Encoder
from geo3d.models.image_encoder import ImageEncoder
from geo3d.probe.objects import find_objects
from geo3d.probe.probe import Probe, Representation, Score, load_encoder
from geo3d.probe.retrieval import retrieve
from geo3d.probe.scenes import SceneProbeConfig, find_measured
from geo3d.probe.shape_histograms import local_histograms, whole_shape_histograms
from geo3d.probe.views import chosen_stages, training_side
from geo3d.progress import Log, progress_line
from geo3d.samples.images import ImageSet
from geo3d.samples.posed_objects import PosedObjects, mean_features, pooled_features
from geo3d.samples.readable import Readable

#: Side of the thumbnail whose colours stand for an image without a network.
_THUMBNAIL = 8


@dataclass(frozen=True, kw_only=True)
class RetrieveConfig(SceneProbeConfig):
    """Find what is most alike by frozen features, nothing learnt: objects of a class, or other views of a place."""

    data: tuple[Path, ...] = ()
    """Point encoders: folders of labelled objects; none: synthetic ones. Image encoders: scenes, as in the run."""
    objects: int = 1044
    """Synthetic objects where `data` is empty (count), of 87 kinds in turn; `seed` draws them. Point encoders alone."""
    points: int = 1024
    """Points of a cloud."""
    pooling: Literal["max", "mean", "max+mean"] = "max"
    """How the features of tokens become those of an object; of images the mean of a stage's map is taken."""
    pose: Literal["stored", "rotated"] = "stored"
    """Objects as the data has them, or each turned once at random."""
    resamplings: int = 1
    """Clouds of an object whose features are averaged."""
    layers: tuple[str, ...] = ()
    """Stages of image encoders that are read, by name or number; none: all, or four evenly spaced ones of more."""
    side: int | None = None
    """Shorter side of images, pixels; None: as the network was trained, or 224 where its config does not say."""
    batch: int = 32
    """Clouds shown to a network at once; does not change the figures but by rounding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "objects", "points", "resamplings", "batch")
        check_at_least(self, 16, "side")


@dataclass(frozen=True)
class RetrieveScore(Score):
    """How high what belongs together stands.

    Args:
        mean_average_precision: over all queries, each of which asks for all others.
        recall_at_1: share of the queries whose nearest other is of their class.
        chance: share of a query's class among the others: what an order at random gives for both, about.
        queries: of which there is another of their class.
        columns: features of each.
        left_out: what could not be read.
    """

    mean_average_precision: float
    recall_at_1: float
    chance: float
    queries: int
    columns: int
    left_out: int

    def cells(self) -> dict[str, str]:
        """Column's title -> what stands in the row of the table."""
        return {
            "mAP": f"{100 * self.mean_average_precision:.1f} %",
            "recall at 1": f"{100 * self.recall_at_1:.1f} %",
            "features": f"{self.columns}",
        }

    def bars(self) -> dict[str, tuple[float, float]]:
        """Both figures, %."""
        return {
            "mean average precision, %": (100 * self.mean_average_precision, 0.0),
            "recall at 1, %": (100 * self.recall_at_1, 0.0),
        }


class RetrieveProbe(Probe):
    """Objects by class, or views by the scene that they are of."""

    summary = "the nearest objects, or views of the same place, by the cosine of pooled frozen features"
    settings = RetrieveConfig

    config: RetrieveConfig

    def __init__(self, config: RetrieveConfig, log: Log) -> None:
        super().__init__(config, log)
        wanted = "an encoder of points or images, such as i2p_mae"
        self.network = load_encoder(config.checkpoint, config.model, ("points", "image"), wanted)
        self._readable = Readable(config.strict, log, "left out")
        kind = _Objects if self.network.kind == "points" else _Places
        self._asked = kind(self.network, config, self._readable, log)
        log(self._asked.describe())

    def representations(self) -> dict[str, Representation]:
        """What every probe compares, and stronger features of objects that no network makes."""
        return super().representations() | self._asked.others

    def network_features(self, network: Encoder) -> Representation:
        """Pooled features."""
        return self._asked.network_features(network)

    def input_features(self) -> Representation:
        """Histograms over the whole cloud, or the colours of a thumbnail."""
        return self._asked.input_features

    def measure(self, representations: dict[str, Representation]) -> dict[str, RetrieveScore]:
        """How high what belongs together stands by each representation.

        Raises:
            InputError: nothing can be read, there is nothing of one class, or features are not finite.
        """
        found, labels = self._asked.features(representations)
        scores = {}
        for name, rows in found.items():
            if not np.isfinite(rows).all():
                raise InputError(f"{name}: features hold NaN or infinite values")
            figures = retrieve(rows, labels)
            if not figures.queries:
                raise InputError(f"no two {self._asked.what} are of one {self._asked.by}, so that none can be found")
            scores[name] = RetrieveScore(*figures, columns=rows.shape[1], left_out=len(self._readable.left_out))
        return scores

    def note(self, scores: dict[str, RetrieveScore]) -> str:
        """What was asked."""
        first = next(iter(scores.values()))
        lost = f"\n{first.left_out} cannot be read and are left out, as named above" if first.left_out else ""
        return (
            f"each of {first.queries} {self._asked.what} asks for those of its {self._asked.by} among all others; "
            f"at random {100 * first.chance:.1f} %{lost}"
        )


class _Objects:
    """Labelled objects, and encoders of points."""

    what, by = "objects", "class"

    def __init__(self, network: Encoder, config: RetrieveConfig, readable: Readable, log: Log) -> None:
        self._config, self._readable = config, readable
        self.source = find_objects(config, log)
        self.posed = PosedObjects(self.source, config.points, config.resamplings, 1, config.seed)
        self.others: dict[str, Representation] = {"local histograms": local_histograms}
        self.input_features = whole_shape_histograms

    def describe(self) -> str:
        return f"{len(self.source)} objects, {self._config.pose}, {self._config.pooling} pooling of the last tokens"

    def network_features(self, network: Encoder) -> Representation:
        return pooled_features(network, self._config.pooling, self._config.device)

    def features(self, representations: dict[str, Representation]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Name -> (N, C) of the labelled objects that can be read, and their classes (N,)."""
        labels: dict[int, int] = {}
        found = mean_features(self._clouds(labels), representations, self._config.batch)
        if not labels:
            raise InputError("there is no object that can be read and has a class; see docs/datasets.md")
        rows = {name: np.stack([features[row] for row in labels]) for name, features in found.items()}
        return rows, np.array(list(labels.values()))

    def _clouds(self, labels: dict[int, int]) -> Iterator[tuple[int, list[Tensor]]]:
        """The clouds of each object that can be read and has a class, which is noted."""
        show = progress_line("object")
        for row in range(len(self.source)):
            describe = partial(self.source.describe, row)
            found = self._readable.read(row, partial(self._object, row), describe)
            show(row + 1, len(self.source), self.source.describe(row))
            if found is not None and found[0] >= 0:
                labels[row] = found[0]
                yield row, found[1]

    def _object(self, row: int) -> tuple[int, list[Tensor]]:
        return self.source.category(row), self.posed.clouds(row, self._config.pose)


class _Places:
    """Views of scenes, and encoders of images."""

    what, by = "views", "scene"

    def __init__(self, network: ImageEncoder, config: RetrieveConfig, readable: Readable, log: Log) -> None:
        self._config, self._readable = config, readable
        self.source = find_measured(config, ImageSet, make_rooms, log)
        self.side = config.side or training_side(network)
        self.stages = chosen_stages(network, config.layers)
        self.others: dict[str, Representation] = {}

    def describe(self) -> str:
        scenes = self.source.group_count
        return f"{len(self.source)} views of {scenes} scenes, {self.side} pixels along the shorter side, mean pooling"

    def network_features(self, network: ImageEncoder) -> Representation:
        network = network.to(self._config.device).eval()

        @torch.no_grad()
        def features(image: Image.Image) -> Tensor:
            maps = network.features(network.prepare(image), self.stages)
            pooled = [torch.nn.functional.normalize(values.mean((2, 3)), dim=1) for values in maps]
            return torch.cat(pooled, 1)[0].float().cpu()

        return features

    @staticmethod
    def input_features(image: Image.Image) -> Tensor:
        """Colours of a thumbnail."""
        small = np.asarray(image.resize((_THUMBNAIL, _THUMBNAIL)), dtype=np.float32) / 255
        return torch.from_numpy(small).flatten()

    def features(self, representations: dict[str, Representation]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Name -> (N, C) of the views that can be read, and their scenes (N,)."""
        rows: dict[str, list[np.ndarray]] = {name: [] for name in representations}
        labels, show = [], progress_line("view")
        for item in range(len(self.source)):
            describe = partial(self.source.describe, item)
            image = self._readable.read(item, partial(self._image, item), describe)
            show(item + 1, len(self.source), self.source.describe(item))
            if image is not None:
                labels.append(self.source.group(item))
                for name, features in representations.items():
                    rows[name].append(features(image).numpy())
        if not labels:
            raise InputError("none of the views can be read; the reasons are named above")
        return {name: np.stack(of) for name, of in rows.items()}, np.array(labels)

    def _image(self, item: int) -> Image.Image:
        with self.source.image(item) as picture:
            image = picture.convert("RGB")
        scale = self.side / min(image.size)
        return image.resize([max(1, round(scale * side)) for side in image.size])


__all__ = ["RetrieveConfig", "RetrieveProbe", "RetrieveScore"]
