"""What the tools share: parsing into a typed config, and errors as one line with exit code 2."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from geo3d.errors import InputError

Config = TypeVar("Config")


def parse(kind: type[Config], args: Sequence[str], program: str, default: Config | None = None) -> Config:
    """Command line -> config; a wrong one ends the program with one line and exit code 2."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=list(args), prog=program, default=default)
    except SystemExit as stop:
        if stop.code != 2:
            raise
        fail(f"{_one_line(said.getvalue())}; see {program} --help")


def choose(
    args: Sequence[str], commands: dict[str, str], program: str, default: str | None = None
) -> tuple[str, list[str]]:
    """The sub-command in front of ``args``, and what follows it.

    Args:
        commands: name -> one line of help.
        default: taken when the command line names none.
    """
    if args and args[0] in ("-h", "--help"):
        width = max(map(len, commands))
        print(f"usage: {program} COMMAND [options]\n")
        for name, line in commands.items():
            print(f"  {name:<{width}}  {line}{' (default)' if name == default else ''}")
        print(f"\n{program} COMMAND --help explains every option.")
        sys.exit(0)
    if default is not None and (not args or args[0].startswith("-")):
        return default, list(args)
    if not args:
        fail(f"{program}: name a command: {', '.join(commands)}")
    if args[0] not in commands:
        fail(f"{program}: unknown command {args[0]!r}; known: {', '.join(commands)}")
    return args[0], list(args[1:])


def take_option(args: Sequence[str], name: str, program: str) -> tuple[str | None, list[str]]:
    """The value of ``name VALUE`` or ``name=VALUE``, None where it is not given, and the arguments without it."""
    rest, value = [], None
    given = iter(args)
    for word in given:
        if word == name:
            value = next(given, None)
            if value is None or value.startswith("--"):
                fail(f"{program}: {name} needs a value")
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return value, rest


def run(main: Callable[[list[str]], Any]) -> NoReturn:
    """Run a tool: exit 0, or print an :class:`InputError` as one line and exit 2; bugs keep their traceback."""
    try:
        main(sys.argv[1:])
    except InputError as error:
        fail(str(error))
    sys.exit(0)


def fail(message: str) -> NoReturn:
    """Print one line to stderr and exit with code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _one_line(box: str) -> str:
    """The first paragraph of one of tyro's framed messages, on one line."""
    rows = [re.sub(r"^[│|]\s?|\s*[│|]$", "", row).strip() for row in box.splitlines()]
    body = [row for row in rows if row and not row.startswith(("╭", "╰"))]
    end = next((i for i, row in enumerate(body) if set(row) == {"─"}), len(body))
    return " ".join(body[:end])
