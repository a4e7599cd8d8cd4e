"""The `geo3d` command called as a function."""

from __future__ import annotations

import pytest

from geo3d.cli.main import main


def call(*args: object) -> int:
    """Run `geo3d ARGS` in this process; returns the exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    return stop.value.code


def run(*args: object) -> None:
    """Run `geo3d ARGS`, which must succeed."""
    assert call(*args) == 0


def error_of(capsys: pytest.CaptureFixture, *args: object) -> str:
    """What `geo3d ARGS` prints to stderr: one line, with exit code 2."""
    capsys.readouterr()
    assert call(*args) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed
