"""Every command and snippet of README and docs runs, in a folder where what it names lies ready.

Commands are run as they stand, and with the options of ``QUICKER`` behind them, so that one takes a second.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "recipes"), str(HERE.parent / "cli")]

from desk import Desk  # noqa: E402
from geo3d_command import call  # noqa: E402
from snippets import PAGES, ROOT, Snippet, snippets  # noqa: E402

import geo3d  # noqa: E402
from geo3d.datasets import scene  # noqa: E402
from geo3d.models.teachers.registry import TEACHERS  # noqa: E402

#: Beginnings of commands that are not run here -> why.
ELSEWHERE = {
    "make": "the Makefile's goals are what runs the tests",
    "pip": "installs into the environment of the tests",
    "torchrun": "several processes are tested in tests/train",
}

_SMALL_TRAINING = (
    "--train.steps 1 --train.batch-size 2 --train.workers 0 --train.warmup-steps 0 --train.warmup-epochs 0 "
    "--train.precision 32 --held-out 0 --train.accelerator cpu"
)
#: What a command holds -> what is said beside it so that it takes a moment; what the command says itself stays.
QUICKER = {
    r"^(pretrain|finetune)(?!.*--help)(?!.*--config)": _SMALL_TRAINING,
    r"^pretrain.*--config": "--train.steps 1",
    r"^(pretrain|finetune)(?!.*--data)(?!.*--config)(?! i2p_mae| stereo)": "--data scannet/",
    r"^finetune stereo(?!.*--data)": "--data stereo/",
    r"^finetune stereo": "--method.model croco_stereo_tiny --method.image-size 32 48",
    r"^finetune flow": "--method.model croco_flow_tiny --method.image-size 32 48",
    r"^finetune depth": "--method.model croco_depth_tiny --method.image-size 32 32",
    r"^pretrain i2p_mae(?!.*--data)": "--data objects/",
    r"^pretrain( croco|$| --)(?!.*--config)": "--method.model croco_tiny --method.image-size 32 32 --method.resized 40",
    r"^pretrain multiview": "--method.model multiview_tiny --method.image-size 32 32 --method.resized 40",
    r"^pretrain spark ": "--method.image-size 64 64 --method.decoder-width 32 --method.encoder resnet_tiny",
    r"^pretrain spark3d(?!.*voxel-size)": "--method.voxel-size 0.2",
    r"^pretrain spark3d": "--method.max-voxels 200 --method.decoder-width 32 --method.decoder-context 1",
    r"^pretrain spark3d(?!.*--method.model)": "--method.model sparse_resnet_tiny",
    r"^pretrain swin3d": "--method.voxel-size 0.2 --method.max-voxels 200 --method.model swin3d_tiny",
    r"^pretrain i2p_mae": "--method.points 300 --method.view-size 64 --method.model i2p_mae_tiny",
    r"^pretrain nerf_mae": "--method.side 32 --grid-side 32",
    r"^pretrain nerf_mae( |$)": "--method.model nerf_mae_tiny",
    r"^finetune segment ": "--method.voxel-size 0.2 --method.max-voxels 200",
    r"^finetune classify(?!.*photos)": "--method.points 128",
    r"^finetune classify.*photos": "--method.image-size 32",
    r"^finetune (detect|segment_grids)": "--method.side 32 --grid-side 32",
    r"^predict detect": "--side 32",
    r"^finetune detect": "--method.model nerf_mae_detector_tiny",
    r"^finetune segment_grids": "--method.model nerf_mae_semantic_tiny",
    r"^finetune pointmaps": "--method.image-size 32 32",
    r"^finetune pointmaps(?!.*mast3r)": "--method.model dust3r_tiny",
    r"^prepare synthetic": "--scenes 1 --objects 0 --views 2 --width 64 --height 48",
    r"^prepare stereo": "--scenes 1 --pairs 1 --width 48 --height 32",
    r"^prepare grids(?!.*--route)": "--route depth_fusion",
    r"^prepare grids": "--longest-side 32",
    r"^probe (linear|segment|depth)(?!.*--data)(?!.*nerf)": "--data rooms/learn",
    r"^probe (linear|segment|depth|match)(?!.*--test-data)(?!.*nerf)": "--test-data rooms/measure",
    r"^probe linear.*nerf_mae-": "--data labelled/learn --test-data labelled/measure",
    r"^probe linear": "--voxels-per-scene 50",
    r"^probe (linear|segment).*runs/(spark3d|swin3d)": "--voxel-size 0.3",
    r"^probe segment": "--most 200",
    r"^probe match": "--pairs 1",
    r"^probe (svm|retrieve|robustness).*i2p(?!.*--data)": "--data objects/",
    r"^probe (svm|robustness)(?!.*published)": "--per-class 2 --splits 1",
    r"^probe (svm|retrieve|robustness).*i2p": "--points 64",
    r"^probe svm": "--resamplings 1 --rotations 2",
    r"^probe retrieve.*croco(?!.*--test-data)": "--test-data scannet/",
    r"^visualize (?!.*--(rerun|out))": "--renderer own",
    r"^predict pointmaps": "--steps 2",
    r"--device cuda": "--device cpu",
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(autouse=True)
def _at_the_desk(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(desk.folder)
    monkeypatch.setattr(scene, "_REGISTRY", dict(scene._REGISTRY))  # pages register datasets and teachers of their own
    monkeypatch.setattr(TEACHERS, "_known", dict(TEACHERS._known))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", geo3d.NonCommercialWeights)
        yield
    torch.set_num_threads(before)


#: Options that are replaced also where a command says them itself: networks, numbers of scenes and steps, devices.
_OVERRIDE = ("--method.model", "--method.encoder", "--scenes", "--device", "--train.steps")


def quicker(words: list[str]) -> list[str]:
    text = " ".join(words)
    more: list[str] = []
    for pattern, extra in QUICKER.items():
        if re.search(pattern, text):
            for option in re.findall(r"--\S+(?: (?!--)\S+)*", extra):
                name = option.split()[0]
                if name not in words or name in _OVERRIDE:
                    more += option.split()
    return [*words, *more]


def run_command_line(snippet: Snippet, desk: Desk) -> None:
    for words in snippet.commands():
        if words[0] in ELSEWHERE:
            continue
        where = f"{snippet.page.name}:{snippet.line}: {' '.join(words)}"
        if words[:1] == ["python"]:
            script = [sys.executable, ROOT / words[1], *words[2:]]
            done = subprocess.run(script, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{where}\n{done.stderr}"
            continue
        assert words[0] == "geo3d", f"{where}: is neither run nor known not to be"
        args = quicker(words[1:])
        if args[0] in ("pretrain", "finetune") and "--out" not in args:  # numbered folders are named by other snippets
            args += ["--out", tempfile.mkdtemp(dir=desk.folder)]
        desk.lay(" ".join(args))
        assert call(*args) == 0, where


def run_python(snippet: Snippet, names: dict[str, Any]) -> None:
    padded = "\n" * (snippet.line - 1) + snippet.text
    exec(compile(padded, str(snippet.page), "exec", dont_inherit=True), names)


#: Pages whose commands take the longest together; `make test-slow` runs them.
_LONG = {"finetune", "i2p_mae", "nerf_mae", "nerf_mae_downstream", "probe", "radiance_grids", "spark3d", "swin3d"}


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in _LONG)) for page in PAGES]
)
def test_a_page_runs(page: Path, desk: Desk) -> None:
    found = [snippet for snippet in snippets(page) if not snippet.not_run]
    names: dict[str, Any] = {"__name__": "page", "Path": Path}
    desk.lay("\n".join(snippet.text for snippet in found))
    for snippet in found:
        if snippet.language == "bash":
            run_command_line(snippet, desk)
        elif snippet.language == "python":
            run_python(snippet, names)


def test_a_block_that_is_not_run_says_why() -> None:
    reasons = [snippet.not_run for page in PAGES for snippet in snippets(page) if snippet.not_run]
    assert all(len(reason) > 10 for reason in reasons)
    assert sum(not snippet.not_run for snippet in snippets(ROOT / "README.md")) >= 6
