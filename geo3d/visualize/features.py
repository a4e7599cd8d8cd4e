"""Features as colours: one projection for all scenes and views of a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geo3d.datasets.image_files import read_photo
from geo3d.errors import InputError
from geo3d.geometry import PointCloud, VolumeGrid
from geo3d.inference import LoadedEncoder
from geo3d.visualize.options import DrawingOptions, EncoderOptions, PlaceOptions, layers_of, load
from geo3d.visualize.places import Place, find_objects, find_places, image_of, lifted, shown_points, shown_rows
from geo3d.viz.feature_colors import Projection
from geo3d.viz.picture import ImagePanel, Picture3D, Points, Space

#: Opacity from which a voxel of a grid is shown.
SOLID = 0.3


@dataclass(frozen=True, kw_only=True)
class FeaturesOptions(DrawingOptions, EncoderOptions, PlaceOptions):
    """Show features as colours: by their three main axes, the same for all scenes and views."""

    views: int = 3
    """Views of each scene that an image encoder is shown (count)."""
    projection: Path | None = None
    """Colours of another picture, from the file that --save-projection wrote; None: fitted to these features."""
    save_projection: Path | None = None
    """File (.npz) to write the projection to."""


@dataclass
class Featured:
    """Points or an image with features.

    Args:
        caption: of the panels.
        points: as they are, with features; None for images.
        image: (H, W, 3) uint8; None for points.
        maps: (h, w, C) features of the image's cells.
        is_object: whether points are of an object.
        lifted: points of the image, with features, where depth and pose are known.
        cell: pixels along a side of a cell of ``maps``.
        filled: what the encoder says that it filled in.
        origin: (3,) that was taken off the points.
    """

    caption: str
    points: Points | None = None
    image: np.ndarray | None = None
    maps: np.ndarray | None = None
    is_object: bool = False
    lifted: Points | None = None
    cell: int = 1
    filled: str = ""
    origin: np.ndarray = field(default_factory=lambda: np.zeros(3))

    @property
    def rows(self) -> np.ndarray:
        """(N, C) every feature of it."""
        return self.points.features if self.points is not None else self.maps.reshape(-1, self.maps.shape[-1])


def draw(config: FeaturesOptions) -> Picture3D:
    """The picture.

    Raises:
        InputError: the encoder cannot be loaded, or the data lack what it reads.
    """
    encoder, told = load(config)
    featured = encode_places(encoder, config, config.views)
    if config.projection is not None:
        projection = Projection.load(config.projection)
    else:
        projection = Projection.fit([one.rows for one in featured])
    if config.save_projection is not None:
        projection.save(config.save_projection)
    spaces, images = colored(featured, projection.colors, "features")
    channels = featured[0].rows.shape[1]
    how = (
        f"colours: the three main axes of {channels} channels, the same for all panels; red is the first, green the "
        "second, blue the third"
    )
    filled = sorted({one.filled for one in featured if one.filled})
    notes = (f"{told}; {how}", *filled)
    return Picture3D(
        f"features of {encoder.model.name or encoder.model.family}", spaces, images, notes=notes, columns=4
    )


def encode_places(encoder: LoadedEncoder, config: FeaturesOptions, views: int) -> list[Featured]:
    """Features of all that some options name, of the kind that the encoder reads.

    Raises:
        InputError: the data lack what it reads.
    """
    layers = layers_of(config)
    if encoder.kind == "grid":
        return [one for path in config.data for one in _grids(encoder, path, config.scene, layers, config.points)]
    if encoder.kind == "image" and (pictures := image_files(config.data)):
        return [encoded_image(encoder, path.name, read_photo(path), layers) for path in pictures]
    places = find_objects(config.data, config.object, views) if encoder.kind == "points" else all_places(config)
    found: list[Featured] = []
    for place in places:
        if encoder.kind == "image":
            numbers = place.views(views)
            if not numbers:
                raise InputError(f"{place.name} has no views, which {encoder.model.name} reads; give photos or scenes")
            found += [encoded_view(encoder, place, number, layers) for number in numbers]
        else:
            found.append(encoded_points(encoder, place, layers, config.points))
    return found


def all_places(config: PlaceOptions) -> list[Place]:
    """The places that some options name: objects where they give numbers of them, else scenes and files."""
    if config.object:
        return find_objects(config.data, config.object)
    return find_places(config.data, config.scene)


def encoded_points(encoder: LoadedEncoder, place: Place, layers: Sequence[int | str] | None, most: int) -> Featured:
    """The points of a place with their features, thinned out to so many."""
    cloud = place.cloud()
    try:
        out = encoder(cloud, layers=layers)
    except InputError as error:
        raise InputError(f"{place.name}: {error}") from error
    points = shown_points(cloud, most, features=out.points.cpu().numpy())
    filled = "; ".join(f"{name}: {how}" for name, how in out.filled.items())
    is_object = encoder.kind == "points" or place.is_object
    told = f"filled in: {filled}" if filled else ""
    return Featured(place.name, points, is_object=is_object, filled=told, origin=place.origin)


def encoded_image(
    encoder: LoadedEncoder, caption: str, image: np.ndarray, layers: Sequence[int | str] | None
) -> Featured:
    """An image, (H, W, 3) uint8, with the features of its cells: those of the last of the layers."""
    out = encoder(image, layers=layers)
    return Featured(caption, image=image, maps=out.map.permute(1, 2, 0).cpu().numpy(), cell=out.strides[-1])


def encoded_view(encoder: LoadedEncoder, place: Place, number: int, layers: Sequence[int | str] | None) -> Featured:
    """A view of a scene with features, and its pixels as points where depth and pose are known."""
    view = place.scene.view(number)
    found = encoded_image(encoder, f"{place.name}: {view.name}", image_of(view), layers)
    if view.depth is not None and view.world_from_camera is not None and view.camera is not None:
        points, uv = lifted(view)
        found.lifted = replace(points, features=at_pixels(found, uv))
    return found


def at_pixels(featured: Featured, uv: np.ndarray) -> np.ndarray:
    """(M, C) features of the cells that pixels (M, 2) of an image lie in."""
    cell = np.floor((uv + 0.5) / featured.cell).astype(np.int64)
    height, width = featured.maps.shape[:2]
    return featured.maps[cell[:, 1].clip(0, height - 1), cell[:, 0].clip(0, width - 1)]


def colored(
    featured: list[Featured], colors: Callable[[np.ndarray], np.ndarray], name: str, beside: bool = True
) -> tuple[tuple[Space, ...], tuple[ImagePanel, ...]]:
    """Panels of points and images: as they are, and coloured by what a function makes of their features (N, C)."""
    spaces: list[Space] = []
    images: list[ImagePanel] = []
    for one in featured:
        if one.points is not None:
            if beside:
                spaces.append(Space(one.caption, points=(one.points,), is_object=one.is_object))
            painted = replace(one.points, colors=colors(one.points.features))
            spaces.append(Space(f"{one.caption}: {name}", points=(painted,), is_object=one.is_object))
            continue
        images.append(ImagePanel(one.caption, one.image))
        images.append(ImagePanel(name, spread(colors(one.rows).reshape(*one.maps.shape[:2], 3), one)))
    lifted_points = [one.lifted for one in featured if one.lifted is not None]
    if lifted_points:
        scene = {one.caption.split(":")[0] for one in featured}
        if len(scene) == 1:
            shown = tuple(replace(p, colors=colors(p.features)) for p in lifted_points)
            spaces.append(Space("the views in 3D", points=tuple(lifted_points)))
            spaces.append(Space(f"their {name}", points=shown))
    return tuple(spaces), tuple(images)


def spread(cells: np.ndarray, featured: Featured) -> np.ndarray:
    """Colours of cells (h, w, 3) as large as the image."""
    height, width = featured.image.shape[:2]
    large = cells.repeat(featured.cell, 0).repeat(featured.cell, 1)
    return large[:height, :width]


def image_files(data: Sequence[Path]) -> list[Path]:
    """The paths, where all of them are files of images."""
    endings = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
    files = [path for path in data if path.suffix.lower() in endings and path.is_file()]
    return files if files and len(files) == len(data) else []


def read_grids(path: Path, scenes: Sequence[str]) -> list[tuple[str, VolumeGrid, Sequence[str] | None]]:
    """Radiance grids of a file or dataset: name, grid, and names of the classes of labels.

    Raises:
        InputError: it holds none.
    """
    from geo3d.datasets import open_dataset, read_grid

    if path.suffix == ".npz" and path.is_file():
        return [(path.stem, read_grid(path), None)]
    dataset = open_dataset(path)
    found = []
    for name in scenes or dataset.scene_names[:1]:
        scene = dataset[name]
        if "grid" not in scene.parts:
            raise InputError(
                f"scene {name} ({scene.root}) has no radiance grid; geo3d prepare grids --data {path} makes one"
            )
        found.append((name, scene.grid(), dataset.classes))
    return found


def grid_points(grid: VolumeGrid, most: int) -> tuple[Tensor, PointCloud]:
    """The solid voxels of a grid that one can see from inside it: those beside one that is not solid.

    Returns:
        Their numbers (N, 3) int64; and their centres, in metres, or in voxels where the grid has no corners, with
        colours and normals towards the open side.

    Raises:
        InputError: all of it is empty.
    """
    solid = grid.opacity >= SOLID
    open_side, touched = torch.zeros(*solid.shape, 3), torch.zeros_like(solid)
    for axis in range(3):
        for step in (-1, 1):
            beside = solid.roll(-step, axis)
            beside.select(axis, -1 if step > 0 else 0).fill_(True)  # beyond the grid, from where nobody looks
            open_side[..., axis] += step * (~beside).float()
            touched |= ~beside
    rows = (solid & touched).nonzero()
    if not len(rows):
        raise InputError(f"the grid has no voxel of opacity {SOLID} or more; there is nothing to show")
    rows = rows[torch.from_numpy(shown_rows(len(rows), most))]
    xyz = (rows + 0.5).float() if grid.low is None else grid.centres()[rows.unbind(1)].float()
    normals = F.normalize(open_side[rows.unbind(1)], dim=1)
    return rows, PointCloud(xyz, grid.rgb[rows.unbind(1)].float(), normals)


def _grids(
    encoder: LoadedEncoder, path: Path, scenes: Sequence[str], layers: Sequence[int | str] | None, most: int
) -> list[Featured]:
    from geo3d.probe.grids import look_up

    found = []
    for name, grid, _ in read_grids(path, scenes):
        rows, cloud = grid_points(grid, most)
        out = encoder(grid, layers=layers)
        features = torch.cat([look_up(values[None], rows, stride) for values, stride in zip(out.maps, out.strides)], 1)
        found.append(Featured(name, shown_points(cloud, most, features=features.cpu().numpy())))
    return found
