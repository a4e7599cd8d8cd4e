"""What the commands share: options into a typed config, and errors as one line with exit code 2."""

from __future__ import annotations

import contextlib
import errno
import inspect
import io
import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, NoReturn, TextIO, TypeVar

import tyro

from geo3d.errors import InputError, did_you_mean

Config = TypeVar("Config")
First = TypeVar("First")
Second = TypeVar("Second")

#: Exit codes, as shells know them: of bad input, of Ctrl-C, and of output that nobody reads any more.
BAD_INPUT, INTERRUPTED, UNREAD = 2, 130, 141
#: What the system refuses for a reason that is no fault of the program's.
_OF_THE_SYSTEM = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO")}
_OF_THE_SYSTEM |= {errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ELOOP, errno.ENOTDIR}
#: What torch says where memory is short, on CPUs and GPUs.
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|Storage size calculation overflowed"
)


def parse(kind: type[Config], args: Sequence[str], program: str, default: Config | None = None) -> Config:
    """Command line -> config; a wrong one ends the program with one line and exit code 2."""
    return _ask_tyro(program, kind, args=list(args), default=default)


def parse_two(
    first: type[First],
    second: type[Second],
    args: Sequence[str],
    program: str,
    default: tuple[First, Second] | None = None,
) -> tuple[First, Second]:
    """The same of two configs, whose options stand side by side; the help is introduced by the second's docstring."""
    bare = tyro.conf.arg(name="")
    both = tuple[Annotated[first, bare], Annotated[second, bare]]
    start = {} if default is None else {"default": default}
    return _ask_tyro(program, both, args=list(args), description=inspect.getdoc(second), **start)


def parse_part(kind: type[Config], args: Sequence[str], program: str) -> Config:
    """The same, whatever other options there are; they are for another config to read."""
    return _ask_tyro(program, kind, args=list(args), add_help=False, return_unknown_args=True)[0]


# Sub-commands are told apart here and not by tyro, which would have to import the configs of all of them, and torch
# with them, before it could name one; takes no options of a command whose name is left out; and does not say which
# command is nearest to an unknown one. Their options are tyro's.
def choose(
    args: Sequence[str], commands: dict[str, str], program: str, default: str | None = None, noun: str = "command"
) -> tuple[str, list[str]]:
    """The sub-command in front of ``args``, and what follows it.

    Args:
        args: the command line.
        commands: name -> one line of help.
        program: what the user typed before ``args``.
        default: taken when the command line names none.
        noun: what the commands are called in messages, such as ``recipe``.
    """
    if args and args[0] in ("-h", "--help"):
        width = max(map(len, commands))
        print(f"usage: {program} {noun.upper()} [options]\n")
        for name, line in commands.items():
            print(f"  {name:<{width}}  {line}{' (default)' if name == default else ''}")
        print(f"\n{program} {noun.upper()} --help explains every option.")
        sys.exit(0)
    if default is not None and (not args or args[0].startswith("-")):
        return default, list(args)
    known = ", ".join(commands)
    if not args:
        fail(f"{program}: name a {noun}: {known}")
    if args[0] not in commands:
        fail(f"{program}: unknown {noun} {args[0]!r}; known: {known}{did_you_mean(args[0], commands)}")
    return args[0], list(args[1:])


def summaries(names: Iterable[str], get: Callable[[str], Any]) -> dict[str, str]:
    """One line of help of each of some registered things; of one that cannot be had, the reason.

    Args:
        names: of all.
        get: the thing of a name, which has a ``summary``.
    """
    found = {}
    for name in names:
        try:
            found[name] = get(name).summary
        except InputError as error:  # of another package, and no reason to keep those of geo3d from their users
            found[name] = f"cannot be used: {error}"
    return found


def run(main: Callable[[list[str], str], Any], program: str, args: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the program.

    An :class:`InputError` is printed as one line, with exit code 2, and so is what the system does not let a program
    do, such as to write to a full disk; Ctrl-C and a reader that closes the pipe, as ``head`` does, end it without a
    traceback. Bugs keep theirs.

    Args:
        main: the command; takes its arguments and ``program``.
        program: what the user typed before the arguments, for messages.
        args: those of the process where they are not given.
    """
    try:
        try:
            main(list(sys.argv[1:] if args is None else args), program)
        finally:
            sys.stdout.flush()  # here, where a closed pipe can still be told from an error
    except InputError as error:
        fail(str(error))
    except KeyboardInterrupt:
        _last_line("interrupted", INTERRUPTED)
    except OSError as error:
        _end_by_system(error)
    except (MemoryError, RuntimeError) as error:
        told = " ".join(str(error).split())
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(told):
            raise
        fail(f"there is not enough memory ({told[:200] or 'MemoryError'}); smaller sizes or batches need less")
    sys.exit(0)


def _end_by_system(error: OSError) -> NoReturn:
    """End the program for what the system did not let it do; raises what is a bug."""
    unread = isinstance(error, BrokenPipeError)
    if not (any(map(_is_unread, (sys.stdout, sys.stderr))) if unread else error.errno in _OF_THE_SYSTEM):
        raise error
    if unread or not error.filename:
        _silence(sys.stdout)
    if isinstance(error.__context__, InputError):  # beside which an output that takes no more is of no interest
        fail(str(error.__context__))
    if unread:
        _silence(sys.stderr)
        sys.exit(UNREAD)
    fail(f"{error.filename or 'standard output'}: {error.strerror}")


def fail(message: str) -> NoReturn:
    """Print one line to stderr and exit with code 2."""
    _last_line(f"error: {' '.join(message.split())}", BAD_INPUT)


def _last_line(line: str, code: int) -> NoReturn:
    """Print a line to stderr, if anyone reads it, and exit."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)
    sys.exit(code)


def _silence(stream: TextIO) -> None:
    """Let what is still to be flushed go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _ask_tyro(program: str, kind: Any, **options: Any) -> Any:
    """``tyro.cli``, whose framed messages become one line."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(kind, prog=program, **options)
    except SystemExit as stop:
        if stop.code != BAD_INPUT:
            raise
        fail(f"{_one_line(printed.getvalue())}; see {program} --help")


def _one_line(box: str) -> str:
    """What one of tyro's framed messages says first, and the option that it holds to be meant."""
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines():
        row = line.strip(" │|")
        if row and set(row) <= set("─-"):
            paragraphs.append([])
        elif row and not row.startswith(("╭", "╰")):
            paragraphs[-1].append(row)
    if "╭" not in box:  # where the output takes ASCII alone the title is a paragraph, and not part of a frame
        paragraphs = paragraphs[1:]
    meant = [rows[1].split()[0].rstrip(",") for rows in paragraphs if rows[0].startswith("Perhaps you meant")]
    first = re.sub(r"^Error parsing (?:\d+\.)?", "", " ".join(paragraphs[0]))  # a number is of several configs
    return first + "".join(f"; did you mean {option}?" for option in meant)


def _is_unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose reader has closed it."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
