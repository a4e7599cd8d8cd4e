"""Options of a fit of a radiance field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from geo3d.config import coerce
from geo3d.errors import InputError
from geo3d.reconstruction.fit_schedule import Pace


@dataclass(frozen=True)
class RadianceFieldConfig:
    """A dense voxel radiance grid, fitted to photos by volume rendering, coarse to fine."""

    seconds: float = 60.0
    """Time of the fit by the clock, the reading of photos included; it goes on at whatever pace the machine has."""
    steps: int | None = None
    """Steps of the fit in place of seconds: the result is then the same to the bit, whatever the number of threads."""
    pace: tuple[int, ...] | None = None
    """Pace of an earlier fit by the clock (``RadianceField.pace``), to repeat it to the bit."""
    longest_side: int = 160
    """Voxels along the longest side of the grid, the surroundings included."""
    box_alone: bool = False
    """Whether `longest_side` is that of the box alone, so that the fitted grid is larger by its surroundings."""
    low: tuple[float, float, float] | None = None
    """Lowest corner of the box, where it is known, metres; None: found from the scene."""
    high: tuple[float, float, float] | None = None
    """Highest corner of the box."""
    border: float | None = None
    """Width of the contracted surroundings in half sides of the box; 0: none. None: 0 where the box is given or that of
    a mesh or points, else 0.5."""
    photo_side: int | None = 480
    """Longest side of the photos, pixels; larger ones are averaged down. None: as they are."""
    photos: int | None = 300
    """Photos that are used at most, evenly spread. None: all."""
    held_out: int = 8
    """Every how many-th photo is held out, from the first; 0: none, and early stop is off."""
    patience: int = 4
    """Looks at the held-out photos (16 over a fit) without 0.02 dB gained after which a fit on the last grid ends;
    0: it never ends early."""
    depth: bool = True
    """Fit the depth too where the scene has it."""
    masks: bool = False
    """Fit the object alone: what the masks leave out becomes empty."""
    exposure: bool = False
    """Fit a gain for each photo and channel, the mean of their logarithms 0."""
    rays: int = 8192
    """Rays a step."""
    seed: int = 0
    """Of rays and jitter."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cpu or cuda."""
    density_rate: float = 0.5
    """Learning rate of raw densities at first; all rates fall to a tenth."""
    colour_rate: float = 0.3
    """Learning rate of raw colours at first."""
    density_smoothness: float | None = None
    """Weight of the total variation of raw densities at first. None: 1e-7, and 3e-9 where depth is fitted."""
    colour_smoothness: float | None = None
    """Weight of the total variation of raw colours at first. None: 1e-7, and 3e-8 where depth is fitted."""
    smoothness_left: float | None = None
    """Share of both weights that is left at the end. None: 0.003, and 0.03 where depth is fitted."""
    sample_colour: float = 0.05
    """Weight of the colour error of single samples at first: it makes surfaces of fog, and blurs what they show."""
    sample_colour_left: float = 1.0
    """Share of this weight that is left at the end: with 0.03 views are sharper, and plain walls more of a haze."""
    depth_weight: float = 0.1
    """Weight of the depth error of samples."""
    parts: int = 2
    """Parts that gradients are summed in; a step runs on as many threads at most, and the bits depend on it."""

    def __post_init__(self) -> None:
        coerce(self)
        least = {
            "longest_side": 16, "photo_side": 8, "photos": 2, "held_out": 0, "patience": 0, "rays": 16, "seed": 0,
            "parts": 1, "steps": 1,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise InputError(f"radiance field: {name} must be at least {bound}, got {value}")
        if not self.seconds > 0:
            raise InputError(f"radiance field: seconds must be positive, got {self.seconds}")
        if self.held_out == 1:
            raise InputError("radiance field: held_out 1 leaves no photo to fit; take 2 or more, or 0 for none")
        names = ("density_rate", "colour_rate", "density_smoothness", "colour_smoothness", "sample_colour")
        for name in (*names, "depth_weight"):
            if not 0 <= (getattr(self, name) or 0) < 1e3:
                raise InputError(f"radiance field: {name} must be 0 or more, got {getattr(self, name)}")
        for name in ("smoothness_left", "sample_colour_left"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"radiance field: {name} must lie in 0 to 1, got {value}")
        if self.steps is not None and self.pace is not None:
            raise InputError("radiance field: give steps or the pace of an earlier fit, not both")
        if self.pace is not None:
            Pace.given(self.pace)


__all__ = ["RadianceFieldConfig"]
