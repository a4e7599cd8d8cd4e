"""Rooms written as ScanNet scans: the RGB-D stream, the labelled mesh and the annotation files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from geo3d.datasets.sens import SensFrame, write_sens
from geo3d.datasets.synthetic.furniture import CATEGORIES
from geo3d.datasets.synthetic.mesh import FineMesh
from geo3d.datasets.synthetic.render import render
from geo3d.datasets.synthetic.stage import Stage
from geo3d.geometry import Camera
from geo3d.viz.ply import write_ply
from geo3d.writing import write_text

JPEG_QUALITY = 92
_FRAME_MICROSECONDS = 33_333
_NYU40_CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat"),
    *(
        "clothes",
        "ceiling",
        "books",
        "refridgerator",
        "television",
        "paper",
        "towel",
        "shower curtain",
        "box",
        "whiteboard",
    ),
    *(
        "person",
        "night stand",
        "toilet",
        "sink",
        "lamp",
        "bathtub",
        "bag",
        "otherstructure",
        "otherfurniture",
        "otherprop",
    ),
)


def encode_jpeg(color: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as a JPEG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(color).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _label_colors() -> np.ndarray:
    """A colour (41, 3) uint8 for every nyu40 id, well apart; for looking at the labelled mesh."""
    return np.random.default_rng(0).integers(40, 256, (len(_NYU40_CLASSES) + 1, 3)).astype(np.uint8)


def _write_meshes(folder: Path, name: str, mesh: FineMesh, vertices: np.ndarray) -> None:
    xyz = {axis: vertices[:, i].astype(np.float32) for i, axis in enumerate("xyz")}
    opaque = {"alpha": np.full(len(vertices), 255, np.uint8)}

    def columns(colors: np.ndarray) -> dict[str, np.ndarray]:
        return xyz | {channel: colors[:, i] for i, channel in enumerate(("red", "green", "blue"))} | opaque

    write_ply(folder / f"{name}_vh_clean_2.ply", columns(mesh.colors), mesh.faces)
    labelled = columns(_label_colors()[mesh.semantic]) | {"label": mesh.semantic.astype(np.uint16)}
    write_ply(folder / f"{name}_vh_clean_2.labels.ply", labelled, mesh.faces)


def _write_annotation(folder: Path, name: str, mesh: FineMesh, stage: Stage) -> None:
    segments = {"params": {"segMaxSide": "0.5"}, "sceneId": name, "segIndices": mesh.segment.tolist()}
    (folder / f"{name}_vh_clean_2.0.010000.segs.json").write_text(json.dumps(segments, separators=(",", ":")))
    groups = []
    names = np.unique(mesh.segment)
    owner = mesh.instance[names]  # a segment is named by one of its vertices
    for instance in np.unique(mesh.instance):
        members = names[owner == instance].tolist()
        number = len(groups)
        label = stage.things[instance].category
        groups.append({"id": number, "objectId": number, "segments": members, "label": label})
    annotation = {
        "sceneId": name,
        "appId": "geo3d.synthetic",
        "segGroups": groups,
        "segmentsFile": f"{name}_vh_clean_2.0.010000.segs.json",
    }
    (folder / f"{name}.aggregation.json").write_text(json.dumps(annotation, indent=1))


def _matrix_text(matrix: np.ndarray) -> str:
    return " ".join(f"{value:.6f}" for value in matrix.ravel())


def _write_info(folder: Path, name: str, camera: Camera, frames: int, kind: str, room_from_scan: np.ndarray) -> None:
    lines = {"axisAlignment": _matrix_text(room_from_scan)}
    for stream in ("color", "depth"):
        lines |= {f"{stream}Height": camera.height, f"{stream}Width": camera.width}
        lines |= {f"fx_{stream}": f"{camera.fx:.6f}", f"fy_{stream}": f"{camera.fy:.6f}"}
        lines |= {f"mx_{stream}": f"{camera.cx:.6f}", f"my_{stream}": f"{camera.cy:.6f}"}
        lines |= {f"num{stream.capitalize()}Frames": frames}
    lines |= {
        "colorToDepthExtrinsics": _matrix_text(np.eye(4)),
        "numIMUmeasurements": 0,
        "sceneType": kind.capitalize(),
    }
    text = "".join(f"{key} = {lines[key]}\n" for key in sorted(lines))
    (folder / f"{name}.txt").write_text(text)


def write_scan(
    folder: Path,
    name: str,
    stage: Stage,
    mesh: FineMesh,
    camera: Camera,
    poses: np.ndarray,
    kind: str,
    scan_from_room: np.ndarray,
) -> None:
    """Write the files of one scan into an existing folder.

    Args:
        folder: where to write.
        name: such as ``scene0000_00``.
        stage: the room, lit.
        mesh: its fine mesh.
        camera: intrinsics of every frame, colour and depth alike.
        poses: (N, 4, 4) ``room_from_camera``.
        kind: the kind of room, for ``sceneType``.
        scan_from_room: (4, 4) rigid; scans are not aligned with the room, ``axisAlignment`` brings them back.
    """
    room_from_scan = np.linalg.inv(scan_from_room)
    vertices = mesh.vertices.astype(np.float64) @ scan_from_room[:3, :3].T + scan_from_room[:3, 3]
    _write_meshes(folder, name, mesh, vertices)
    _write_annotation(folder, name, mesh, stage)
    _write_info(folder, name, camera, len(poses), kind, room_from_scan)

    def frames() -> Iterator[SensFrame]:
        for i, pose in enumerate(poses):
            view = render(stage, camera, pose)
            time = i * _FRAME_MICROSECONDS
            yield SensFrame(encode_jpeg(view.color), view.depth, scan_from_room @ pose, time, time)

    write_sens(folder / f"{name}.sens", color_camera=camera, depth_camera=camera, frames=frames())


def write_labels_table(root: Path) -> None:
    """Write ``scannetv2-labels.combined.tsv``: the categories that rooms hold and their nyu40 ids."""
    lines = ["\t".join(["id", "raw_category", "category", "count", "nyu40id", "nyu40class"])]
    for number, (category, nyu40) in enumerate(CATEGORIES.items(), 1):
        lines.append("\t".join([str(number), category, category, "1", str(nyu40), _NYU40_CLASSES[nyu40 - 1]]))
    write_text(root / "scannetv2-labels.combined.tsv", "\n".join(lines) + "\n")
