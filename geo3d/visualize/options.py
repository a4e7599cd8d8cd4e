"""Options that kinds of pictures share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from geo3d.errors import InputError
from geo3d.viz.render import Renderer

if TYPE_CHECKING:
    from geo3d.inference import LoadedEncoder


class _Checked:
    """The end of the line of checks: each class of options looks at its own and hands on."""

    def __post_init__(self) -> None:
        """Nothing is left to look at."""


@dataclass(frozen=True, kw_only=True)
class ViewerOptions(_Checked):
    """What else than a still picture is made."""

    web: bool = False
    """Serve a page for the browser: turn the scene, click a point, move through a run's checkpoints (extra `web`)."""
    host: str = "127.0.0.1"
    """With --web, address to listen at; 0.0.0.0: all of this machine's, for other machines to open the page."""
    port: int = 8080
    """With --web, port to listen at; the next free one where it is taken. 0: any."""
    rerun: Path | None = None
    """File (.rrd) to write for rerun's viewer, with a run's checkpoints as a timeline (extra `rerun`)."""
    checkpoints: int = 10
    """With --web and --rerun, states of a run that are shown at most, evenly spread, fresh weights among them
    (count)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port < 65536:
            raise InputError(f"port must lie between 0 and 65535, got {self.port}")
        if self.checkpoints < 1:
            raise InputError(f"checkpoints must be 1 or more, got {self.checkpoints}")


@dataclass(frozen=True, kw_only=True)
class DrawingOptions(ViewerOptions):
    """How a picture is drawn."""

    out: Path | None = None
    """File to write: .png for a picture, .ply or .glb for geometry. None: a window where there is a display, else a
    PNG named after the kind."""
    renderer: Renderer = "auto"
    """What draws: window (Open3D), offscreen (Open3D), own (geo3d's projection), or auto: the first that works."""
    azimuth: float | None = None
    """From where spaces are seen, degrees about z. None: 35."""
    elevation: float | None = None
    """From how high, degrees above the horizon. None: 55 for places, 25 for objects."""
    close_after: float | None = None
    """Seconds after which a window closes by itself. None: when it is closed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.elevation is not None and not -90 < self.elevation < 90:
            raise InputError(f"elevation must lie between -90 and 90 degrees, got {self.elevation}")


@dataclass(frozen=True, kw_only=True)
class PlaceOptions(_Checked):
    """What is looked at."""

    data: tuple[Path, ...]
    """Folders of datasets or scenes in any layout, captures, or files of points or meshes (.ply, .pcd, .glb, ...)."""
    scene: tuple[str, ...] = ()
    """Names of scenes of the datasets. None: the first of each."""
    object: tuple[int, ...] = ()
    """Numbers of objects, from 0: scenes that are one and instances of labelled scenes. What encoders of objects read;
    None: the first."""
    points: int = 150_000
    """Points that are drawn of a scene at most (count); all are encoded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points < 1:
            raise InputError(f"points must be 1 or more, got {self.points}")


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """Whose features are looked at."""

    checkpoint: str | None = None
    """Run folder, checkpoint, file of weights, or the name of a model whose weights come with geo3d."""
    model: str | None = None
    """Name of the model, where the file is its authors'; with --fresh, and without a checkpoint, of one to be made."""
    fresh: int | None = None
    """Seed of fresh weights in place of the checkpoint's, to compare with."""
    layers: tuple[str, ...] = ()
    """Stages whose features are taken, by name or number. None: all for points, the last for images."""
    device: str = "auto"
    """Where it runs: auto, cpu, cuda."""


def load(config: EncoderOptions) -> tuple[LoadedEncoder, str]:
    """The encoder of some options, and a line that says what it is.

    Raises:
        InputError: neither a checkpoint nor a model, or one that cannot be loaded.
    """
    from geo3d.inference import load_encoder

    if config.checkpoint is None and config.model is None:
        raise InputError("name an encoder: --checkpoint RUN_OR_FILE, or --model NAME --fresh 0 for fresh weights")
    if config.model is not None and config.checkpoint is not None:
        encoder = load_encoder(config.model, config.checkpoint, device=config.device, fresh=config.fresh)
    else:
        encoder = load_encoder(config.checkpoint or config.model, device=config.device, fresh=config.fresh)
    name = encoder.model.name or encoder.model.family
    weights = f"weights of {config.checkpoint or name}" if encoder.trained else f"FRESH weights, seed {config.fresh}"
    return encoder, f"{name}, {weights}"


def layers_of(config: EncoderOptions) -> list[int | str] | None:
    """Stages by name or number; None: the usual ones."""
    from geo3d.models.encoder import layers_said

    return layers_said(config.layers) or None


__all__ = ["DrawingOptions", "EncoderOptions", "PlaceOptions", "ViewerOptions", "layers_of", "load"]
