"""Every dataset through every recipe that can read it: items are found, drawn, collated and learnt from."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_builders import BUILDERS, build_scannet

from geo3d.datasets import Scene, open_dataset
from geo3d.datasets.pair_mining import PairOptions
from geo3d.errors import InputError
from geo3d.methods import Method
from geo3d.recipes import get_recipe, list_recipes
from geo3d.samples.images import PhotoFolder
from geo3d.samples.labelled_objects import LabelledObjects
from geo3d.samples.objects import ObjectClouds
from geo3d.samples.source import SampleSource

#: Settings under which scans of eight points and pictures of 32 x 24 pixels suffice.
SMALL: dict[str, dict[str, Any]] = {
    "classify": {"points": 100},
    "croco": {"image_size": (16, 32), "resized": 20},
    "depth": {"image_size": (16, 16), "resized": 20},
    "flow": {"image_size": (16, 24)},
    "i2p_mae": {"points": 100, "view_size": 32},
    "multiview": {"image_size": (16, 32), "resized": 20},
    "nerf_mae": {"side": 32},
    "detect": {"side": 32, "least_volume": 0.0},
    "segment": {"signals": "XYZ", "voxel_size": 0.2, "width": 16},
    "segment_grids": {"side": 32},
    "pointmaps": {"image_size": (16, 32)},
    "spark": {"image_size": (32, 64), "decoder_width": 32},
    "spark3d": {"signals": "XYZ", "voxel_size": 0.2, "decoder_width": 16, "decoder_context": 0},
    "stereo": {"image_size": (16, 24)},
    "swin3d": {"signals": "XYZ", "voxel_size": 0.2},
}
#: How items are looked for, where the small datasets are not what is looked for by default.
LOOSE: dict[str, dict[str, Any]] = {
    "objects": {"fewest": 2, "leave_out": ()},
    "labelled objects": {"fewest": 2, "leave_out": ()},
    "view pairs with depth": {"options": PairOptions(min_overlap=0.01, max_angle=120)},
    "view pairs": {"options": PairOptions(min_overlap=0.01, max_angle=120)},
}
LOOSE["view groups"] = LOOSE["view pairs"]


def build_meshes(root: Path) -> None:
    """Scans without a stream."""
    build_scannet(root)
    for stream in root.rglob("*.sens"):
        stream.unlink()


DATASETS = BUILDERS | {"meshes": build_meshes}


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """Each dataset's folder, written once."""
    made = {kind: tmp_path_factory.mktemp(kind) / "data" for kind in DATASETS}
    for kind, root in made.items():
        DATASETS[kind](root)
    return made


def _subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _method(recipe: str) -> type[Method]:
    """The method that a recipe trains: of the same name."""
    named = {cls for cls in _subclasses(Method) if vars(cls).get("name") == recipe}
    (found,) = [cls for cls in named if cls.__module__.startswith("geo3d.")]
    return found


def _build(recipe: str, source: SampleSource, **changes: Any) -> Method:
    """The method of a recipe over a source, small."""
    assert recipe in SMALL, f"recipe {recipe!r} has no settings in SMALL"
    config = replace(get_recipe(recipe).run().method, **(SMALL[recipe] | changes))
    more = {"classes": source.classes} if hasattr(source, "classes") else {}
    return _method(recipe)(config, generator=torch.Generator().manual_seed(0), **more)


def _find(recipe: str, root: Path) -> SampleSource:
    kind = _method(recipe).source
    return kind.find([root], strict=True, **LOOSE.get(kind.kind, {}))


def _holding(recipe: str, root: Path) -> list[Scene]:
    """The scenes of a dataset that hold what a recipe reads."""
    kind = _method(recipe).source
    found = [scene for scene in open_dataset(root) if kind.reads(scene)]
    if not issubclass(kind, ObjectClouds):
        return found
    named = issubclass(kind, LabelledObjects)
    return [s for s in found if (s.category >= 0 or not named if s.is_object else _has_instances(s))]


def _read_root(recipe: str, roots: dict[str, Path]) -> Path:
    """A dataset that a recipe reads: scans, radiance grids, or rectified pairs."""
    return next(roots[kind] for kind in ("scannet", "radiance_grids", "stereo_flow") if _holding(recipe, roots[kind]))


def _has_instances(scene: Scene) -> bool:
    """Whether the labels of a scene tell objects apart."""
    return (scene.mesh() if "mesh" in scene.parts else scene.points()).instance is not None


@pytest.mark.parametrize("recipe", list_recipes())
@pytest.mark.parametrize("kind", DATASETS)
def test_what_can_be_read_is_learnt_from_and_the_rest_is_named(kind: str, recipe: str, roots: dict[str, Path]) -> None:
    holding = _holding(recipe, roots[kind])
    if not holding:
        missing = f"no scene holds {re.escape(_method(recipe).source.holds)}|has neither listed pairs nor posed views"
        with pytest.raises(InputError, match=missing):
            _method(recipe).source.find([roots[kind]])
        return
    source = _find(recipe, roots[kind])
    if isinstance(source.datasets[0], PhotoFolder):
        assert len(source) == sum(len(scene.view_names) for scene in holding)
    else:
        assert [name for _, name in source.scenes] == [scene.name for scene in holding]
        assert source.group_count == len(holding)
    method = _build(recipe, source)
    samples = method.samples(source)
    assert len(samples) == len(source)
    first, last = 0, len(samples) - 1
    drawn = [samples.draw(index, np.random.default_rng(index)) for index in (first, last)]
    output = method.train()(method.collate(drawn), torch.Generator().manual_seed(0))
    assert output.losses
    assert all(loss.isfinite() for loss in output.losses.values())
    assert output.loss > 0
    output.loss.backward()
    trained = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
    # Processes wait for the gradients of all that is trained.
    assert not [name for name, gradient in trained.items() if gradient is None]
    gradients = list(trained.values())
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients)


@pytest.mark.parametrize("recipe", list_recipes())
def test_samples_come_from_the_generator_alone_and_travel_to_workers(recipe: str, roots: dict[str, Path]) -> None:
    source = _find(recipe, _read_root(recipe, roots))
    samples = _build(recipe, source).samples(source)
    drawn = []
    for seed, number in enumerate((7, 7, 8)):
        torch.manual_seed(seed)
        np.random.seed(seed)
        drawn.append(samples.draw(1, np.random.default_rng([number, 1])))
        samples = pickle.loads(pickle.dumps(samples))
    first, again, other = drawn
    assert first.keys() == again.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value)  # attributes that are unknown are NaN
    assert any(not np.array_equal(other[name], value, equal_nan=True) for name, value in first.items())


@pytest.mark.parametrize("recipe", list_recipes())
def test_the_card_tells_the_network_from_the_rest_of_the_method(recipe: str, roots: dict[str, Path]) -> None:
    method = _build(recipe, _find(recipe, _read_root(recipe, roots)))
    card, network = method.model_card(), getattr(method, method.handed_out)
    assert network.card().items() <= card.items()
    own = method.state_dict()
    assert {name.removeprefix(card["prefix"]) for name in own if name.startswith(card["prefix"])} == set(
        network.state_dict()
    )


def test_every_recipe_reads_some_dataset_and_every_dataset_is_read(roots: dict[str, Path]) -> None:
    """The test above would pass vacuously for the others."""
    read = {(kind, recipe) for kind, root in roots.items() for recipe in list_recipes() if _holding(recipe, root)}
    assert {recipe for _, recipe in read} == set(list_recipes())
    assert {kind for kind, _ in read} == set(DATASETS)
    assert len(read) < len(DATASETS) * len(list_recipes())


def _names_signals(recipe: str) -> bool:
    return "signals" in {field.name for field in fields(get_recipe(recipe).run().method)}


@pytest.mark.parametrize("recipe", [recipe for recipe in list_recipes() if _names_signals(recipe)])
def test_points_without_what_the_network_reads_are_named(recipe: str, roots: dict[str, Path]) -> None:
    """Networks see colours and normals by default; sparse points of photographs have no normals."""
    checked = [kind for kind in ("meshes", "mvimgnet") if _holding(recipe, roots[kind])]
    assert checked
    for kind in checked:
        source = _find(recipe, roots[kind])
        samples = _build(recipe, source, signals="XYZ_RGB_NORM").samples(source)
        if kind == "mvimgnet":
            with pytest.raises(InputError, match="has no normals; choose signals without them"):
                samples.draw(0, np.random.default_rng(0))
        else:
            assert {"colors", "normals"} <= samples.draw(0, np.random.default_rng(0)).keys()
