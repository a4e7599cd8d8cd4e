"""A scene with all that viewers let one choose: its colours, its labels, and features at every checkpoint of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from geo3d.errors import InputError
from geo3d.inference import LoadedEncoder
from geo3d.spread import evenly_spread
from geo3d.train.checkpoint import CheckpointStore, damage
from geo3d.visualize.coloring import Coloring
from geo3d.visualize.features import Featured, FeaturesOptions, encode_places, encoded_points, encoded_view, image_files
from geo3d.visualize.options import layers_of, load
from geo3d.visualize.places import Place, find_places, image_of, shown_rows
from geo3d.visualize.similarity import SimilarityOptions
from geo3d.visualize.timeline import FeatureTimeline
from geo3d.viz.picture import Frustum, Picture3D, Points, Space
from geo3d.viz.points import label_colors

#: What takes features of points side by side, where there are several stages.
ALL_STAGES = "all stages"
#: Cameras whose images are read.
_IMAGES = 24

Options = FeaturesOptions | SimilarityOptions


@dataclass(frozen=True, eq=False)
class Explored:
    """A scene for viewers.

    Args:
        picture: one space, with the scene's points in their own colours, and its cameras.
        timeline: features of these points at each state of the network.
        colorings: more ways to colour them.
        selected: number of the point that is to be compared with, or None.
    """

    picture: Picture3D
    timeline: FeatureTimeline
    colorings: tuple[Coloring, ...]
    selected: int | None


@dataclass(frozen=True)
class State:
    """A state of a network: what it is called, its optimizer steps, and the options that load it."""

    name: str
    number: int
    config: Options


def explore(config: Options, most: int, report: Callable[[int, int, str], None]) -> Explored:
    """The scene that some options name, with features of all states of the network that they name.

    Args:
        config: of the kinds ``features`` and ``similarity``.
        most: states at most, fresh weights among them.
        report: told how many states are done, how many there are, and the name of the last.

    Raises:
        InputError: not one scene, one without points, or without what the encoder reads; or a state that cannot be
            loaded.
    """
    if image_files(config.data):
        raise InputError("photos alone have nothing in 3D to turn: leave out --web and --rerun, or name a scene")
    found, left_out = states(config, most)
    encoder, told = load(found[-1].config)
    places = [] if encoder.kind == "grid" else find_places(config.data, config.scene)
    if len(places) > 1 or (not places and len(config.data) > 1):
        raise InputError("--web and --rerun show one scene; name one folder of --data, and one --scene")
    place = places[0] if places else None
    featured = _featured(encoder, config, place)
    joined = [_points_of(one) for one in featured]
    xyz = np.concatenate([points.xyz for points in joined])
    kept = np.isfinite(xyz).all(1)
    last = len(found) - 1

    def encode(number: int) -> np.ndarray:
        now = featured if number == last else _featured(load(found[number].config)[0], config, place)
        return np.concatenate([_points_of(one).features for one in now])[kept]

    layers = _layers(encoder, config, joined[0].features.shape[1])
    names, numbers = [state.name for state in found], [state.number for state in found]
    timeline = FeatureTimeline(names, numbers, layers, encode, report)
    points = Points(xyz[kept], np.concatenate([points.colors for points in joined])[kept])
    space = Space(points=(points,), cameras=cameras(place), is_object=featured[0].is_object)
    title = f"{place.name if place else featured[0].caption}, {encoder.model.name or encoder.model.family}"
    total = len(place.cloud()) if place is not None and encoder.kind != "image" else len(xyz)
    counted = f"{len(points.xyz):,} points" + ("" if total == len(points.xyz) else f" of {total:,}")
    filled = sorted({one.filled for one in featured if one.filled})
    if len(found) > 2:
        told = f"checkpoints of {config.checkpoint}"
    notes = (counted, told, *filled, *left_out)
    labels = () if place is None or encoder.kind == "image" else _labels(place, config.points, kept)
    return Explored(Picture3D(title, (space,), notes=notes), timeline, labels, _selected(config, place, points.xyz))


def states(config: Options, most: int) -> tuple[list[State], list[str]]:
    """States of the network that some options name, oldest first; and what was left out.

    Of a run folder: fresh weights of the same network, and its checkpoints, evenly spread where there are too many. Of
    another file: fresh weights and the file's. Of fresh weights that are asked for: these.
    """
    if config.fresh is not None or config.checkpoint is None:
        return [State(f"fresh weights, seed {config.fresh}", 0, config)], []
    folder = Path(config.checkpoint) / "checkpoints"
    store = CheckpointStore(folder)
    every = store.all()
    problems = {path: damage(path, sizes_only=True) for path in every}
    left_out = [f"{path.name} is damaged ({problem}) and left out" for path, problem in problems.items() if problem]
    whole = [path for path in every if problems[path] is None]
    if not whole:
        last = State("weights of the checkpoint", 1, config)
        return [State("fresh weights", 0, replace(config, fresh=0)), last][-most:], left_out
    taken = np.unique(np.linspace(len(whole) - 1, 0, min(max(most - 1, 1), len(whole))).round().astype(int))
    if len(taken) < len(whole):
        left_out.append(f"{len(taken)} of {len(whole)} checkpoints, see --checkpoints")
    best = store.best()
    found = [State("fresh weights", 0, replace(config, checkpoint=str(whole[-1]), fresh=0))]
    for path in (whole[number] for number in taken):
        step = int(path.name.removeprefix("step_"))
        name = f"step {step:,}" + (", the best" if path == best else "")
        found.append(State(name, step, replace(config, checkpoint=str(path))))
    return found[-most:], left_out


def cameras(place: Place | None) -> tuple[Frustum, ...]:
    """The cameras of a place, some of them with their images."""
    if place is None or place.scene is None:
        return ()
    found = place.cameras()
    with_image = set(evenly_spread(len(found), _IMAGES))
    numbers = {name: number for number, name in enumerate(place.scene.view_names)} if found else {}
    pictured = []
    for number, frustum in enumerate(found):
        if number in with_image:
            view = place.scene.view(numbers[frustum.name])
            frustum = frustum if view.image is None else replace(frustum, image=image_of(view), camera=view.camera)
        pictured.append(frustum)
    return tuple(pictured)


def _featured(encoder: LoadedEncoder, config: Options, place: Place | None) -> list[Featured]:
    layers = layers_of(config)
    if place is None:
        return encode_places(encoder, config, 0)[:1]
    if encoder.kind != "image":
        return [encoded_points(encoder, place, layers, config.points)]
    found = [encoded_view(encoder, place, number, layers) for number in place.views(config.views)]
    if not found or any(one.lifted is None for one in found):
        raise InputError(
            f"{place.name}: {encoder.model.name} reads images, and only views with depth and poses put what it says of "
            "them into 3D; leave out --web and --rerun, or take a scene that has them"
        )
    return found


def _points_of(featured: Featured) -> Points:
    return featured.lifted if featured.points is None else featured.points


def _layers(encoder: LoadedEncoder, config: Options, channels: int) -> dict[str, slice]:
    """Names of the layers -> columns of the features that lie side by side."""
    stages = encoder.model.feature_info
    numbers = encoder.model.stage_numbers(layers_of(config))
    if encoder.kind == "image":
        return {stages[numbers[-1]].name: slice(0, channels)}
    found = {ALL_STAGES: slice(0, channels)} if len(numbers) > 1 else {}
    first = 0
    for number in numbers:
        found[stages[number].name] = slice(first, first + stages[number].channels)
        first += stages[number].channels
    if first != channels:
        raise ValueError(f"{encoder}: stages of {first} channels, features of {channels}")
    return found


def _labels(place: Place, most: int, kept: np.ndarray) -> tuple[Coloring, ...]:
    semantic = place.cloud().semantic
    if semantic is None or not bool((semantic >= 0).any()):
        return ()
    labels = semantic.numpy()
    classes = place.classes or [f"class {number}" for number in range(labels.max() + 1)]
    palette = label_colors(len(classes))
    shown = labels[shown_rows(len(labels), most)][kept]
    legend = tuple(("no label" if n < 0 else classes[n], tuple(palette[n].tolist())) for n in np.unique(shown))
    return (Coloring("labels", palette[shown], legend),)


def _selected(config: Options, place: Place | None, xyz: np.ndarray) -> int | None:
    """The point nearest to where the options say."""
    at: Sequence[float] | None = getattr(config, "at", None)
    if at is None:
        return None
    origin = np.zeros(3) if place is None else place.origin
    return int(np.linalg.norm(xyz - (np.array(at) - origin), axis=1).argmin())


__all__ = ["ALL_STAGES", "Explored", "State", "cameras", "explore", "states"]
