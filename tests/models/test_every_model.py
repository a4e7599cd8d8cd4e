"""Every registered model: forward, backward, features, and the way through a file and back."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch

from geo3d import InputError, create_model, list_models, save_model
from geo3d.geometry import PointCloud
from geo3d.models.croco import visible_from_mask
from geo3d.models.registry import model_entry
from geo3d.models.spark import SparK


class CroCoInputs:
    """Small, oblong inputs for the CroCo family."""

    options: ClassVar = {"image_size": (32, 48)}

    @staticmethod
    def run(model):
        generator = torch.Generator().manual_seed(0)
        first, second = torch.randn(2, 2, 3, 32, 48, generator=generator)
        tokens = (32 // model.config.patch_size) * (48 // model.config.patch_size)
        mask = torch.rand(2, tokens, generator=generator).argsort(1) < int(0.7 * tokens)
        return model(first, second, visible_from_mask(mask)).prediction

    @staticmethod
    def features(model):
        patch = model.config.patch_size
        maps = model.features(torch.zeros(1, 3, 32, 48), layers=[0, -1])
        return maps, [(1, model.config.encoder_dim, 32 // patch, 48 // patch)] * 2


class VoxelInputs:
    """Two scenes of which one is a single point."""

    options: ClassVar = {}

    @staticmethod
    def cloud():
        generator = torch.Generator().manual_seed(0)
        xyz, colors = torch.rand(2, 60, 3, generator=generator)
        normals = torch.nn.functional.normalize(torch.randn(60, 3, generator=generator), dim=1)
        return PointCloud(xyz, colors, normals, offsets=torch.tensor([0, 59, 60]))

    @classmethod
    def run(cls, model):
        return model(model.inputs(cls.cloud(), voxel_size=0.1))

    @classmethod
    def check_voxel_features(cls, model):
        """The stages' features of the voxels that a finest one lies in, found by coordinates."""
        inputs = model.inputs(cls.cloud(), voxel_size=0.1)
        found = model.voxel_features(inputs).split(model.channels, 1)
        for columns, stage in zip(found, model.features(inputs), strict=True):
            rows = {tuple(c): row for row, c in enumerate(stage.coords.tolist())}
            cells = [(b, *(c // stage.stride * stage.stride for c in xyz)) for b, *xyz in inputs.voxels.coords.tolist()]
            assert torch.equal(columns, stage.feats[[rows[cell] for cell in cells]])

    @classmethod
    def features(cls, model):
        inputs = model.inputs(cls.cloud(), voxel_size=0.1)
        cells = [
            len(torch.cat([inputs.voxels.coords[:, :1], inputs.voxels.coords[:, 1:] // stride], 1).unique(dim=0))
            for stride in model.strides
        ]
        return [v.feats for v in model.features(inputs)], list(zip(cells, model.channels, strict=True))


class SparseResNetInputs(VoxelInputs):
    """The same, with the features of all stages."""

    @classmethod
    def run(cls, model):
        return torch.cat([stage.feats.flatten() for stage in super().run(model)])


class SparKInputs:
    """Small oblong images; the encoders see them whole, the whole network some of their cells."""

    options: ClassVar = {}

    @staticmethod
    def run(model):
        images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        if not isinstance(model, SparK):
            return model(images)
        active = torch.tensor([[[[1, 0, 1], [0, 0, 1]]], [[[0, 1, 0], [1, 1, 0]]]], dtype=torch.bool)
        return model(images, active).reconstruction

    @staticmethod
    def features(model):
        images, active = torch.zeros(1, 3, 64, 96), torch.ones(1, 1, 2, 3, dtype=torch.bool)
        whole = isinstance(model, SparK)
        channels = model.config.encoder.channels if whole else model.config.channels
        shapes = [(1, width, 64 // stride, 96 // stride) for width, stride in zip(channels, (4, 8, 16, 32))]
        return model.encode(images, active) if whole else model.features(images), shapes


#: family -> how its models are fed; a model of another family fails the tests below.
INPUTS = {"croco": CroCoInputs, "spark": SparKInputs, "sparse_resnet": SparseResNetInputs, "swin3d": VoxelInputs}

#: Parameters of the published networks.
PUBLISHED_PARAMETERS = {
    "croco_v1_base": 120_076_288,
    "croco_v2_base_small": 120_076_288,
    "croco_v2_base_base": 200_269_824,
    "croco_v2_large_base": 417_918_720,
    "spark": 52_921_835,  # around a ResNet-50
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
    "resnet200": 62_624_832,
    "convnext_small": 49_453_152,
    "convnext_base": 87_564_416,
    "convnext_large": 196_227_264,
    "swin3d_s": 23_573_348,
    "swin3d_l": 60_757_060,
}


@pytest.mark.parametrize("name", list_models())
def test_forward_backward_features(name: str) -> None:
    inputs = INPUTS[model_entry(name).family]
    model = create_model(name, generator=torch.Generator().manual_seed(0), **inputs.options)
    assert not model.training
    out = inputs.run(model)
    assert torch.isfinite(out).all()
    out.square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without, f"no finite gradient: {without}"
    maps, shapes = inputs.features(model)
    assert [tuple(m.shape) for m in maps] == shapes


@pytest.mark.parametrize("name", [n for n in list_models() if issubclass(INPUTS[model_entry(n).family], VoxelInputs)])
def test_encoders_of_voxels_have_one_interface(name: str) -> None:
    model = create_model(name, generator=torch.Generator().manual_seed(0))
    assert len(model.channels) == len(model.strides)
    assert model.strides[0] == 1
    with torch.no_grad():
        VoxelInputs.check_voxel_features(model)


SMALL = [name for name in list_models() if name.endswith(("_tiny", "_atto")) or name in ("croco", "spark")]


@pytest.mark.parametrize("name", SMALL)
def test_same_generator_same_weights_and_round_trip(name: str, tmp_path: Path) -> None:
    inputs = INPUTS[model_entry(name).family]
    model, again = (create_model(name, generator=torch.Generator().manual_seed(3), **inputs.options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    save_model(model, tmp_path / "model.safetensors")
    loaded = create_model(name, checkpoint=tmp_path / "model.safetensors")
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    # Not to the bit: libraries may choose another algorithm for memory that lies elsewhere.
    torch.testing.assert_close(inputs.run(loaded), inputs.run(model), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "count"), PUBLISHED_PARAMETERS.items())
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", list_models())
def test_unknown_option_is_named(name: str) -> None:
    with pytest.raises(InputError, match="wheels"):
        create_model(name, wheels=4)


def test_unknown_model_lists_the_known() -> None:
    with pytest.raises(InputError, match="croco_tiny"):
        create_model("crocodile")
