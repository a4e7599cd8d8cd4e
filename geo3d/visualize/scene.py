"""A scene as it is: points or mesh, cameras, labels, some of its views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from geo3d.geometry.byte_colors import byte_colors
from geo3d.visualize.features import all_places
from geo3d.visualize.options import DrawingOptions, PlaceOptions
from geo3d.visualize.places import Place, image_of, shown_points
from geo3d.viz.picture import ImagePanel, Picture3D, Points, Space, Surface
from geo3d.viz.points import label_colors

_UNKNOWN_COLOR = (190, 190, 190)


@dataclass(frozen=True, kw_only=True)
class SceneOptions(DrawingOptions, PlaceOptions):
    """Show scenes: points or mesh, cameras, labels, some views."""

    show: Literal["auto", "points", "mesh"] = "auto"
    """What is drawn of its surface; auto: the mesh where there is one."""
    cameras: bool = True
    """Draw the cameras."""
    views: int = 3
    """Views that are shown beside (count)."""


def draw(config: SceneOptions) -> Picture3D:
    """The picture.

    Raises:
        InputError: a scene cannot be read, or has nothing to show.
    """
    places = all_places(config)
    spaces: list[Space] = []
    images: list[ImagePanel] = []
    legend: dict[str, tuple[int, int, int]] = {}
    notes = []
    for place in places:
        cameras = place.cameras() if config.cameras else ()
        if place.has_points:
            spaces += _spaces(place, config, cameras, legend)
            told = f"{place.name}: {len(place.cloud()):,} points"
            notes.append(told + (f", {len(place.scene.view_names)} views" if "views" in place.parts else ""))
        elif cameras:
            spaces.append(Space(f"{place.name}: cameras", cameras=cameras))
        for number in place.views(config.views):
            view = place.scene.view(number)
            images.append(ImagePanel(f"{place.name}: {view.name}", image_of(view)))
    return Picture3D(_title(places), tuple(spaces), tuple(images), tuple(legend.items()), notes=tuple(notes))


def _spaces(place: Place, config: SceneOptions, cameras: tuple, legend: dict[str, tuple[int, int, int]]) -> list[Space]:
    cloud, mesh, is_object = place.cloud(), None, place.is_object
    if config.show == "mesh" or (config.show == "auto" and "mesh" in place.parts):
        mesh = place.mesh()
    if mesh is not None and len(mesh.faces):
        grey = np.full((len(mesh.vertices), 3), _UNKNOWN_COLOR, np.uint8)
        colors = grey if mesh.colors is None else byte_colors(mesh.colors)
        first = Space(
            f"{place.name}: mesh, {len(mesh.faces):,} triangles",
            surfaces=(Surface(mesh.vertices, mesh.faces, colors),),
            cameras=cameras,
            is_object=is_object,
        )
    else:
        points = shown_points(cloud, config.points)
        first = Space(f"{place.name}: points", points=(points,), cameras=cameras, is_object=is_object)
    if cloud.semantic is None or not bool((cloud.semantic >= 0).any()):
        return [first]
    labels = cloud.semantic.numpy()
    classes = place.classes or [f"class {number}" for number in range(labels.max() + 1)]
    palette = label_colors(len(classes))
    for number in np.unique(labels):
        legend["no label" if number < 0 else classes[number]] = tuple(palette[number].tolist())
    labelled = Space(f"{place.name}: labels", is_object=is_object)
    if mesh is not None and len(mesh.faces) and mesh.semantic is not None:
        surface = Surface(mesh.vertices, mesh.faces, palette[mesh.semantic])
        return [first, Space(labelled.caption, surfaces=(surface,), is_object=is_object)]
    points: Points = shown_points(cloud, config.points, palette[labels])
    return [first, Space(labelled.caption, points=(points,), is_object=is_object)]


def _title(places: list[Place]) -> str:
    return "scene " + ", ".join(place.name for place in places)
