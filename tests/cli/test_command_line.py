"""What the commands share: options, choices, errors as one line, and ends without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import pytest

from geo3d import InputError
from geo3d.cli import command_line
from geo3d.cli.command_line import choose, parse, parse_part, parse_two

COMMANDS = {"walk": "on foot", "swim": "in water"}


@dataclass(frozen=True)
class Start:
    """Where it begins."""

    preset: str | None = None
    """Begin with these."""


@dataclass(frozen=True)
class Trip:
    """How it goes."""

    steps: int = 3
    """Of the way (count)."""
    speed: float = 1.0
    """In metres a second."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InputError("steps must be 0 or more")


def _end(action, capsys) -> tuple[int, str, str]:
    """Exit code, and what was printed to stdout and stderr."""
    with pytest.raises(SystemExit) as stop:
        action()
    return stop.value.code, *capsys.readouterr()


def test_options_become_a_config_over_its_default() -> None:
    assert parse(Trip, ["--steps", "5"], "trip") == Trip(5)
    assert parse(Trip, ["--speed=2"], "trip", Trip(7)) == Trip(7, 2.0)


def test_two_configs_stand_side_by_side(capsys) -> None:
    args = ["--steps", "5", "--preset", "far", "--speed", "2"]
    assert parse_two(Start, Trip, args, "trip") == (Start("far"), Trip(5, 2.0))
    assert parse_two(Start, Trip, [], "trip", (Start("near"), Trip(9))) == (Start("near"), Trip(9))
    code, printed, _ = _end(lambda: parse_two(Start, Trip, ["--help"], "trip"), capsys)
    assert code == 0
    assert "How it goes." in printed
    for words in ("--preset", "Begin with these.", "--steps", "Of the way (count).", "--speed"):
        assert words in printed


def test_a_part_is_read_whatever_else_there_is(capsys) -> None:
    assert parse_part(Start, ["--steps", "5", "--preset=far", "--help"], "trip") == Start("far")
    assert parse_part(Start, ["--steps", "5"], "trip") == Start()
    code, _, error = _end(lambda: parse_part(Start, ["--steps", "5", "--preset"], "trip"), capsys)
    assert (code, "Missing value for argument '--preset'" in error) == (2, True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--stepps", "5"], "error: Unrecognized options: --stepps, 5; did you mean --steps?; see trip --help\n"),
        (["--wings"], "error: Unrecognized options: --wings; see trip --help\n"),
        (["--steps", "few"], "error: --steps: invalid literal for int()"),
        (["--steps", "-1"], "steps must be 0 or more"),
        (["--steps"], "error: Missing value for argument '--steps'"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(args: list[str], message: str, capsys) -> None:
    code, printed, error = _end(lambda: parse(Trip, args, "trip"), capsys)
    assert (code, printed) == (2, "")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_messages_are_the_same_with_and_without_frames(encoding: str) -> None:
    """With which tyro surrounds them where the output can show them."""
    command = [sys.executable, "-m", "geo3d", "models", "--nmae"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Unrecognized options: --nmae; see geo3d models --help\n"


def test_commands_are_chosen_by_name_or_left_to_the_default() -> None:
    assert choose(["swim", "--far"], COMMANDS, "go") == ("swim", ["--far"])
    assert choose(["--far"], COMMANDS, "go", "walk") == ("walk", ["--far"])
    assert choose([], COMMANDS, "go", "walk") == ("walk", [])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "error: go: name a way: walk, swim\n"),
        (["swimm"], "error: go: unknown way 'swimm'; known: walk, swim; did you mean 'swim'?\n"),
        (["fly"], "error: go: unknown way 'fly'; known: walk, swim\n"),
    ],
)
def test_wrong_commands_are_one_line_and_exit_code_2(args: list[str], message: str, capsys) -> None:
    assert _end(lambda: choose(args, COMMANDS, "go", noun="way"), capsys) == (2, "", message)


def test_help_lists_the_commands(capsys) -> None:
    code, printed, error = _end(lambda: choose(["--help"], COMMANDS, "go", "swim", "way"), capsys)
    assert (code, error) == (0, "")
    assert printed == (
        "usage: go WAY [options]\n\n"
        "  walk  on foot\n"
        "  swim  in water (default)\n\n"
        "go WAY --help explains every option.\n"
    )


def _raise(error: BaseException):
    def main(args: list[str], program: str) -> None:
        raise error

    return main


def test_how_a_command_ends(capsys) -> None:
    seen = []
    assert _end(lambda: command_line.run(lambda *given: seen.append(given), "go", ("far",)), capsys) == (0, "", "")
    assert seen == [(["far"], "go")]
    told = _end(lambda: command_line.run(_raise(InputError("no\n  such way")), "go", []), capsys)
    assert told == (2, "", "error: no such way\n")
    assert _end(lambda: command_line.run(_raise(KeyboardInterrupt()), "go", []), capsys) == (130, "", "interrupted\n")
    with pytest.raises(ZeroDivisionError):
        command_line.run(_raise(ZeroDivisionError()), "go", [])


_SCRIPT = """
import sys, time
from geo3d.cli import command_line

def main(args, program):
    print("begun", flush=True)
    {body}

command_line.run(main, "go")
"""


def _started(body: str) -> subprocess.Popen:
    command = [sys.executable, "-c", _SCRIPT.format(body=body)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # in the background, shells let it be ignored
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)


@pytest.mark.parametrize("body", ["print('line\\n' * 1_000_000)", "time.sleep(0.3); print('more')"])
def test_a_reader_that_has_had_enough_is_no_error(body: str) -> None:
    """Whether the pipe turns out to be closed in the middle or at the end."""
    process = _started(body)
    assert process.stdout.readline() == "begun\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == command_line.UNREAD


def test_another_broken_pipe_is_a_bug_and_keeps_its_traceback() -> None:
    process = _started("raise BrokenPipeError('of a worker')")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "BrokenPipeError: of a worker" in error


def test_interruption_leaves_no_traceback() -> None:
    process = _started("time.sleep(60)")
    assert process.stdout.readline() == "begun\n"
    os.kill(process.pid, signal.SIGINT)
    printed, error = process.communicate(timeout=60)
    assert (process.returncode, printed, error) == (130, "", "interrupted\n")
