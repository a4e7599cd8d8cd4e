"""The linear probe: the class of every voxel, read off frozen features by a linear map."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from geo3d.methods.checks import check_at_least, check_positive
from geo3d.models import Encoder
from geo3d.probe.grids import ProbedGrids
from geo3d.probe.labelled_views import ProbedViews
from geo3d.probe.probe import Probe, Representation, load_encoder
from geo3d.probe.scenes import SceneProbeConfig, find_scenes
from geo3d.probe.voxels import ProbedClouds, ProbeScore, VoxelProbe
from geo3d.progress import Log

#: What networks read -> their scenes, and what is read of them.
KINDS = {"voxels": ProbedClouds, "grid": ProbedGrids, "image": ProbedViews}


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig(SceneProbeConfig):
    """Read the class of every voxel off frozen features by a linear map, and compare."""

    voxel_size: float | None = None
    """Edge of a voxel, metres, of networks over sparse voxels; None: as the network was trained with."""
    side: int | None = None
    """Shorter side of images, pixels, of networks over them; None: as the network was trained, or 224 where its config
    does not say."""
    voxels_per_scene: int = 1000
    """Labelled voxels of each training scene that are learnt from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "voxels_per_scene")
        check_at_least(self, 16, "side")
        check_positive(self, "voxel_size")


class VoxelReadoutProbe(Probe):
    """A checkpoint's features of voxels, and labelled scenes to learn from and to measure on: what read-outs share."""

    def __init__(self, config: Any, log: Log) -> None:
        super().__init__(config, log)
        wanted = "an encoder of voxels, grids or images, such as a swin3d"
        self.network = load_encoder(config.checkpoint, config.model, tuple(KINDS), wanted)
        self._probed = KINDS[self.network.kind](self.network, config.voxel_size, config.side)
        train, held = find_scenes(config, self._probed.source, self._probed.make_rooms, log)
        log(f"{len(train)} scenes to learn from, {len(held)} held out; {self._probed.describe()}")
        voxels = (self._probed.voxels(scenes) for scenes in (train, held))
        self._probe = VoxelProbe(*voxels, self.voxels_per_scene(len(train)), config.seed, log, config.strict)

    @abstractmethod
    def voxels_per_scene(self, scenes: int) -> int:
        """Labelled voxels of each of so many training scenes that are learnt from, at most."""

    def network_features(self, network: Encoder) -> Representation:
        """Features of all stages that a finest voxel lies in."""
        return self._probed.network_features(network, self.config.device)

    def input_features(self) -> Representation:
        """What the network reads of a voxel, and its height."""
        return self._probed.input_features()


class LinearProbe(VoxelReadoutProbe):
    """The class of every voxel, read off by a linear map that learns from all labels."""

    summary = "the class of every voxel, read off frozen features by a linear map"
    settings = LinearProbeConfig

    def voxels_per_scene(self, scenes: int) -> int:
        """As the config says."""
        return self.config.voxels_per_scene

    def measure(self, representations: dict[str, Representation]) -> dict[str, ProbeScore]:
        """How well the classes of held-out scenes are read off each representation."""
        return self._probe.measure(representations)

    def note(self, scores: dict[str, ProbeScore]) -> str:
        """How many voxels were measured on, the accuracy of the simplest baseline, and what could not be read."""
        first = next(iter(scores.values()))
        lost = f"\n{first.left_out} scenes cannot be read and are left out, as named above" if first.left_out else ""
        return (
            f"over {first.voxels} held-out {'patches' if self.network.kind == 'image' else 'voxels'} of "
            f"{first.scenes} scenes; "
            f"always the most frequent class: {100 * first.majority:.1f} %{lost}"
        )


__all__ = ["LinearProbe", "LinearProbeConfig", "VoxelReadoutProbe"]
