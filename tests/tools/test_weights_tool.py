"""The tables of docs/weights.md are what the code says, and files are written as they come with geo3d."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import weights

import geo3d
from geo3d.checkpoints import shipped
from geo3d.models import family_of


def test_the_tables_in_the_docs_are_what_the_code_says() -> None:
    assert weights.docs() == weights._DOCS.read_text(), "run python tools/weights.py docs"


def test_every_released_file_has_its_row() -> None:
    table = weights.released_table().splitlines()[2:]
    files = {file.file for name in geo3d.list_models() for file in family_of(name).files}
    assert {line.split("`")[1] for line in table} == files
    assert len(table) == len(files)
    assert all(len(line.split(" | ")) == 7 for line in table)
    (row,) = [line for line in table if "`nerf_mae_pretrained.pt`" in line]
    assert "306 MB" in row
    assert "`hf://mirshad7/NeRF-MAE/nerf_mae_pretrained.pt`" in row
    (row,) = [line for line in table if "`CroCo_V2_ViTLarge_BaseDecoder.pth`" in line]
    assert "1672 MB of weights" in row  # 417,918,720 of them
    assert "CC-BY-NC-SA-4.0, non-commercial" in row


def test_a_run_becomes_a_file_that_comes_with_geo3d(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "geo3d" / "weights").mkdir(parents=True)
    monkeypatch.setattr(weights, "_ROOT", tmp_path)
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "geo3d" / "weights")
    model = geo3d.create_model("i2p_mae_tiny", generator=torch.Generator().manual_seed(0))
    geo3d.save_model(model, tmp_path / "whole.safetensors")
    path = weights.ship("i2p_mae_tiny", tmp_path / "whole.safetensors")
    assert shipped.shipped_names() == ["i2p_mae_tiny"]
    again = geo3d.load_encoder("i2p_mae_tiny", device="cpu").model
    state = model.state_dict()
    assert all(torch.allclose(value, state[name], atol=1e-3) for name, value in again.state_dict().items())
    assert shipped.shipped_info("i2p_mae_tiny").about["command"] == weights.SHIPPED["i2p_mae_tiny"].command
    assert weights.shipped_table().count("`i2p_mae_tiny`") == 2
    with pytest.raises(geo3d.InputError, match=r"swin3d_tiny: say in weights.py"):
        weights.ship("swin3d_tiny", path)
