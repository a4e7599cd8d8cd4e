"""Runs that start from the weights of a file: what is taken, what is fresh, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import records, small_run, two_processes
from torch import Tensor, nn

from geo3d import InputError, create_model, save_model
from geo3d.checkpoints.loading import MODEL_CARD_KEY
from geo3d.config import load_config
from geo3d.recipes import get_recipe, pretrain
from geo3d.recipes.init import find_initial_weights


def method_of(name: str, seed: int = 0, **method) -> nn.Module:
    """A method with fresh weights, as a run has it."""

    class Source:
        classes = tuple("abcde")

    return get_recipe(name).build_method(small_run(name, method), Source, torch.Generator().manual_seed(seed))


def state(method: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


@pytest.fixture
def spark3d_run(rooms: Path, tmp_path: Path) -> Path:
    pretrain("spark3d", small_run("spark3d", data=(rooms,), out=tmp_path / "spark3d"), print)
    return tmp_path / "spark3d"


def test_a_run_begins_with_all_of_another(spark3d_run: Path, rooms: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    run = small_run("spark3d", data=(rooms,), init=spark3d_run, out=tmp_path / "next")
    run.train.seed, run.train.lr = 1, 1e-12  # so small that float32 weights stay
    result, report = pretrain("spark3d", run, lines.append)
    before = load_file(spark3d_run / "checkpoints" / "step_00000002" / "model.safetensors")
    after = load_file(result.checkpoint / "model.safetensors")
    parameters = dict(method_of("spark3d").named_parameters())
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-9) for name in parameters)

    taken = report["initial_weights"]["taken"]
    assert sum(taken.values()) == len(before)
    assert report["initial_weights"]["fresh"] == {}
    assert set(taken) == {".".join(name.split(".")[:2]) for name in before}
    text = "\n".join(lines)
    assert f"starting from {spark3d_run} (whole): {len(before)} of {len(before)} tensors are taken" in text
    assert "0 are fresh (none)" in text
    assert "at the start" in text  # not "untrained"
    assert report["before"] != json.loads((spark3d_run / "report.json").read_text())["before"]
    with safe_open(result.checkpoint / "model.safetensors", "pt") as file:
        stored = json.loads(file.metadata()["run_config"])
    assert stored["init"] == str(spark3d_run)
    assert load_config(type(run), tmp_path / "next" / "config.yaml").init == spark3d_run
    assert stored["initial_weights"] == report["initial_weights"]


def test_a_run_that_goes_on_does_not_read_the_file_again(spark3d_run: Path, rooms: Path, tmp_path: Path) -> None:
    run = small_run("spark3d", data=(rooms,), init=spark3d_run, out=tmp_path / "cut")
    longer = replace(run.train, steps=4)
    _, straight = pretrain("spark3d", replace(run, out=tmp_path / "straight", train=longer), print)
    pretrain("spark3d", run, print)
    other = replace(run, init=None, train=longer)
    with pytest.raises(InputError, match=r"another beginning: init \(.*spark3d -> None\)"):
        pretrain("spark3d", other, print)
    shutil.rmtree(spark3d_run)
    resumed, report = pretrain("spark3d", replace(run, train=longer), print)
    assert resumed.resumed_from == 2
    assert report == straight
    weights = [
        load_file(tmp_path / name / "checkpoints" / "step_00000004" / "model.safetensors")
        for name in ("cut", "straight")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_two_processes_begin_alike_and_measure(spark3d_run: Path, rooms: Path, tmp_path: Path) -> None:
    said = two_processes("spark3d", rooms, tmp_path / "two", spark3d_run)
    assert said.count(f"starting from {spark3d_run}") == 1  # only the first process talks
    run = small_run("spark3d", data=(rooms,), init=spark3d_run, out=tmp_path / "one", measure_every=1)
    pretrain("spark3d", run, print)
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert one["before"] == two["before"]
    assert one["initial_weights"] == two["initial_weights"]
    for name in ("one", "two"):
        assert [r["step"] for r in records(tmp_path / name) if "measured/bits" in r] == [1, 2]
    assert two["after"]["bits"] == pytest.approx(one["after"]["bits"], rel=1e-4)


def test_another_family_is_refused_by_name(spark3d_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="family 'sparse_resnet', but swin3d trains one of 'swin3d'"):
        find_initial_weights(spark3d_run, "encoder", method_of("swin3d"))


def test_an_encoder_goes_from_one_method_to_another(tmp_path: Path) -> None:
    """Swin3D filled in cells without a decoder; it is then trained to segment."""
    filling = method_of("spark3d", model="swin3d_tiny", first_stride=3)
    save_as_run(filling, tmp_path / "model.safetensors")
    method = method_of("swin3d", seed=1)
    before = state(method)
    weights = find_initial_weights(tmp_path / "model.safetensors", "whole", method)
    weights.load_into(method)
    encoder = {f"network.{name}": tensor for name, tensor in filling.encoder.state_dict().items()}
    assert weights.taken.keys() == encoder.keys()
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, encoder[name] if name in encoder else before[name]), name
    assert weights.summary()["fresh"].keys() == {"network.upsamples", "network.classifier"}
    assert "decoder" in next(iter(weights.summary()["unused"]))


def save_as_run(method: nn.Module, path: Path) -> None:
    """A file as the trainer writes it."""
    save_file(method.state_dict(), path, card_of(method))


def card_of(method: nn.Module) -> dict[str, str]:
    """What such a file says beside the weights."""
    return {MODEL_CARD_KEY: json.dumps(method.model_card())}


def test_croco_takes_a_whole_network_or_a_file_of_its_authors(tmp_path: Path) -> None:
    source = method_of("croco", seed=5)
    save_as_run(source, tmp_path / "run.safetensors")
    save_model(source.network, tmp_path / "network.safetensors")
    config = source.network.config
    arguments = {
        "img_size": list(config.image_size), "patch_size": config.patch_size, "enc_embed_dim": config.encoder_dim,
        "enc_depth": config.encoder_depth, "enc_num_heads": config.encoder_heads, "dec_embed_dim": config.decoder_dim,
        "dec_depth": config.decoder_depth, "dec_num_heads": config.decoder_heads, "pos_embed": "RoPE100",
    }  # fmt: skip
    torch.save({"model": source.network.state_dict(), "croco_kwargs": arguments}, tmp_path / "authors.pth")
    torch.save({"module": source.network.state_dict()}, tmp_path / "bare.pth")
    for name in ("run.safetensors", "network.safetensors", "authors.pth", "bare.pth"):
        method = method_of("croco")
        weights = find_initial_weights(tmp_path / name, "whole", method)
        weights.load_into(method)
        assert (weights.fresh, weights.unused, weights.misfits) == ([], [], [])
        # What is trained on from there is still of weights for non-commercial use, and its files say so.
        licence = "CC-BY-NC-SA-4.0" if name == "authors.pth" else ""
        assert weights.summary()["licence"] == licence == method.model_card().get("licence", "")
        assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in method.state_dict().items())


@pytest.mark.parametrize(("of", "into"), [("croco", "multiview"), ("multiview", "croco")])
def test_families_with_one_trunk_start_from_each_other(of: str, into: str, tmp_path: Path) -> None:
    source = method_of(of, seed=5)
    save_as_run(source, tmp_path / "run.safetensors")
    encoder = {name for name in source.state_dict() if name.startswith(("network.enc_", "network.patch_embed."))}
    for part in ("whole", "encoder"):
        method = method_of(into)
        before = state(method)
        weights = find_initial_weights(tmp_path / "run.safetensors", part, method)
        weights.load_into(method)
        assert weights.taken.keys() == (encoder if part == "encoder" else before.keys())
        for name, tensor in method.state_dict().items():
            expected = source.state_dict() if name in weights.taken else before
            assert torch.equal(tensor, expected[name]), name


def test_multiview_takes_a_file_of_crocos_authors_and_its_licence(tmp_path: Path) -> None:
    source = method_of("croco", seed=5, model="croco_tiny")
    arguments = {"img_size": [32, 32], "patch_size": 8, "enc_embed_dim": 96, "enc_depth": 4, "enc_num_heads": 4}
    arguments |= {"dec_embed_dim": 64, "dec_depth": 4, "dec_num_heads": 4, "pos_embed": "RoPE100"}
    torch.save({"model": source.network.state_dict(), "croco_kwargs": arguments}, tmp_path / "authors.pth")
    weights = find_initial_weights(tmp_path / "authors.pth", "whole", method_of("multiview"))
    assert (weights.fresh, weights.unused, weights.licence) == ([], [], "CC-BY-NC-SA-4.0")


@pytest.mark.parametrize("form", ["run", "encoder of geo3d", "encoder of the authors"])
def test_spark_takes_an_encoder_and_draws_the_decoder(form: str, tmp_path: Path) -> None:
    source, method = method_of("spark", seed=5), method_of("spark")
    bare = create_model("resnet_tiny", generator=torch.Generator().manual_seed(5))
    path = tmp_path / ("file.pth" if "authors" in form else "file.safetensors")
    if form == "run":
        save_as_run(source, path)
    elif form == "encoder of geo3d":
        save_model(bare, path)
    else:
        torch.save(bare.state_dict(), path)
    wanted = source.state_dict() if form == "run" else {
        f"network.sparse_encoder.sp_cnn.{name}": tensor for name, tensor in bare.state_dict().items()
    }  # fmt: skip
    fresh = state(method)
    weights = find_initial_weights(path, "encoder", method)
    weights.load_into(method)
    for name, tensor in method.state_dict().items():
        of_encoder = name.startswith("network.sparse_encoder.")
        assert of_encoder == (name in weights.taken)
        assert torch.equal(tensor, wanted[name] if of_encoder else fresh[name]), name
    assert set(weights.summary()["taken"]) == {"network.sparse_encoder"}
    others = [name for name in fresh if not name.startswith("network.sparse_encoder.")]
    assert set(weights.summary()["fresh"]) == {".".join(name.split(".")[:2]) for name in others}


@pytest.mark.parametrize("form", ["run", "encoder of geo3d", "file of the authors", "classifier"])
def test_i2p_mae_takes_an_encoder_or_a_whole_network_and_leaves_the_teacher(form: str, tmp_path: Path) -> None:
    teacher = {"teacher": "efficientnet_lite0", "teacher_options": ("weights=random",)}
    source, method = method_of("i2p_mae", seed=5, **teacher), method_of("i2p_mae", **teacher)
    own = source.network.state_dict()
    path = tmp_path / ("file.pth" if "authors" in form else "file.safetensors")
    if form == "run":
        save_file({n: t for n, t in source.state_dict().items() if not source.is_frozen(n)}, path, card_of(source))
    elif form == "file of the authors":
        names = {f"module.{name}": tensor for name, tensor in own.items()}
        torch.save({"base_model": names | {"module.clip_model.visual.proj": torch.ones(2, 2)}, "epoch": 3}, path)
    elif form == "encoder of geo3d":
        bare = create_model("i2p_mae_tiny", decoder_dims=())
        bare.load_state_dict({name: tensor for name, tensor in own.items() if source.network.is_of_encoder(name)})
        save_model(bare, path)
    else:
        save_model(create_model("i2p_mae_modelnet40"), path)
        with pytest.raises(InputError, match="family 'i2p_mae_classifier', but i2p_mae trains one of 'i2p_mae'"):
            find_initial_weights(path, "whole", method)
        return
    fresh = state(method)
    weights = find_initial_weights(path, "whole", method)
    weights.load_into(method)
    assert weights.misfits == []
    for name, tensor in method.state_dict().items():
        if method.is_frozen(name):
            assert name not in weights.taken
            assert name not in weights.fresh
            assert torch.equal(tensor, fresh[name])
            continue
        inside = name.removeprefix("network.")
        taken = form != "encoder of geo3d" or source.network.is_of_encoder(inside)
        assert taken == (name in weights.taken), name
        assert torch.equal(tensor, own[inside] if taken else fresh[name]), name


def test_tensors_of_another_shape_are_fresh_and_named(tmp_path: Path) -> None:
    source, method = method_of("spark", seed=5, decoder_width=64), method_of("spark")
    save_as_run(source, tmp_path / "run.safetensors")
    fresh = state(method)
    weights = find_initial_weights(tmp_path / "run.safetensors", "whole", method)
    name = "network.densify_projs.0.weight"
    assert f"{name} (64, 512, 1, 1) in the file, (32, 512, 1, 1) in the network" in weights.misfits
    weights.load_into(method)
    misfits = {line.split()[0] for line in weights.misfits}
    assert misfits
    assert misfits <= set(weights.fresh)
    assert all(torch.equal(method.state_dict()[key], fresh[key]) for key in misfits)
    assert "fresh since they are of another shape in the file: network." in str(weights)


def test_frozen_modules_are_left_as_they_are(tmp_path: Path, monkeypatch) -> None:
    source, method = method_of("spark3d", seed=5), method_of("spark3d")
    save_as_run(source, tmp_path / "run.safetensors")
    monkeypatch.setattr(type(method), "frozen_modules", lambda _: ("decoder",))
    weights = find_initial_weights(tmp_path / "run.safetensors", "whole", method)
    assert set(weights.summary()["taken"]) == {n for n in weights.summary()["taken"] if n.startswith("encoder.")}
    assert not any(name.startswith("decoder.") for name in [*weights.taken, *weights.fresh])


def test_the_method_may_have_no_memory_yet(tmp_path: Path) -> None:
    save_as_run(method_of("croco", seed=5), tmp_path / "run.safetensors")
    planned = get_recipe("croco").check(small_run("croco"))
    assert find_initial_weights(tmp_path / "run.safetensors", "whole", planned).fresh == []


def test_a_file_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    method = method_of("croco")
    card = {MODEL_CARD_KEY: json.dumps(method.model_card())}
    save_file({"network.wheel": torch.zeros(2)}, tmp_path / "names.safetensors", card)
    save_file({"network.mask_token": torch.zeros(2)}, tmp_path / "shapes.safetensors", card)
    with pytest.raises(InputError, match=r"nothing in .*fits croco \(whole\): its names are such as network.wheel"):
        find_initial_weights(tmp_path / "names.safetensors", "whole", method)
    with pytest.raises(InputError, match=r"network.mask_token \(2,\) in the file, \(1, 1, 64\) in the n"):
        find_initial_weights(tmp_path / "shapes.safetensors", "whole", method)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(InputError, match=r"init: .*text.pth: "):
        find_initial_weights(tmp_path / "text.pth", "whole", method)


# Networks that become parts of others


def test_a_pre_training_file_of_croco_begins_stereo(tmp_path: Path) -> None:
    """Encoder and decoder are taken, of geo3d's file and of the authors'; what completed patches is not used."""
    method = method_of("stereo")
    sizes = {f: getattr(method.network.config, f) for f in ("encoder_depth", "encoder_dim", "encoder_heads")}
    sizes |= {f: getattr(method.network.config, f) for f in ("decoder_depth", "decoder_dim", "decoder_heads")}
    sizes |= {"patch_size": method.network.config.patch_size}
    croco = create_model("croco_tiny", generator=torch.Generator().manual_seed(3), **sizes)
    save_model(croco, tmp_path / "own")
    names = {"encoder_dim": "enc_embed_dim", "encoder_depth": "enc_depth", "encoder_heads": "enc_num_heads"}
    names |= {"decoder_dim": "dec_embed_dim", "decoder_depth": "dec_depth", "decoder_heads": "dec_num_heads"}
    published = {names.get(name, name): value for name, value in sizes.items()} | {"pos_embed": "RoPE100"}
    torch.save({"model": croco.state_dict(), "croco_kwargs": published}, tmp_path / "authors.pth")
    old = croco.state_dict()
    for file, licence in (("own", ""), ("authors.pth", "CC-BY-NC-SA-4.0")):
        found = find_initial_weights(tmp_path / file, "whole", method)
        assert set(found.taken) == {f"network.{name}" for name in old if name.startswith(("patch", "enc", "dec"))}
        assert all(torch.equal(value, old[name.removeprefix("network.")]) for name, value in found.taken.items())
        assert all(name.startswith("network.head.") for name in found.fresh)
        assert {name.removeprefix("network.") for name in found.unused} == {
            "mask_token", "prediction_head.weight", "prediction_head.bias"
        }  # fmt: skip
        assert found.licence == licence
        alone = find_initial_weights(tmp_path / file, "encoder", method)
        assert all(name.startswith(("network.patch", "network.enc")) for name in alone.taken)


@pytest.mark.parametrize("of", ["croco", "multiview", "stereo", "depth"])
def test_a_decoder_becomes_both_of_pointmaps(of: str, tmp_path: Path) -> None:
    """The heads are fresh; a network of one view brings the encoder alone."""
    target = method_of("pointmaps")
    trunk = target.network.config
    parts = ("encoder", "decoder")
    sizes = {f"{part}_{what}": getattr(trunk, f"{part}_{what}") for part in parts for what in ("dim", "depth", "heads")}
    name = f"croco_{of}_tiny" if of in ("stereo", "depth") else f"{of}_tiny"
    source = create_model(name, generator=torch.Generator().manual_seed(3), patch_size=trunk.patch_size, **sizes)
    save_model(source, tmp_path / "run.safetensors")
    taken = find_initial_weights(tmp_path / "run.safetensors", "whole", target).taken
    old = source.state_dict()
    for name in target.state_dict():
        name = name.removeprefix("network.")
        if name.startswith(("dec", "enc_", "patch_embed.")) and not (of == "depth" and name.startswith("dec")):
            assert torch.equal(taken[f"network.{name}"], old[name.replace("dec_blocks2.", "dec_blocks.")]), name
        elif name != "mask_token":
            assert f"network.{name}" not in taken
    model = create_model("dust3r", checkpoint=tmp_path / "run.safetensors", fresh_decoder=True)
    assert torch.equal(model.enc_norm.weight, old["enc_norm.weight"])
    if of != "depth":
        model = create_model("dust3r", checkpoint=tmp_path / "run.safetensors", fresh_head=True)
        assert torch.equal(model.dec_blocks2[0].norm1.weight, old["dec_blocks.0.norm1.weight"])
