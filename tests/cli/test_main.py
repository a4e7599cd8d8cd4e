"""The `geo3d` command as a whole: what it lists, what it costs to ask, and how it ends."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import geo3d_command
import pytest

import geo3d
from geo3d.cli.main import COMMANDS, main

_ROOT = Path(__file__).parents[2]
_MAX_HELP_SECONDS = 1.0
_WITHOUT_TORCH = """
import sys
from geo3d.cli.main import main
try:
    main(sys.argv[1:])
finally:
    assert "torch" not in sys.modules
"""


def _python(*args: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=environment)


def test_the_entry_point_is_the_function() -> None:
    (target,) = re.findall(r'\[project\.scripts\]\ngeo3d = "(.+)"', (_ROOT / "pyproject.toml").read_text())
    module, _, name = target.partition(":")
    assert getattr(importlib.import_module(module), name) is main


def test_help_is_quick_and_does_not_import_torch() -> None:
    seconds = []
    for _ in range(3):  # the first may have to read the disk
        start = time.perf_counter()
        done = _python("-c", _WITHOUT_TORCH, "--help")
        seconds.append(time.perf_counter() - start)
        assert (done.returncode, done.stderr) == (0, "")
    assert min(seconds) < _MAX_HELP_SECONDS
    assert done.stdout.startswith("usage: geo3d COMMAND [options]\n")
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")] == list(COMMANDS)


def test_the_module_is_the_command() -> None:
    done = _python("-m", "geo3d", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"geo3d {geo3d.__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys) -> None:
    geo3d_command.run(command, "--help")
    assert capsys.readouterr().out.startswith(f"usage: geo3d {command} ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], f"geo3d: name a command: {', '.join(COMMANDS)}"),
        (["pretran"], f"unknown command 'pretran'; known: {', '.join(COMMANDS)}; did you mean 'pretrain'?"),
        (["cook"], f"unknown command 'cook'; known: {', '.join(COMMANDS)}\n"),
        (["models", "resnet5"], "unknown model 'resnet5'"),
        (["models", "resnet50", "more"], "Unrecognized options: more"),
        (["predict", "segment"], "Missing from geo3d predict segment: --checkpoint"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args: list[str], message: str, capsys) -> None:
    assert message in geo3d_command.error_of(capsys, *args)


def test_models_are_listed_and_described(capsys) -> None:
    geo3d_command.run("models")
    assert capsys.readouterr().out.splitlines() == geo3d.list_models()
    geo3d_command.run("models", "croco_tiny")
    assert capsys.readouterr().out == f"{geo3d.model_info('croco_tiny')}\n"


def test_a_recipe_of_a_user_is_found_by_its_name() -> None:
    """Registered from outside the package, by a script that then hands over to the command."""
    script = (
        "from geo3d.cli.main import main\n"
        "from geo3d.recipes import get_recipe, register_recipe\n"
        "register_recipe('mine', get_recipe('spark'))\n"
        "main(['pretrain', 'mine', '--preset', 'tiny', '--help'])\n"
    )
    done = _python("-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: geo3d pretrain mine [-h] [OPTIONS]\n")
    assert "--method.mask-ratio" in done.stdout


def test_rooms_are_reachable_from_the_package() -> None:
    code = "import geo3d; print([getattr(geo3d, n).__name__ for n in ('cli', 'probe', 'recipes', 'samples', 'viz')])"
    done = _python("-c", code)
    assert done.stdout == "['geo3d.cli', 'geo3d.probe', 'geo3d.recipes', 'geo3d.samples', 'geo3d.viz']\n"
