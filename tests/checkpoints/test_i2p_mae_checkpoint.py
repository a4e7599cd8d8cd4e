"""I2P-MAE's file layouts: pre-training runs with and without the image network, classifiers, and what is refused."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from geo3d import InputError, create_model, save_model
from geo3d.models.i2p_mae import I2PMAE, I2PMAEConfig, PointClassifier, PointClassifierConfig

#: Sizes that names and shapes tell; those that they do not are as published.
TOLD = {"dims": (12, 18, 24), "depths": (1, 2, 1), "embed_dim": 8, "mlp_ratio": 2.0}
CONFIG = I2PMAEConfig(**TOLD, decoder_dims=(24, 12), decoder_depths=(2, 1), decoder_residuals=2, teacher_dim=5)


@pytest.fixture
def network() -> I2PMAE:
    return I2PMAE(CONFIG, torch.Generator().manual_seed(0))


def classifier(classes: int, pooling: str, **options) -> PointClassifier:
    config = PointClassifierConfig(**TOLD, num_classes=classes, pooling=pooling, **options)
    return PointClassifier(config, torch.Generator().manual_seed(0))


def write(path: Path, state: dict, prefix: str = "module.", wrapped: bool = True) -> Path:
    """A file as the training code saves it, or the state dict alone."""
    names = {prefix + name: value for name, value in state.items()}
    beside = {
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(1e-3)}]},
        "epoch": 299,
        "metrics": {"acc": 93.3},
        "best_metrics": {"acc": 93.35},
    }
    torch.save({"base_model": names, **beside} if wrapped else names, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("teacher", [False, True])
def test_every_container_and_prefix(network: I2PMAE, prefix: str, wrapped: bool, teacher: bool, tmp_path: Path) -> None:
    state = network.state_dict()
    clip = {
        "clip_model.visual.conv1.weight": torch.zeros(4, 3, 2, 2, dtype=torch.float16),
        "clip_model.logit_scale": torch.tensor(4.6),
        "clip_model.positional_embedding": torch.zeros(7, 4),
    }
    path = write(tmp_path / "ckpt-last.pth", state | (clip if teacher else {}), prefix, wrapped)
    loaded = create_model("i2p_mae", checkpoint=path)
    assert loaded.config == CONFIG
    assert not loaded.training
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize(
    "options",
    [
        {"teacher_dim": 0},
        {"decoder_residuals": 1, "decoder_depths": (1, 1)},
        {"depths": (3, 1, 2), "mlp_ratio": 4.0},
        {"decoder_dims": ()},
    ],
)
def test_the_network_is_read_off_names_and_shapes(options: dict, tmp_path: Path) -> None:
    bare = {"teacher_dim": 512, "decoder_residuals": 1, "decoder_depths": (1, 1)} if "decoder_dims" in options else {}
    config = I2PMAEConfig(**({name: getattr(CONFIG, name) for name in vars(CONFIG)} | bare | options))
    path = write(tmp_path / "model.pth", I2PMAE(config).state_dict())
    assert create_model("i2p_mae", checkpoint=path).config == config


def test_what_the_file_does_not_tell_is_taken_from_options(tmp_path: Path) -> None:
    told = {"groups": (20, 10, 5), "neighbors": (4, 3, 2), "heads": 2, "radii": (0.5, 0.0, 2.0)}
    config = I2PMAEConfig(**(TOLD | {"dims": (4, 8, 10)}), **told, decoder_dims=(10, 4), teacher_dim=5)
    path = write(tmp_path / "model.pth", I2PMAE(config).state_dict())
    made = create_model("i2p_mae", checkpoint=path, **told, published_mask=False, embed_masked=False)
    assert {name: getattr(made.config, name) for name in told} == told
    assert (made.config.published_mask, made.config.embed_masked) == (False, False)
    with pytest.raises(InputError, match=re.escape(f"{path}: ") + ".*over 6 heads must give whole heads"):
        create_model("i2p_mae", checkpoint=path)
    for wrong in ({"heads": 4}, {"groups": (20, 10)}, {"heads": "two"}):
        with pytest.raises(InputError, match=re.escape(f"{path}: ")):
            create_model("i2p_mae", checkpoint=path, **(told | wrong))


@pytest.mark.parametrize(
    ("classes", "pooling", "points", "neighbors", "radii"),
    [
        (40, "sum", 1024, (48, 24, 24), (0.24, 0.48, 0.96)),
        (15, "both", 2048, (32, 16, 16), (0.32, 0.64, 1.28)),
        (7, "sum", 1024, (48, 24, 24), (0.24, 0.48, 0.96)),
        (7, "both", 2048, (32, 16, 16), (0.32, 0.64, 1.28)),
    ],
)
def test_finetuned_files(classes: int, pooling: str, points: int, neighbors, radii, tmp_path: Path) -> None:
    model = classifier(classes, pooling, points=points, neighbors=neighbors, radii=radii)
    path = write(tmp_path / "ckpt-best.pth", model.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = create_model("i2p_mae_classifier", checkpoint=path)
    assert loaded.config == model.config
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert len(caught) == (classes == 15)
    for warning in caught:
        assert f"{path}: " in str(warning.message)
        assert "give radii=(0.48, 0.96, 1.92) if it was trained on the hardest split" in str(warning.message)
        assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = create_model("i2p_mae_classifier", checkpoint=path, radii=(0.48, 0.96, 1.92), neighbors=(8, 8, 8))
    assert (chosen.config.radii, chosen.config.neighbors) == ((0.48, 0.96, 1.92), (8, 8, 8))


def test_one_family_in_place_of_the_other_is_told(network: I2PMAE, tmp_path: Path) -> None:
    pretrained = write(tmp_path / "pretrained.pth", network.state_dict())
    tuned = write(tmp_path / "tuned.pth", classifier(40, "sum").state_dict())
    with pytest.raises(InputError, match=r"tuned.pth: holds .*i2p_mae_classifier.*, not a i2p_mae"):
        create_model("i2p_mae", checkpoint=tuned)
    with pytest.raises(InputError, match=r"pretrained.pth: holds .*i2p_mae.*fresh_decoder=True"):
        create_model("i2p_mae_classifier", checkpoint=pretrained)
    made = create_model("i2p_mae_classifier", checkpoint=pretrained, fresh_decoder=True)
    assert made.config.neighbors == (48, 24, 24)  # of the classifiers, not of the pre-training
    own = network.state_dict()
    assert all(torch.equal(v, own[name]) for name, v in made.state_dict().items() if name.startswith("h_encoder."))
    with pytest.raises(InputError, match=r"i2p_mae_base that is asked for: dims is \(12, 18, 24\) in the file"):
        create_model("i2p_mae_base", checkpoint=pretrained)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"conv.weight": torch.zeros(2)}, "not an I2P-MAE network: it has no h_encoder.encoder_pos_embeds.0.0.weight"),
        ({"clip_model.visual.proj": torch.zeros(2, 2)}, "not an I2P-MAE network"),
        ({}, "f.pth"),
    ],
)
def test_a_file_of_which_nothing_matches_is_refused(names: dict, message: str, tmp_path: Path) -> None:
    for prefix in ("", "module."):
        for family in ("i2p_mae", "i2p_mae_classifier"):
            with pytest.raises(InputError, match=message) as caught:
                create_model(family, checkpoint=write(tmp_path / "f.pth", names, prefix))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "cut",
    ["h_encoder.token_embed.0.first_conv.0.weight", "h_encoder.encoder_blocks.0.", "rec_head_3d."],
)
def test_a_part_of_a_network_is_named_as_such(network: I2PMAE, cut: str, tmp_path: Path) -> None:
    state = {name: value for name, value in network.state_dict().items() if not name.startswith(cut)}
    with pytest.raises(InputError, match=f"not a whole I2P-MAE.*it has no {re.escape(cut)}"):
        create_model("i2p_mae", checkpoint=write(tmp_path / "part.pth", state))


def test_every_misfit_is_listed_at_once(network: I2PMAE, tmp_path: Path) -> None:
    state = network.state_dict()
    state["extra.weight"] = state.pop("h_encoder.encoder_norms.2.weight")
    state["decoder_norm.bias"] = torch.zeros(3)
    with pytest.raises(InputError) as caught:
        create_model("i2p_mae", checkpoint=write(tmp_path / "misfit.pth", state))
    message = str(caught.value)
    assert "1 missing: h_encoder.encoder_norms.2.weight" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 of another shape: decoder_norm.bias (3,) for (12,)" in message
    assert "\n" not in message


def test_own_files_keep_the_whole_config(network: I2PMAE, tmp_path: Path) -> None:
    for number, model in enumerate((network, classifier(4, "both", groups=(20, 10, 5), neighbors=(4, 3, 2)))):
        save_model(model, tmp_path / str(number))
        loaded = create_model(checkpoint=tmp_path / str(number))
        assert (type(loaded), loaded.config) == (type(model), model.config)
        with pytest.raises(InputError, match=r"only points, drop_path_rate, radii.* can be changed, not groups"):
            create_model(checkpoint=tmp_path / str(number), groups=(8, 4, 2))
