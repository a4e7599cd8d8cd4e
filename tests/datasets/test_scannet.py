"""Raw ScanNet scans: a cube whose labels are known, damage of every file, and a genuine scan of the first release."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_builders import (
    ALIGNMENT,
    COLOR,
    CUBE,
    CUBE_COLORS,
    CUBE_FACES,
    CUBE_INSTANCE,
    CUBE_NYU40,
    CUBE_SEMANTIC,
    DEPTH,
    build_frames,
    build_scan,
    build_scannet,
    cube_properties,
    depth_map,
    orbit,
)

from geo3d.datasets import BrokenScene, Quarantine, ScanNet, open_dataset
from geo3d.datasets.ply import read_ply
from geo3d.datasets.scannet import SCANNET20_CLASSES, SCANNET20_NYU40_IDS, ScanNetScene
from geo3d.viz.ply import write_ply

NAME = "scene0000_00"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_scan(tmp_path / "scans" / NAME)
    return tmp_path / "scans" / NAME


def opened(folder: Path) -> ScanNetScene:
    (scene,) = ScanNet(folder.parent.parent)
    return scene


def aligned(xyz: np.ndarray) -> np.ndarray:
    return xyz @ ALIGNMENT[:3, :3].T + ALIGNMENT[:3, 3]


def test_mesh_is_aligned_and_labelled(folder):
    mesh = opened(folder).mesh()
    np.testing.assert_allclose(mesh.vertices, aligned(CUBE), atol=1e-7)  # float32
    assert mesh.faces.tolist() == CUBE_FACES.tolist()
    np.testing.assert_allclose(mesh.colors, CUBE_COLORS / 255, atol=1e-7)
    assert mesh.semantic.tolist() == CUBE_SEMANTIC
    assert mesh.instance.tolist() == CUBE_INSTANCE
    # The corners of a closed cube point away from its centre, more or less along the diagonals.
    outwards = mesh.vertices - mesh.vertices.mean(0)
    assert ((mesh.normals * outwards).sum(1) > 0.7).all()


@pytest.mark.parametrize("stored", ["f4", "u2"])
def test_colors_of_a_mesh_by_their_stored_type(folder, stored):
    names = ("red", "green", "blue")
    colors = CUBE_COLORS / 255 if stored == "f4" else CUBE_COLORS.astype(np.uint16) * 257
    columns = cube_properties() | {f"diffuse_{name}": colors[:, i].astype(stored) for i, name in enumerate(names)}
    write_ply(folder / f"{NAME}_vh_clean_2.ply", {k: c for k, c in columns.items() if k not in names}, CUBE_FACES)
    np.testing.assert_allclose(opened(folder).mesh().colors, CUBE_COLORS / 255, atol=1e-6)


def test_points_are_the_vertices(folder):
    scene = opened(folder)
    mesh, points = scene.mesh(), scene.points()
    for ours, theirs in (
        ("xyz", "vertices"),
        *((name, name) for name in ("colors", "normals", "semantic", "instance")),
    ):
        assert np.array_equal(getattr(points, ours).numpy(), getattr(mesh, theirs))


def test_poses_are_aligned_with_the_mesh(folder):
    scene = opened(folder)
    first, *others = orbit()
    assert list(scene.view_names) == ["0", "2", "3", "4"]  # the frame numbered 1 lost its pose
    for index, pose in enumerate([first, *others]):
        np.testing.assert_allclose(scene.pose(index), ALIGNMENT @ pose, atol=1e-6)  # float32
        # A corner of the mesh is seen in the same pixel as before the alignment.
        before = np.linalg.inv(pose) @ [*CUBE[7], 1]
        after = np.linalg.inv(scene.pose(index)) @ [*scene.mesh().vertices[7], 1]
        np.testing.assert_allclose(before, after, atol=1e-5)  # float32
    assert scene.metric
    assert scene.depth_camera(0).width == DEPTH.width
    (remark,) = scene.remarks
    assert remark.count == 1


def test_without_alignment_the_scan_stays_as_it_is(folder):
    (folder / f"{NAME}.txt").write_text("colorHeight = 968\nsceneType = Bedroom / Hotel\n")
    np.testing.assert_array_equal(opened(folder).mesh().vertices, CUBE)
    (folder / f"{NAME}.txt").unlink()
    np.testing.assert_array_equal(opened(folder).mesh().vertices, CUBE)
    np.testing.assert_allclose(opened(folder).pose(0), orbit()[0], atol=1e-6)


def test_nyu40_ids(folder):
    scene = opened(folder)
    assert scene.nyu40().tolist() == CUBE_NYU40.tolist()
    assert len(SCANNET20_CLASSES) == len(SCANNET20_NYU40_IDS) == 20
    assert (*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39) == SCANNET20_NYU40_IDS


RAW_LABELS = np.array([1, 1, 250, 250, 7, 7, 1191, 0], dtype=np.uint16)
V1, V2 = "scannet-labels.combined.tsv", "scannetv2-labels.combined.tsv"
V1_TABLE = 'id\tcategory\tcount\tnyu40id\n1\twall\t3\t1\n7\tdesk\t2\t14\n250\tnot a "thing\t1\t2\n1191\tx\t1\t\n'
V2_TABLE = "nyu40id\traw_category\tid\n1\twall\t1\n14\tdesk\t7\n2\tthing\t250\n40\tx\t1191\n"


def relabel(folder: Path, labels: np.ndarray) -> None:
    write_ply(folder / f"{NAME}_vh_clean_2.labels.ply", cube_properties() | {"label": labels}, CUBE_FACES)


def place(folder: Path, where: str, file: str, table: str) -> None:
    ({"root": folder.parent.parent, "scans": folder.parent, "scan": folder}[where] / file).write_text(table)


def without_alignment(folder: Path) -> None:
    (folder / f"{NAME}.txt").write_text("sceneType = Cube\n")


@pytest.mark.parametrize("where", ["root", "scans", "scan"])
def test_raw_ids_of_the_first_release(folder, where):
    relabel(folder, RAW_LABELS)
    place(folder, where, V1, V1_TABLE)
    scene = opened(folder)
    assert scene.nyu40().tolist() == [1, 1, 2, 2, 14, 14, 0, 0]
    assert scene.mesh().semantic.tolist() == [0, 0, 1, 1, 12, 12, -1, -1]
    assert len(scene.remarks) == 1, "of the lost frame, not of labels"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_raw_ids_that_are_all_small_are_translated_all_the_same(folder, end, mark):
    relabel(folder, np.array([1, 1, 7, 7, 7, 2, 2, 0], dtype=np.uint16))
    table = "ID\tcategory\tNYU40ID\n1\twall\t1\n2\tchair\t5\n7\tdesk\t14\n\n".replace("\n", end)
    (folder.parent / V1).write_text(mark + table, encoding="utf-8", newline="")
    without_alignment(folder)
    assert opened(folder).nyu40().tolist() == [1, 1, 14, 14, 14, 5, 5, 0]


@pytest.mark.parametrize("told_by", ["table", "table and no alignment", "alignment", "lists", "both tables, alignment"])
def test_stray_labels_of_the_second_release(folder, told_by):
    """As in scene0270_00 of the official split: one id is no nyu40 id, the others are."""
    stray = np.where(CUBE_NYU40 == 40, 50, CUBE_NYU40)
    relabel(folder, stray)
    if "no alignment" in told_by or told_by == "lists":
        without_alignment(folder)
    if "table" in told_by:
        place(folder, "root", V2, V2_TABLE)
    if "both" in told_by:
        place(folder, "root", V1, V1_TABLE)
    if told_by == "lists":
        (folder.parent.parent / "scannetv2_train.txt").write_text(f"{NAME}\n")
    scene = opened(folder)
    assert len(scene.remarks) == 1, "labels have not been read"
    assert scene.points().semantic.tolist() == CUBE_SEMANTIC
    assert scene.nyu40().tolist() == np.where(stray == 50, 0, stray).tolist()
    remark = scene.remarks[-1]
    assert (remark.count, remark.file) == (1, str(folder / f"{NAME}_vh_clean_2.labels.ply"))
    assert "1 vertices left unlabelled: their labels (50) are no ids of this release" in str(remark)


def test_remarks_on_labels_where_there_are_no_views(folder):
    relabel(folder, np.where(CUBE_NYU40 == 40, 50, CUBE_NYU40))
    (folder / f"{NAME}.sens").unlink()
    (remark,) = opened(folder).remarks
    assert "their labels (50)" in str(remark)


def test_stray_ids_of_the_first_release(folder):
    relabel(folder, RAW_LABELS)
    place(folder, "scan", V1, "id\tnyu40id\n1\t1\n7\t14\n")
    scene = opened(folder)
    assert scene.nyu40().tolist() == [1, 1, 0, 0, 14, 14, 0, 0]
    assert (scene.remarks[-1].count, "(250, 1191)" in str(scene.remarks[-1])) == (3, True)


def test_the_table_that_lies_nearest_tells_the_release(folder):
    relabel(folder, RAW_LABELS)
    place(folder, "root", V2, V2_TABLE)
    place(folder, "scans", V1, V1_TABLE)
    assert opened(folder).nyu40().tolist() == [1, 1, 2, 2, 14, 14, 0, 0]


def test_labels_of_no_known_release(folder):
    labels = folder / f"{NAME}_vh_clean_2.labels.ply"
    without_alignment(folder)
    scene = opened(folder)
    assert scene.nyu40().tolist() == CUBE_NYU40.tolist(), "what is distributed today"
    assert "7 labels taken for nyu40 ids: neither a label table nor an axisAlignment" in str(scene.remarks[-1])
    relabel(folder, RAW_LABELS)
    with pytest.raises(BrokenScene, match=rf"3 labels exceed 40, .* put its label table .*{V2} .*{V1}") as error:
        opened(folder).nyu40()
    assert error.value.file == str(labels)
    (folder.parent.parent / "scannetv1_val.txt").write_text(NAME)
    with pytest.raises(BrokenScene, match=rf"raw label ids; put {V1}"):
        opened(folder).nyu40()
    place(folder, "root", V1, V1_TABLE)
    place(folder, "root", V2, V2_TABLE)
    with pytest.raises(BrokenScene, match=rf"lies beside {V1}; keep the one whose release the scan {NAME} is of"):
        opened(folder).nyu40()
    (folder.parent.parent / V1).unlink()
    relabel(folder, np.where(RAW_LABELS == 7, 300, RAW_LABELS))
    with pytest.raises(BrokenScene, match=r"5 of 7 labels \(250, 300, 1191\) are no ids of its release"):
        opened(folder).nyu40()


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("id\tcategory\n1\twall\n", "line 1: no usable id and nyu40id: 'nyu40id' is not in list"),
        ("id\tnyu40id\n1\t1\n²\t2\n", "line 3: .*'²' is not a whole number"),
        ("id\tnyu40id\n1\t41\n", "line 2: .*41 is no nyu40 id"),
        ("id\tnyu40id\n1\t-1\n", "line 2: .*-1 is no nyu40 id"),
        ("", "line 1: no usable id"),
        ("id\tnyu40id\n" + "9" * 200_000 + "\t1\n", "line 2: .*field larger than"),
    ],
)
def test_damaged_label_tables(folder, table, reason):
    place(folder, "root", V1, table)
    with pytest.raises(BrokenScene, match=reason) as error:
        opened(folder).nyu40()
    assert error.value.file == str(folder.parent.parent / V1)


def test_labels_without_instances(folder):
    (folder / f"{NAME}.aggregation.json").unlink()
    mesh = opened(folder).mesh()
    assert mesh.instance is None
    assert mesh.semantic.tolist() == CUBE_SEMANTIC
    assert opened(folder).points().instance is None


def test_a_test_scan_has_no_labels(folder):
    (folder / f"{NAME}_vh_clean_2.labels.ply").unlink()
    scene = opened(folder)
    assert "labels" not in scene.parts
    assert scene.mesh().semantic is None
    assert scene.mesh().instance is None


def test_the_aggregation_of_the_decimated_mesh_comes_first(folder):
    plain, fine = folder / f"{NAME}.aggregation.json", folder / f"{NAME}_vh_clean.aggregation.json"
    other = {"segGroups": [{"id": 0, "objectId": 0, "segments": [10], "label": "thing"}]}
    fine.write_text(json.dumps(other))
    assert opened(folder).mesh().instance.tolist() == CUBE_INSTANCE
    plain.unlink()
    assert opened(folder).mesh().instance.tolist() == [0, 0, -1, -1, -1, -1, -1, -1]


def test_frames_exported_beside_the_mesh_serve_as_views(folder):
    (folder / f"{NAME}.sens").unlink()
    build_frames(folder)
    scene = opened(folder)
    assert scene.parts == {"mesh", "points", "labels", "views", "poses", "depth"}
    assert list(scene.view_names) == ["0", "3", "20", "100"]
    np.testing.assert_allclose(scene.pose(2), ALIGNMENT @ orbit()[2], atol=1e-8)  # nine decimals in the text
    np.testing.assert_allclose(scene.depth(2), depth_map(2), atol=5e-4 + 1e-6)
    assert open_dataset(folder).kind == "scannet"


def test_roots(folder):
    build_scan(folder.parent.parent / "scans_test" / "scene0707_00")
    root = folder.parent.parent
    assert list(ScanNet(root).scene_names) == [NAME, "scene0707_00"]
    assert list(ScanNet(folder.parent).scene_names) == [NAME]
    assert list(ScanNet(folder).scene_names) == [NAME]
    renamed = folder.rename(folder.with_name("living room"))
    (scene,) = ScanNet(renamed)
    assert scene.name == "living room"
    assert len(scene.mesh().vertices) == 8


def test_official_split(tmp_path):
    build_scannet(tmp_path)
    (tmp_path / "scannetv2_val.txt").write_text("scene0001_00\nscene0000_00\n")
    dataset = open_dataset(tmp_path, split=tmp_path / "scannetv2_val.txt")
    assert [scene.name for scene in dataset] == ["scene0001_00", "scene0000_00"]


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGE = {
    "mesh cut": (lambda f: cut(f / f"{NAME}_vh_clean_2.ply", 400), "mesh", "_vh_clean_2.ply", 400, "ends inside"),
    "mesh empty": (lambda f: cut(f / f"{NAME}_vh_clean_2.ply", 0), "mesh", "_vh_clean_2.ply", 0, "not a PLY file"),
    "vertex is no number": (
        lambda f: write_ply(f / f"{NAME}_vh_clean_2.ply", cube_properties() | {"y": [*CUBE[:7, 1], np.inf]}),
        "mesh", "_vh_clean_2.ply", None, "1 points are damaged; number 7",
    ),
    "labels cut": (lambda f: cut(f / f"{NAME}_vh_clean_2.labels.ply", 400), "mesh", "labels.ply", 400, "ends inside"),
    "labels of another mesh": (
        lambda f: write_ply(f / f"{NAME}_vh_clean_2.labels.ply", {"x": CUBE[:3, 0], "label": CUBE_NYU40[:3]}),
        "mesh", "labels.ply", None, "holds 3 vertices, the mesh 8",
    ),
    "no label property": (
        lambda f: write_ply(f / f"{NAME}_vh_clean_2.labels.ply", {"x": CUBE[:, 0]}),
        "mesh", "labels.ply", None, "no property 'label'",
    ),
    "segments cut": (
        lambda f: cut(f / f"{NAME}_vh_clean_2.0.010000.segs.json", 25), "mesh", "segs.json", 25, "damaged JSON",
    ),
    "segments of another mesh": (
        lambda f: (f / f"{NAME}_vh_clean_2.0.010000.segs.json").write_text('{"segIndices": [1, 2]}'),
        "mesh", "segs.json", None, r"segIndices has shape \(2,\), the mesh 8 vertices",
    ),
    "no segments": (
        lambda f: (f / f"{NAME}_vh_clean_2.0.010000.segs.json").write_text('{"other": 1}'),
        "mesh", "segs.json", None, "not a segmentation of ScanNet: KeyError",
    ),
    "aggregation cut": (
        lambda f: cut(f / f"{NAME}.aggregation.json", 50), "mesh", "aggregation.json", 50, "damaged JSON",
    ),
    "aggregation is a list": (
        lambda f: (f / f"{NAME}.aggregation.json").write_text("[1]"), "mesh", "aggregation.json", 0, "JSON object",
    ),
    "unknown segment": (
        lambda f: (f / f"{NAME}.aggregation.json").write_text('{"segGroups": [{"objectId": 4, "segments": [77]}]}'),
        "mesh", "aggregation.json", None, "object 4 owns segment 77, which no vertex",
    ),
    "label is no number": (
        lambda f: write_ply(f / f"{NAME}_vh_clean_2.labels.ply", {"label": np.where(CUBE_NYU40 == 7, np.nan, 1)}),
        "mesh", "labels.ply", None, "a label must be a whole number; that of point 4 is nan",
    ),
    "mesh without vertices": (
        lambda f: write_ply(f / f"{NAME}_vh_clean_2.ply", dict.fromkeys("xyz", CUBE[:0, 0])),
        "mesh", "_vh_clean_2.ply", None, "holds no point",
    ),
    "colours out of range": (
        lambda f: write_ply(f / f"{NAME}_vh_clean_2.ply", cube_properties() | {"red": np.full(8, 1e6)}),
        "mesh", "_vh_clean_2.ply", None, "must lie within 0 to 255, or to 65535",
    ),
    "absurd object": (
        lambda f: (f / f"{NAME}.aggregation.json").write_text('{"segGroups": [{"objectId": 9e9, "segments": []}]}'),
        "mesh", "aggregation.json", None, "an object has the number 9000000000",
    ),
    "alignment of NaN": (
        lambda f: (f / f"{NAME}.txt").write_text(f"axisAlignment = {'nan ' * 16}"),
        "mesh", ".txt", None, "axisAlignment is no rotation with a translation",
    ),
    "alignment of zeros": (
        lambda f: (f / f"{NAME}.txt").write_text(f"\ufeffaxisAlignment = {'0 ' * 16}", encoding="utf-8"),
        "mesh", ".txt", None, "axisAlignment is no rotation with a translation",
    ),
    "alignment cut": (
        lambda f: (f / f"{NAME}.txt").write_text("axisAlignment = 1 0 0"),
        "mesh", ".txt", None, "16 numbers .* found 3",
    ),
    "text file is binary": (
        lambda f: (f / f"{NAME}.txt").write_bytes(b"ab\xff"), "mesh", ".txt", 2, "not UTF-8",
    ),
    "stream cut in its header": (lambda f: cut(f / f"{NAME}.sens", 100), "views", ".sens", 100, "inside the header"),
    "stream cut in a frame header": (lambda f: cut(f / f"{NAME}.sens", 350), "views", ".sens", 309, "the file holds 0"),
    "stream of another kind": (
        lambda f: (f / f"{NAME}.sens").write_bytes(b"PK\x03\x04" * 100), "views", ".sens", 0, "not a .sens file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_reported_and_not_fatal(folder, damage):
    act, part, file, offset, reason = DAMAGE[damage]
    build_scan(folder.with_name("scene0001_00"))
    act(folder)
    read = (lambda scene: scene.mesh()) if part == "mesh" else (lambda scene: scene.view_names)
    dataset = ScanNet(folder.parent.parent)
    with pytest.raises(BrokenScene, match=reason) as error:
        read(dataset[0])
    assert error.value.scene == NAME
    assert error.value.file.endswith(file)
    assert error.value.offset == offset
    read(dataset[1])
    if part == "views":
        assert [scene.name for scene in dataset.readable("views")] == ["scene0001_00"]
        assert [entry.scene for entry in dataset.quarantine.entries] == [NAME]
        with pytest.raises(BrokenScene):
            list(ScanNet(folder.parent.parent, Quarantine(strict=True)).readable("views"))


def test_an_empty_folder_is_reported(folder):
    folder.with_name("scene0002_00").mkdir()
    dataset = ScanNet(folder.parent.parent)
    assert [scene.name for scene in dataset.readable()] == [NAME]
    assert "scene scene0002_00" in dataset.quarantine.report()
    assert "holds neither scene0002_00_vh_clean_2.ply nor scene0002_00.sens" in dataset.quarantine.report()


@pytest.fixture(scope="session")
def genuine(data_folder: Path) -> ScanNetScene:
    (scene,) = open_dataset(data_folder / "scannet")
    return scene


def test_genuine_scan(genuine):
    assert genuine.name == NAME
    assert genuine.parts == {"mesh", "points", "labels"}
    mesh = genuine.mesh()
    assert (len(mesh.vertices), len(mesh.faces)) == (81_369, 153_587)
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-6)  # float32
    assert sorted(set(mesh.instance.tolist())) == list(range(-1, 55))
    segments = json.loads((genuine.root / f"{NAME}_vh_clean_2.0.010000.segs.json").read_text())["segIndices"]
    assert len(set(segments)) == 668
    # A bedroom some metres wide; its floor is level and at z = 0, its walls are upright.
    assert (np.ptp(mesh.vertices, axis=0) > 2).all()
    assert (np.ptp(mesh.vertices, axis=0) < 12).all()
    floor, wall = (mesh.semantic == SCANNET20_CLASSES.index(name) for name in ("floor", "wall"))
    assert np.median(mesh.normals[floor, 2]) > 0.99
    assert abs(np.median(mesh.vertices[floor, 2])) < 0.1
    assert np.median(np.abs(mesh.normals[wall, 2])) < 0.1


def test_genuine_labels_of_the_first_release(genuine):
    raw = read_ply(genuine.root / f"{NAME}_vh_clean_2.labels.ply", NAME, faces=False).vertex["label"]
    assert raw.max() == 230, "the file holds raw ids"
    semantic = genuine.mesh().semantic
    present = {SCANNET20_CLASSES[i] for i in np.unique(semantic) if i >= 0}
    assert {"wall", "floor", "bed", "cabinet", "desk", "toilet", "sink", "door", "window", "curtain"} <= present
    assert not present & {"bathtub", "shower curtain", "chair", "picture"}
    assert genuine.nyu40().max() == 40


def test_genuine_instances_agree_with_labels(genuine):
    """The annotators' category of an object, by the table, is the class that its vertices carry."""
    with open(genuine.root.parent.parent / "scannet-labels.combined.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    nyu40_of = {row["category"]: int(row["nyu40id"] or 0) for row in rows}
    groups = json.loads((genuine.root / f"{NAME}.aggregation.json").read_text())["segGroups"]
    instance, nyu40 = genuine.mesh().instance, genuine.nyu40()
    known = [group for group in groups if group["label"] in nyu40_of]
    assert {group["label"] for group in groups if group not in known} == {"dishrack"}
    assert len(known) == 54
    for group in known:
        assert (nyu40[instance == group["objectId"]] == nyu40_of[group["label"]]).all(), group["label"]


def test_genuine_scan_with_a_stream(genuine, tmp_path):
    """The genuine mesh beside a stream: one scene has both."""
    folder = tmp_path / "scans" / NAME
    build_scan(tmp_path / "made" / NAME)
    shutil.copytree(genuine.root, folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    folder.chmod(0o755)
    shutil.copy(tmp_path / "made" / NAME / f"{NAME}.sens", folder)
    shutil.copy(genuine.root.parent.parent / "scannet-labels.combined.tsv", tmp_path)
    (scene,) = ScanNet(tmp_path)
    assert scene.parts == {"mesh", "points", "labels", "views", "poses", "depth"}
    assert scene.view(0).camera.width == COLOR.width
    assert len(scene.points()) == 81_369
