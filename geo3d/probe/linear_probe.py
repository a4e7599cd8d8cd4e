"""The linear probe: the class of every voxel, read off frozen features by a linear map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from geo3d.datasets.quarantine import log_broken
from geo3d.datasets.rooms import SCENES_TO_SPARE, split_scenes
from geo3d.errors import InputError
from geo3d.methods.checks import check_at_least, check_between, check_positive
from geo3d.models import Encoder
from geo3d.probe.grids import ProbedGrids
from geo3d.probe.probe import Probe, ProbeConfig, Representation, load_encoder
from geo3d.probe.voxels import ProbedClouds, ProbeScore, VoxelProbe
from geo3d.progress import Log
from geo3d.samples.source import SampleSource

#: What networks read -> their scenes, and what is read of them.
_KINDS = {"voxels": ProbedClouds, "grid": ProbedGrids}


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig(ProbeConfig):
    """Read the class of every voxel off frozen features by a linear map, and compare."""

    data: tuple[Path, ...] = ()
    """Folders of labelled scenes. None: the synthetic rooms that `geo3d pretrain` makes where it is given none."""
    test_data: tuple[Path, ...] = ()
    """Folders of scenes to measure on. None: those of `data` that a run of the same seed holds out."""
    rooms: int = 24
    """Synthetic rooms where `data` is empty (count); as in the run, so that the same ones are held out."""
    held_out: float = 0.1
    """Share of the scenes to measure on, where `test_data` is empty, of ten scenes or more; as in the run."""
    seed: int = 0
    """Seed of the rooms, of the split and of all draws; as in the run."""
    voxel_size: float | None = None
    """Edge of a voxel, metres, of networks over sparse voxels; None: as the network was trained with."""
    voxels_per_scene: int = 1000
    """Labelled voxels of each training scene that are learnt from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for folder in (*self.data, *self.test_data):
            if not folder.is_dir():
                raise InputError(f"{folder} is not a folder; give the root of a dataset")
        check_at_least(self, 1, "rooms", "voxels_per_scene")
        check_between(self, 0, 1, "held_out")
        check_positive(self, "voxel_size")


class LinearProbe(Probe):
    """A checkpoint's features of voxels, and labelled scenes to learn from and to measure on."""

    summary = "the class of every voxel, read off frozen features by a linear map"
    settings = LinearProbeConfig

    def __init__(self, config: LinearProbeConfig, log: Log) -> None:
        super().__init__(config, log)
        wanted = "an encoder of voxels or grids, such as a swin3d"
        self.network = load_encoder(config.checkpoint, config.model, tuple(_KINDS), wanted)
        self._probed = _KINDS[self.network.kind](self.network, config.voxel_size)
        train, held = self._scenes()
        log(f"{len(train)} scenes to learn from, {len(held)} held out; {self._probed.describe()}")
        voxels = (self._probed.voxels(scenes) for scenes in (train, held))
        self._probe = VoxelProbe(*voxels, config.voxels_per_scene, config.seed, log, config.strict)

    def network_features(self, network: Encoder) -> Representation:
        """Features of all stages that a finest voxel lies in."""
        return self._probed.network_features(network, self.config.device)

    def input_features(self) -> Representation:
        """What the network reads of a voxel, and its height."""
        return self._probed.input_features()

    def measure(self, representations: dict[str, Representation]) -> dict[str, ProbeScore]:
        """How well the classes of held-out scenes are read off each representation."""
        return self._probe.measure(representations)

    def note(self, scores: dict[str, ProbeScore]) -> str:
        """How many voxels were measured on, the accuracy of the simplest baseline, and what could not be read."""
        first = next(iter(scores.values()))
        lost = f"\n{first.left_out} scenes cannot be read and are left out, as named above" if first.left_out else ""
        return (
            f"over {first.voxels} held-out voxels of {first.scenes} scenes; "
            f"always the most frequent class: {100 * first.majority:.1f} %{lost}"
        )

    def _scenes(self) -> tuple[SampleSource, SampleSource]:
        """Scenes to learn from, and those to measure on."""
        config, log, source = self.config, self.log, self._probed.source
        if not (config.data or config.test_data) and config.rooms < SCENES_TO_SPARE:
            raise InputError(
                f"rooms must be at least {SCENES_TO_SPARE} so that some can be held out, got {config.rooms}"
            )
        data = config.data or (self._probed.make_rooms(config.rooms, config.seed, log),)
        scenes = source.find(data, config.strict)
        log_broken(scenes.datasets, log)
        if config.test_data:
            others = source.find(config.test_data, config.strict)
            log_broken(others.datasets, log)
            both = {scenes.describe(i) for i in range(len(scenes))} & {others.describe(i) for i in range(len(others))}
            if both:
                raise InputError(f"{min(both)} is among the scenes to learn from and among those to measure on")
            return scenes, others
        rows, held = split_scenes(scenes.group_count, config.held_out, config.seed)
        if len(held) == 0:
            raise InputError(
                f"{len(scenes)} scenes are too few to hold any out, which takes {SCENES_TO_SPARE}; "
                "give others to measure on as --test-data"
            )
        return scenes.of_groups(rows), scenes.of_groups(held)


__all__ = ["LinearProbe", "LinearProbeConfig"]
