"""What commands and snippets of the documentation find in the folder where they run: small data, runs and files."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dataset_builders
import numpy as np
import torch
from geo3d_command import run as run_command
from PIL import Image
from small_runs import small_run

from geo3d.checkpoints import save_model
from geo3d.datasets import read_points
from geo3d.datasets.synthetic import SyntheticConfig, write_synthetic
from geo3d.datasets.synthetic.stereo_flow import StereoFlowConfig, write_stereo_flow
from geo3d.geometry import PointCloud
from geo3d.models import create_model
from geo3d.models.croco import CroCoConfig
from geo3d.recipes import pretrain
from geo3d.viz.points import write_points

Maker = Callable[["Desk", Path], None]


class Desk:
    """A folder that fills up with what is asked for.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lay(self, text: str) -> None:
        """Make all that a text names and that is not there yet."""
        for name, make in ITEMS.items():
            if name in text:
                self.get(name, make)

    def get(self, name: str, make: Maker | None = None) -> Path:
        """The file or folder of a name, made where it is missing."""
        path = self.folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            (make or ITEMS[name])(self, path)
        return path


def _rooms(_: Desk, path: Path) -> None:
    made = path.with_name(f"{path.name}-made")
    config = SyntheticConfig(made, scenes=3, objects=2, views=4, width=64, height=48, mesh_edge=0.15, workers=1)
    write_synthetic(config)
    shutil.move(made / "scannet", path)
    shutil.rmtree(made)


def _some_rooms(*numbers: int) -> Maker:
    def make(desk: Desk, path: Path) -> None:
        scans = sorted(p for p in desk.get("scannet/").glob("scans/*") if p.is_dir())
        for scan in (scans[number] for number in numbers):
            shutil.copytree(scan, path / "scans" / scan.name)

    return make


def _copy_of(name: str) -> Maker:
    return lambda desk, path: shutil.copytree(desk.get(name), path)


def _room_points(desk: Desk, path: Path) -> None:
    cloud = read_points(sorted(desk.get("scannet/").rglob("*_vh_clean_2.ply"))[0])
    normals = {f"n{axis}": cloud.normals[:, number].numpy() for number, axis in enumerate("xyz")}
    write_points(path, cloud, **normals)


def _object_points(_: Desk, path: Path) -> None:
    xyz = np.random.default_rng(0).normal(size=(1500, 3)) * (0.05, 0.05, 0.1)
    write_points(path, PointCloud(torch.from_numpy(xyz).float()))


def _photo(_: Desk, path: Path) -> None:
    rng = np.random.default_rng(sum(path.name.encode()))
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    small.resize((96, 72), Image.Resampling.BICUBIC).save(path)


def _photos(desk: Desk, path: Path) -> None:
    path.mkdir()
    for number in range(4):
        _photo(desk, path / f"{number:03d}.jpg")


def _built(build: Callable[[Path], None]) -> Maker:
    return lambda _, path: build(path)


def _objects(desk: Desk, path: Path) -> None:
    """Clouds of three classes, seven of each."""
    rng = np.random.default_rng(0)
    for number in range(3):
        for name in range(7):
            cloud = rng.normal(size=(300, 3)) * (1, 1 + number, 1 + 2 * number)
            file = path / f"class{number}" / f"{name}.ply"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_points(file, PointCloud(torch.from_numpy(cloud).float()))


def _run_of(recipe: str, **method: Any) -> Maker:
    def make(desk: Desk, path: Path) -> None:
        data = desk.get("objects/" if recipe == "i2p_mae" else "scannet/")
        pretrain(recipe, replace(small_run(recipe, method, data=(data,), out=path), held_out=0.0))

    return make


def _grids_of(rooms: str) -> Maker:
    def make(desk: Desk, path: Path) -> None:
        args = ("--data", desk.get(rooms), "--out", path, "--route", "depth_fusion", "--longest-side", 32)
        run_command("prepare", "grids", *args)

    return make


def _pairs(desk: Desk, path: Path) -> None:
    run_command("prepare", "pairs", "--data", desk.get("scannet/"), "--out", path)


def _own(name: str, **options: Any) -> Maker:
    return lambda _, path: save_model(create_model(name, **options), path)


# Files in their authors' layouts, of networks with fresh weights


def _published(config: CroCoConfig) -> dict[str, Any]:
    """Arguments of CroCo's constructor as the authors write them."""
    return {
        "img_size": config.image_size, "patch_size": config.patch_size, "enc_embed_dim": config.encoder_dim,
        "enc_depth": config.encoder_depth, "enc_num_heads": config.encoder_heads,
        "dec_embed_dim": config.decoder_dim, "dec_depth": config.decoder_depth,
        "dec_num_heads": config.decoder_heads, "mlp_ratio": config.mlp_ratio,
        "norm_im2_in_dec": config.norm_memory,
        "pos_embed": "cosine" if config.rope_base is None else f"RoPE{config.rope_base:g}",
    }  # fmt: skip


def _croco(name: str) -> Maker:
    def make(_: Desk, path: Path) -> None:
        model = create_model(name)
        torch.save({"model": model.state_dict(), "croco_kwargs": _published(model.config)}, path)

    return make


def _wrapped(name: str, key: str, prefix: str = "", **options: Any) -> Maker:
    def make(_: Desk, path: Path) -> None:
        state = create_model(name, **options).state_dict()
        torch.save({"epoch": 99, key: {f"{prefix}{k}": v for k, v in state.items()}}, path)

    return make


def _spark(encoder: str) -> Maker:
    def make(_: Desk, path: Path) -> None:
        state = create_model("spark", encoder=encoder).state_dict()
        config = {"sparse_encoder.input_size": 224, "dense_decoder.width": 768}
        torch.save({"module": {**state, "config": config}}, path)

    return make


def _rendered_pairs(task: str) -> Maker:
    def make(_: Desk, path: Path) -> None:
        write_stereo_flow(StereoFlowConfig(path, task=task, scenes=2, pairs=2, width=64, height=48, workers=1))

    return make


def _stereo_flow(task: str) -> Maker:
    """A file of the authors' of stereo or flow, of a small network."""

    def make(_: Desk, path: Path) -> None:
        model = create_model(f"croco_{task}_tiny", generator=torch.Generator().manual_seed(0), **_SMALL_DENSE)
        stereo = task == "stereo"
        args = Namespace(
            task=task,
            criterion="LaplacianLossBounded2()" if stereo else "LaplacianLossBounded()",
            tile_conf_mode="conf_expsigmoid_15_3" if stereo else "conf_expsigmoid_10_5",
            crop=model.config.crop,
            croco_args=_published(model.config),
        )
        torch.save({"model": model.state_dict(), "args": args}, path)

    return make


#: Sizes of small networks of stereo, flow and depth.
_SMALL_DENSE: dict[str, Any] = {"encoder_dim": 32, "encoder_heads": 2, "encoder_depth": 4, "decoder_depth": 2}
_SMALL_DENSE |= {"crop": (64, 64), "head_levels": (8, 8, 8, 8), "head_width": 8, "head_last": 8}


def _photos_of_classes(desk: Desk, path: Path) -> None:
    for name in ("chair", "cup"):
        for number in range(2):
            _photo(desk, desk.folder / f"{name}-photo.jpg")
            (path / name).mkdir(parents=True, exist_ok=True)
            shutil.move(desk.folder / f"{name}-photo.jpg", path / name / f"{number}.jpg")


#: What texts name -> how it is made.
ITEMS: dict[str, Maker] = {
    "scannet/": _rooms,
    "path/to/scannet": _copy_of("scannet/"),
    "data/scannet": _copy_of("scannet/"),
    "data/synthetic/scannet": _copy_of("scannet/"),
    "scannet/train": _some_rooms(0, 1),
    "scannet/val": _some_rooms(2),
    "rooms/learn": _some_rooms(0, 1),
    "rooms/measure": _some_rooms(2),
    "labelled/learn": _grids_of("rooms/learn"),
    "labelled/measure": _grids_of("rooms/measure"),
    "stereo/": _rendered_pairs("stereo"),
    "flow/": _rendered_pairs("flow"),
    "scans": _copy_of("scannet/"),
    "scan.ply": _room_points,
    "chair.ply": _object_points,
    "cup.ply": _object_points,
    "a.jpg": _photo,
    "b.jpg": _photo,
    "chair.jpg": _photo,
    "left.png": _photo,
    "right.png": _photo,
    "crocostereo.pth": _stereo_flow("stereo"),
    "crocoflow.pth": _stereo_flow("flow"),
    "photos": _photos,
    "captures": _built(dataset_builders.build_transforms),
    "mvimgnet": _built(dataset_builders.build_mvimgnet),
    "modelnet40": _built(dataset_builders.build_modelnet_resampled),
    "shapenet55": _built(dataset_builders.build_shapenet55),
    "objects/": _objects,
    "data/synthetic/objects_5000_seed_0": _copy_of("objects/"),
    "grids/": _grids_of("scannet/"),
    "NeRF-MAE_pretrain/pretrain": _copy_of("grids/"),
    "pairs.tsv": _pairs,
    "photos.safetensors": _own("resnet_tiny"),
    "runs/croco-001": _run_of("croco"),
    "runs/multiview-001": _run_of("multiview"),
    "runs/spark-001": _run_of("spark"),
    "runs/spark3d-001": _run_of("spark3d"),
    "runs/spark3d-002": _run_of("spark3d", model="swin3d_tiny"),
    "runs/swin3d-001": _run_of("swin3d"),
    "runs/pointmaps-001": _own("dust3r_tiny"),
    "runs/i2p_mae-001": _run_of("i2p_mae"),
    "runs/nerf_mae-001": _run_of("nerf_mae"),
    "runs/segment_grids-001": _run_of("segment_grids"),
    "runs/segment-001": _run_of("segment"),
    "runs/classify-001": _run_of("classify"),
    "runs/detect-001": _run_of("detect"),
    "runs/depth-001": _own("croco_depth_tiny", resized=40, **_SMALL_DENSE),
    "my_photos/": _photos_of_classes,
    "CroCo_V2_ViTBase_SmallDecoder.pth": _croco("croco_v2_base_small"),
    "CroCo_V2_ViTLarge_BaseDecoder.pth": _croco("croco_tiny"),
    "swin3d_s_scannet.pth": _wrapped("swin3d_s", "state_dict", "module."),
    "resnet50_1kpretrained_timm_style.pth": lambda _, path: torch.save(create_model("resnet50").state_dict(), path),
    "res50_withdecoder_1kpretrained_spark_style.pth": _spark("resnet50"),
    "ckpt-best.pth": _wrapped("i2p_mae_base", "base_model", "module."),
    "modelnet40.pth": _wrapped("i2p_mae_modelnet40", "base_model", "module."),
}
__all__ = ["ITEMS", "Desk"]
