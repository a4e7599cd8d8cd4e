"""Small instances of every dataset's layout, written to disk from scenes whose geometry is known."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from geo3d.datasets.disparity_files import write_flow, write_pfm
from geo3d.datasets.scene import _REGISTRY
from geo3d.datasets.sens import SensFrame, write_sens
from geo3d.geometry import Camera
from geo3d.viz.ply import write_ply

COLOR = Camera.from_fov(32, 24, 1.2)
DEPTH = Camera.from_fov(16, 12, 1.2)
VIEWS = 4
DEPTH_METRES = 2.5
# A quarter turn about z and a shift: what ScanNet's axisAlignment holds.
ALIGNMENT = np.array([[0, -1, 0, 0.5], [1, 0, 0, -0.25], [0, 0, 1, 0.125], [0, 0, 0, 1]], dtype=np.float64)
COLMAP_MODELS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV": 4, "FOV": 7}


def orbit(count: int = VIEWS, radius: float = 3.0) -> np.ndarray:
    """``world_from_camera`` (count, 4, 4) of level cameras around the origin that look at it, z up."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    for pose, angle in zip(poses, np.linspace(0.1, 2.0, count)):
        eye = radius * np.array([np.cos(angle), np.sin(angle), 0.3])
        forward = -eye / np.linalg.norm(eye)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
        pose[:3, 3] = eye
    return poses


def picture(camera: Camera = COLOR, seed: int = 0) -> Image.Image:
    """A smooth image, so that JPEG changes it little."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 215, (3, 4, 3), dtype=np.uint8))
    return coarse.resize((camera.width, camera.height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def depth_map(index: int = 0) -> np.ndarray:
    """A wall across the view with one unknown pixel."""
    depth = np.full((DEPTH.height, DEPTH.width), DEPTH_METRES + 0.01 * index, dtype=np.float32)
    depth[2, 3] = 0
    return depth


def save_depth(path: Path, depth: np.ndarray) -> None:
    Image.fromarray(np.rint(depth * 1000).astype(np.uint16)).save(path)


def save_matrix(path: Path, matrix: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(" ".join(f"{v:.9f}" for v in row) for row in matrix) + "\n")


def intrinsic_matrix(camera: Camera) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = camera.matrix.numpy()
    return matrix


def lost_pose() -> np.ndarray:
    return np.full((4, 4), -np.inf)


# ScanNet: a closed unit cube; its top is a table, its other faces' corners are wall and floor.
CUBE = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)], dtype=np.float32)
CUBE_FACES = np.array(
    [[0, 2, 3], [0, 3, 1], [4, 5, 7], [4, 7, 6], [0, 1, 5], [0, 5, 4],
     [2, 6, 7], [2, 7, 3], [0, 4, 6], [0, 6, 2], [1, 3, 7], [1, 7, 5]]
)  # fmt: skip
CUBE_NYU40 = np.array([1, 1, 2, 2, 7, 7, 40, 0], dtype=np.uint16)  # wall, floor, table, other prop, nothing
CUBE_SEMANTIC = [0, 0, 1, 1, 6, 6, -1, -1]
CUBE_SEGMENTS = [10, 10, 30, 30, 20, 20, 40, 50]
CUBE_GROUPS = {0: [20], 1: [10, 30]}
CUBE_INSTANCE = [1, 1, 1, 1, 0, 0, -1, -1]
CUBE_COLORS = np.arange(24, dtype=np.uint8).reshape(8, 3) * 10


def sens_frames(poses: Sequence[np.ndarray]) -> list[SensFrame]:
    return [SensFrame(jpeg(picture(seed=i)), depth_map(i), pose, 10 * i, 10 * i + 1) for i, pose in enumerate(poses)]


def cube_properties() -> dict[str, np.ndarray]:
    columns = {name: CUBE[:, i] for i, name in enumerate("xyz")}
    columns |= {name: CUBE_COLORS[:, i] for i, name in enumerate(("red", "green", "blue"))}
    return columns | {"alpha": np.full(8, 255, np.uint8)}


def build_scan(folder: Path, poses: Sequence[np.ndarray] | None = None) -> None:
    """One raw scan; the second of the default frames lost its pose."""
    folder.mkdir(parents=True)
    stem = folder / folder.name
    write_ply(f"{stem}_vh_clean_2.ply", cube_properties(), CUBE_FACES)
    write_ply(f"{stem}_vh_clean_2.labels.ply", cube_properties() | {"label": CUBE_NYU40}, CUBE_FACES)
    Path(f"{stem}_vh_clean_2.0.010000.segs.json").write_text(json.dumps({"segIndices": CUBE_SEGMENTS}))
    groups = [{"id": i, "objectId": i, "segments": s, "label": "thing"} for i, s in CUBE_GROUPS.items()]
    Path(f"{stem}.aggregation.json").write_text(json.dumps({"segGroups": groups}))
    alignment = " ".join(f"{v:g}" for v in ALIGNMENT.reshape(-1))
    Path(f"{stem}.txt").write_text(f"axisAlignment = {alignment}\nsceneType = Cube\n")
    if poses is None:
        first, *others = orbit()
        poses = [first, lost_pose(), *others]
    write_sens(f"{stem}.sens", color_camera=COLOR, depth_camera=DEPTH, frames=sens_frames(poses))


def build_scannet(root: Path) -> None:
    for name in ("scene0001_00", "scene0000_01", "scene0000_00"):
        build_scan(root / "scans" / name)


def build_frames(folder: Path, numbers: Sequence[int] = (0, 20, 100, 3)) -> None:
    """One scene of exported frames."""
    for part in ("color", "depth"):
        (folder / part).mkdir(parents=True)
    for index, (number, pose) in enumerate(zip(sorted(numbers), orbit(len(numbers)))):
        picture(seed=index).save(folder / "color" / f"{number}.jpg", quality=95)
        save_depth(folder / "depth" / f"{number}.png", depth_map(index))
        save_matrix(folder / "pose" / f"{number}.txt", pose)
    for kind, camera in (("color", COLOR), ("depth", DEPTH)):
        save_matrix(folder / "intrinsic" / f"intrinsic_{kind}.txt", intrinsic_matrix(camera))


def build_scannet_frames(root: Path) -> None:
    for name in ("scene0002_00", "scene0001_00"):
        build_frames(root / name)


POINTS = np.random.default_rng(5).uniform(-0.4, 0.4, (30, 3))


def project(camera: Camera, pose: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """Pixels (N, 2) of world points through a pinhole."""
    local = (xyz - pose[:3, 3]) @ pose[:3, :3]
    return local[:, :2] / local[:, 2:] * [camera.fx, camera.fy] + [camera.cx, camera.cy]


def write_colmap(
    folder: Path,
    names: Sequence[str],
    poses: np.ndarray,
    model: str = "PINHOLE",
    parameters: Sequence[float] | None = None,
    shift: np.ndarray | None = None,
) -> None:
    """A binary COLMAP model in which every image sees all of :data:`POINTS`, and one more keypoint that is no point.

    ``shift`` (3,) is added to points and poses alike.
    """
    from scipy.spatial.transform import Rotation

    folder.mkdir(parents=True)
    shift = np.zeros(3) if shift is None else shift
    if parameters is None:  # COLMAP's first pixel has its centre at (0.5, 0.5)
        parameters = (COLOR.fx, COLOR.fy, COLOR.cx + 0.5, COLOR.cy + 0.5)
    camera = struct.pack(f"<iiQQ{len(parameters)}d", 1, COLMAP_MODELS[model], COLOR.width, COLOR.height, *parameters)
    (folder / "cameras.bin").write_bytes(struct.pack("<Q", 1) + camera)
    images = struct.pack("<Q", len(names))
    for number, (name, pose) in enumerate(zip(names, poses), 1):
        rotation = pose[:3, :3].T
        x, y, z, w = Rotation.from_matrix(rotation).as_quat()
        translation = -rotation @ (pose[:3, 3] + shift)
        images += struct.pack("<i7di", number, w, x, y, z, *translation, 1) + name.encode() + b"\0"
        keypoints = struct.pack("<ddq", 1.0, 2.0, -1)
        for point, (u, v) in enumerate(project(COLOR, pose, POINTS), 1):
            keypoints += struct.pack("<ddq", u + 0.5, v + 0.5, point)
        images += struct.pack("<Q", 1 + len(POINTS)) + keypoints
    (folder / "images.bin").write_bytes(images)
    points = struct.pack("<Q", len(POINTS))
    for number, xyz in enumerate(POINTS + shift, 1):
        points += struct.pack("<q3d3BdQ", number, *xyz, 10, 20, 30, 0.25, len(names))
        points += b"".join(struct.pack("<ii", image, number) for image in range(1, len(names) + 1))
    (folder / "points3D.bin").write_bytes(points)


def build_instance(folder: Path, names: Sequence[str] = ("001.jpg", "002.jpg", "003.jpg", "010.jpg")) -> None:
    """One MVImgNet instance with masks; the left half of each is the object."""
    write_colmap(folder / "sparse" / "0", names, orbit(len(names)))
    for part in ("images", "masks"):
        (folder / part).mkdir()
    mask = np.zeros((COLOR.height, COLOR.width), np.uint8)
    mask[:, : COLOR.width // 2] = 255
    for seed, name in enumerate(names):
        picture(seed=seed).save(folder / "images" / name, quality=95)
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")


def build_mvimgnet(root: Path) -> None:
    for name in ("7/1a0001", "7/0f0002", "12/0c0003"):
        build_instance(root / name)


OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def build_capture(folder: Path, absent: int = 1) -> None:
    """One transforms.json capture with depth and masks; ``absent`` more frames are listed than exist."""
    for part in ("images", "depth", "masks"):
        (folder / part).mkdir(parents=True)
    frames = []
    for index, pose in enumerate(orbit(VIEWS + absent)):
        name = f"{index:03d}"
        frame = {"file_path": f"./images/{name}.jpg", "transform_matrix": (pose @ OPENGL_FROM_OPENCV).tolist()}
        frames.append(frame | {"depth_file_path": f"depth/{name}.png", "mask_path": f"masks/{name}.png"})
        if index < VIEWS:
            picture(seed=index).save(folder / "images" / f"{name}.jpg", quality=95)
            save_depth(folder / "depth" / f"{name}.png", depth_map(index))
            Image.new("L", (COLOR.width, COLOR.height), 255).save(folder / "masks" / f"{name}.png")
    shared = {"fl_x": COLOR.fx, "fl_y": COLOR.fy, "cx": COLOR.cx + 0.5, "cy": COLOR.cy + 0.5}
    content = shared | {"w": float(COLOR.width), "h": float(COLOR.height), "frames": frames[::-1]}
    (folder / "transforms.json").write_text(json.dumps(content))


def build_transforms(root: Path) -> None:
    for name in ("office", "fox"):
        build_capture(root / name)


def build_image_pairs(root: Path) -> None:
    for place, count in (("castle", 3), ("bridge", 2)):
        (root / place).mkdir(parents=True)
        for index in range(count):
            picture(seed=index).save(root / place / f"{index}.jpg")


def build_stereo_flow(root: Path) -> None:
    """Two places with two rectified pairs and a pair with flow each; a pixel of each map is unknown."""
    rng = np.random.default_rng(0)
    for place in ("court", "yard"):
        for first, second, target, count in (("left", "right", "disparity", 2), ("first", "second", "flow", 1)):
            for folder in (first, second, target):
                (root / place / folder).mkdir(parents=True)
            for index in range(count):
                for number, folder in enumerate((first, second)):
                    picture(seed=2 * index + number).save(root / place / folder / f"{index}.png")
                values = rng.uniform(1, 6, (COLOR.height, COLOR.width, 2)).astype(np.float32)
                values[2, 3] = np.nan
                if target == "flow":
                    write_flow(root / place / target / f"{index}.flo", values)
                else:
                    write_pfm(root / place / target / f"{index}.pfm", values[..., 0])


def build_point_files(root: Path) -> None:
    """Two labelled scenes, one in a PLY file and one in NumPy's."""
    for name in ("bedroom", "attic"):
        (root / name).mkdir(parents=True)
    labels = np.array([0, 0, 1, 1, 2, 2, -1, -1])
    write_ply(root / "bedroom" / "scan.ply", cube_properties() | {"label": labels.astype(np.int16)}, CUBE_FACES)
    np.savez(root / "attic" / "points.npz", xyz=CUBE, colors=CUBE_COLORS, labels=labels)
    (root / "classes.txt").write_text("wall\nfloor\nshower curtain\n")


#: Objects: points of a unit ball, and of one that is twice as tall.
BALL = np.random.default_rng(6).normal(size=(60, 3))
BALL /= np.linalg.norm(BALL, axis=1, keepdims=True)
TALL = BALL * [1, 1, 2]


def build_shapenet55(root: Path) -> None:
    (root / "shapenet_pc").mkdir(parents=True)
    (root / "ShapeNet-55").mkdir()
    subsets = {"train": ["02691156-1a04", "04379243-00ff"], "test": ["03001627-7b31"]}
    for subset, names in subsets.items():
        (root / "ShapeNet-55" / f"{subset}.txt").write_text("".join(f"{name}.npy\n" for name in names))
        for name in names:
            np.save(root / "shapenet_pc" / f"{name}.npy", (BALL if subset == "train" else TALL).astype(np.float32))


def build_rows(file: Path, labels: Sequence[int], column: bool = False) -> None:
    """An HDF5 file of clouds, the last of them tall."""
    import h5py

    file.parent.mkdir(parents=True, exist_ok=True)
    clouds = np.stack([BALL] * (len(labels) - 1) + [TALL]).astype(np.float32)
    with h5py.File(file, "w") as opened:
        opened["data"] = clouds
        opened["label"] = np.array(labels, np.uint8).reshape((-1, 1) if column else -1)


def build_modelnet_hdf5(root: Path) -> None:
    for name, labels in (("test0", [33]), ("train0", [0, 39]), ("train1", [7, 7])):
        build_rows(root / f"ply_data_{name}.h5", labels, column=True)


def build_modelnet_resampled(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "modelnet40_shape_names.txt").write_text("airplane\nnight_stand\n")
    subsets = {"train": ["airplane_0001", "night_stand_0001"], "test": ["night_stand_0201"]}
    for subset, names in subsets.items():
        (root / f"modelnet40_{subset}.txt").write_text("\n".join(names))
        for name in names:
            folder = root / name.rpartition("_")[0]
            folder.mkdir(exist_ok=True)
            xyz = BALL if subset == "train" else TALL
            np.savetxt(folder / f"{name}.txt", np.concatenate([xyz, BALL], 1), fmt="%.6f", delimiter=",")


def build_scanobjectnn(root: Path, variant: str = "") -> None:
    build_rows(root / f"training_objectdataset{variant}.h5", [0, 14])
    build_rows(root / f"test_objectdataset{variant}.h5", [3])


def build_scanobjectnn_hardest(root: Path) -> None:
    build_scanobjectnn(root, "_augmentedrot_scale75")


def build_object_arrays(root: Path) -> None:
    """Clouds with names of their own in one file, stored as they are."""
    root.mkdir(parents=True)
    clouds = np.stack([BALL, TALL, BALL]).astype(np.float16)
    classes = np.array(["ball", "egg"])
    np.savez(root / "shapes.npz", points=clouds, label=[0, 1, 0], classes=classes, fname=["b0.off", "e0.off", "b1.off"])


def off_text(vertices: np.ndarray, faces: np.ndarray, head: str = "OFF\n{} {} 0\n") -> str:
    rows = [" ".join(f"{value:g}" for value in vertex) for vertex in vertices]
    rows += [" ".join(map(str, [len(face), *face])) for face in faces]
    return head.format(len(vertices), len(faces)) + "\n".join(rows) + "\n"


def build_object_folders(root: Path) -> None:
    """Meshes as ModelNet lays them out, one with its counts in the first line as ModelNet has; and points."""
    for subset, names in (("train", ["box_0001", "box_0002"]), ("test", ["box_0101"])):
        (root / "box" / subset).mkdir(parents=True)
        for name in names:
            head = "OFF{} {} 0\n" if name == "box_0002" else "OFF\n{} {} 0\n"
            (root / "box" / subset / f"{name}.off").write_text(off_text(CUBE, CUBE_FACES, head))
    (root / "ball").mkdir()
    np.savetxt(root / "ball" / "b1.xyz", BALL)
    write_ply(root / "ball" / "b2.ply", {axis: TALL[:, i].astype(np.float32) for i, axis in enumerate("xyz")})


def build_radiance_grids(root: Path) -> None:
    """Grids as published, one of them flat and y up; with boxes, labels and a split."""
    rng = np.random.default_rng(8)
    for folder in ("features", "obb", "semantics"):
        (root / folder).mkdir(parents=True)
    corners = {"bbox_min": np.zeros(3), "bbox_max": np.array([3.0, 2.0, 2.5])}
    for name in ("3dfront_0001_00", "3dfront_0002_00"):
        values = rng.random((6, 4, 5, 4), np.float32) * [1, 1, 1, 12] - [0, 0, 0, 8]
        stored = {"rgbsigma": values.astype(np.float32), "resolution": np.array(values.shape[:3])}
        if name.startswith("3dfront_0002"):  # y up, x fastest: the file's axes z, x, y are ours
            stored["rgbsigma"] = stored["rgbsigma"].transpose(0, 2, 1, 3).reshape(-1, 4)
            stored["resolution"] = np.array([4, 5, 6])
        np.savez(
            root / "features" / f"{name}.npz", scale=1.0, offset=np.zeros(3), from_mitsuba=True, **stored, **corners
        )
        np.save(root / "obb" / f"{name}.npy", np.array([[3, 2, 2.5, 2, 1, 3, 0.25]]))
        np.save(root / "semantics" / f"{name}.npy", rng.integers(0, 3, (6, 4, 5)))
    names = {"train_scenes": ["3dfront_0001_00"], "val_scenes": ["3dfront_0002_00"], "test_scenes": ["3dfront_0002_00"]}
    np.savez(root / "3dfront_split.npz", **{key: np.array(value) for key, value in names.items()})
    (root / "classes.txt").write_text("bed\nchair\n")


#: Builder of each kind that :func:`geo3d.datasets.open_dataset` knows: writes at least two scenes into a new folder.
BUILDERS: dict[str, Callable[[Path], None]] = {
    "scannet": build_scannet,
    "scannet_frames": build_scannet_frames,
    "mvimgnet": build_mvimgnet,
    "transforms": build_transforms,
    "stereo_flow": build_stereo_flow,
    "image_pairs": build_image_pairs,
    "shapenet55": build_shapenet55,
    "modelnet_hdf5": build_modelnet_hdf5,
    "modelnet_resampled": build_modelnet_resampled,
    "scanobjectnn": build_scanobjectnn,
    "scanobjectnn_hardest": build_scanobjectnn_hardest,
    "object_arrays": build_object_arrays,
    "radiance_grids": build_radiance_grids,
    "object_folders": build_object_folders,
    "point_files": build_point_files,
}
#: Kinds whose scenes are folders, not files or rows of them.
FOLDER_SCENES = tuple(kind for kind in BUILDERS if _REGISTRY[kind].folder_scenes)
