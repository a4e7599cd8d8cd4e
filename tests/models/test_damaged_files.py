"""Files of weights whose description or tensors were changed: one line that names the file, or the same network."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from geo3d import InputError, create_model, save_model
from geo3d.checkpoints.file_kind import kind_of
from geo3d.checkpoints.loading import MODEL_CARD_KEY
from geo3d.models.encoder import Encoder

_CROCO = {"encoder_dim": 32, "encoder_depth": 1, "encoder_heads": 2, "decoder_dim": 32, "decoder_depth": 1}
_CROCO |= {"decoder_heads": 2, "image_size": (32, 32)}
_SWIN3D = {"depths": (1, 1), "channels": (16, 16), "heads": (2, 2), "windows": (5, 5)}
_POINTS = {"groups": (6, 4, 3), "neighbors": (3, 2, 2), "dims": (8, 8, 8), "depths": (1, 1, 1), "heads": 2}
_POINTS |= {"embed_dim": 4, "mlp_ratio": 1}
#: A small network of every family.
NETWORKS: dict[str, dict[str, Any]] = {
    "croco_tiny": _CROCO,
    "croco_v1_base": _CROCO,
    "croco_flow_tiny": _CROCO | {"head_levels": (4, 4, 4, 4), "head_width": 4, "head_last": 4},
    "dust3r_tiny": _CROCO,
    "mast3r_tiny": _CROCO | {"head_levels": (4, 4, 4, 4), "head_width": 4, "head_last": 4, "descriptors": 2},
    "resnet_tiny": {"width": 8},
    "convnext_atto": {"channels": (8, 8, 8, 8), "depths": (1, 1, 1, 1)},
    "spark": {"encoder": "resnet_tiny", "decoder_width": 32},
    "sparse_resnet_tiny": {"channels": (8, 8), "depths": (1, 1), "stem": 8},
    "swin3d_tiny": _SWIN3D,
    "i2p_mae_tiny": _POINTS | {"decoder_dims": (8, 4), "teacher_dim": 2},
    "i2p_mae_modelnet40": _POINTS,
    "nerf_mae_tiny": {"embed_dim": 6, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1), "mlp_ratio": 1},
}
_GRIDS = {"embed_dim": 6, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1), "mlp_ratio": 1}
NETWORKS |= {
    "nerf_mae_detector_tiny": _GRIDS | {"pyramid_channels": 4, "tower_depth": 1},
    "nerf_mae_semantic_tiny": _GRIDS | {"num_classes": 2},
}
JUNK = [None, True, -1, 0, 3, 0.5, 10**7, 10**400, "", "none", [], [1, 2], ["a"], {}, {"a": 1}, [[[[1]]]], float("nan")]
FORMATS = (".safetensors", ".pth")


def make(name: str) -> Encoder:
    return create_model(name, **NETWORKS[name], generator=torch.Generator().manual_seed(0))


def write(path: Path, state: dict[str, torch.Tensor], text: str) -> None:
    """A file as :func:`save_model` writes it, with any description."""
    if path.suffix == ".pth":
        torch.save({"state_dict": state, MODEL_CARD_KEY: text}, path)
    else:
        save_file(state, path, {"format": "pt", MODEL_CARD_KEY: text})


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if path.suffix == ".pth":
        content = torch.load(path, weights_only=True)
        return content["state_dict"], json.loads(content[MODEL_CARD_KEY])
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()[MODEL_CARD_KEY])


def places(card: Any, above: tuple = ()) -> Iterator[tuple]:
    """Keys and numbers that lead to every value in a description."""
    inside = card.items() if isinstance(card, dict) else enumerate(card) if isinstance(card, list) else ()
    for key, value in inside:
        yield (*above, key)
        yield from places(value, (*above, key))


def loaded(path: Path) -> dict[str, torch.Tensor]:
    """The weights that a file brings; none where it is refused by one line, which names the file."""
    try:
        return create_model(checkpoint=path).state_dict()
    except InputError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
    return {}


def error_of(path: Path) -> str:
    """The one line, which names the file."""
    assert not loaded(path)
    with pytest.raises(InputError) as caught:
        create_model(checkpoint=path)
    return str(caught.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_entry_of_a_description_is_missed_and_of_a_type(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    for ending in FORMATS:
        whole, path = tmp_path / f"whole{ending}", tmp_path / f"changed{ending}"
        save_model(make(name), whole)
        state, card = read(whole)
        for place in places(card):
            for junk in ("dropped", *rng.sample(JUNK, 3)):
                changed = copy.deepcopy(card)
                holder = changed
                for key in place[:-1]:
                    holder = holder[key]
                if junk == "dropped":
                    del holder[place[-1]]
                else:
                    holder[place[-1]] = junk
                write(path, state, json.dumps(changed))
                if junk == "dropped" and place != ("name",) and place[-1] != "encoder_kind":
                    error_of(path)
                    continue
                found = loaded(path)  # with what weights do not depend on, such as the rate at which paths are dropped
                assert all(torch.equal(value, state[key]) for key, value in found.items()), (place, junk)


def _deep(levels: int) -> str:
    return '{"family": ' + "[" * levels + "]" * levels + "}"


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged"),
        ('{"family": "resnet", ', "is damaged"),
        (_deep(100_000), "is damaged"),
        ('{"family": "resnet", "config": {"depths": [NaN]}}', "NaN is no number"),
        ('{"family": "resnet", "config": {"depths": [1, 1, 1, Infinity]}}', "Infinity is no number"),
        ("[]", "names no family"),
        ('{"config": {}}', "names no family"),
        ('{"family": "resnet"}', "has no config"),
        ('{"family": "resnet", "config": {}}', "lacks depths, width, drop_path_rate"),
        ('{"family": "resnot", "config": {}}', "did you mean 'resnet'"),
        ('{"family": "spark", "config": {"decoder_width": 32}}', "lacks encoder"),
        ('{"family": "resnet", "config": {}, "prefix": 3}', "prefix: expected text, found 3"),
        ('{"family": "resnet", "config": {}, "classes": "wall"}', "classes: expected a list of text"),
        ('{"family": "resnet", "config": {"depths": [1, 1, 1, 99999], "width": 8, "drop_path_rate": 0}}', "more than"),
        ('{"family": "resnet", "config": {"depths": [1, 1, 1, 10000000]}}', "no size of a network"),
    ],
)
def test_descriptions_that_describe_nothing(text: str, message: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{ending}"
    write(path, create_model("resnet_tiny").state_dict(), text)
    assert message in error_of(path)


@pytest.mark.parametrize("ending", FORMATS)
def test_bytes_that_are_cut_and_changed(ending: str, tmp_path: Path) -> None:
    whole, path, rng = tmp_path / f"whole{ending}", tmp_path / f"changed{ending}", random.Random(ending)
    save_model(make("swin3d_tiny"), whole)
    data = whole.read_bytes()
    for number in range(120):
        changed, at = bytearray(data), rng.randrange(min(len(data), 4000) if number % 2 else len(data))
        if number % 3 == 0:
            del changed[at:]
        elif number % 3 == 1:
            changed[at] ^= 1 << rng.randrange(8)
        else:
            changed[at:at] = rng.randbytes(5)
        path.write_bytes(changed)
        loaded(path)


@pytest.mark.parametrize("ending", FORMATS)
def test_tensors_of_another_type_are_listed(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{ending}"
    save_model(make("resnet_tiny"), path)
    state, card = read(path)
    text = json.dumps(card)
    for kind in (torch.float16, torch.bfloat16, torch.float64):  # of which networks are made all the time
        write(path, {name: value.to(kind) for name, value in state.items()}, text)
        assert create_model(checkpoint=path).state_dict()["conv1.weight"].dtype == torch.float32
    for kind in (torch.int8, torch.bool, torch.complex64):
        write(path, state | {"conv1.weight": state["conv1.weight"].to(kind)}, text)
        assert f"1 of another type: conv1.weight ({kind}) for torch.float32" in error_of(path)
    write(path, state | {"bn1.num_batches_tracked": torch.tensor(0.5)}, text)
    assert "1 of another type: bn1.num_batches_tracked (torch.float32) for torch.int64" in error_of(path)


def test_a_network_without_values_is_none(tmp_path: Path) -> None:
    torch.save({name: value.to("meta") for name, value in make("resnet_tiny").state_dict().items()}, tmp_path / "f.pth")
    with pytest.raises(InputError, match=r"of another type: .*no values"):
        create_model("resnet", checkpoint=tmp_path / "f.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w"])
@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "it is empty"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG image"),
        (b"\x89PNG\r\n\x1a\n\0\0", "a PNG image"),
        (b"<!DOCTYPE html>\n<html><head>", "a page of HTML"),
        (b"\n <HTML lang='en'>", "a page of HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "git lfs pull"),
        (b'{"error": "not found"}', 'text that begins with \'{"error": "not found"}\''),
        ("Zugriff verweigert: fällig".encode(), "text that begins with 'Zugriff verweigert: fällig'"),
        (b"\x93NUMPY\1\0", "a NumPy array"),
        (b"\x1f\x8b\x08\0\0", "compressed by gzip; unpack it"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (bytes(64), "nothing but zeros"),
    ],
)
def test_what_is_no_file_of_weights_is_named_as_what_it_is(name: str, head: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(head)
    message = error_of(tmp_path / name)
    assert "holds no weights: it is " in message
    assert kind in message


def test_text_that_is_cut_inside_a_character_is_text() -> None:
    assert kind_of(("ä" * 4000).encode()[:4096]) == kind_of(b"\xef\xbb\xbf" + ("ä" * 4000).encode()[:4093])
    assert kind_of(b"\x80\x02}q\0.") is None


def test_the_content_tells_the_format_and_not_the_ending(tmp_path: Path) -> None:
    model = make("resnet_tiny")
    for written, named in ((".pth", ".safetensors"), (".safetensors", ".pth"), (".pth", "")):
        save_model(model, tmp_path / f"a{written}")
        path = (tmp_path / f"a{written}").rename(tmp_path / f"b{named}")
        assert torch.equal(create_model(checkpoint=path).conv1.weight, model.conv1.weight)
