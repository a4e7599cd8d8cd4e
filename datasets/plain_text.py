"""Text as programs of all systems write it: line ends, and numbers spelt otherwise."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_LONGEST_HEADER = 1 << 24
_LINE_END = re.compile(r"\r\n|\r|\n")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
# Microsoft's libraries print nan(ind), -nan(ind) and nan(snan), the older ones 1.#IND, -1.#IND00, 1.#QNAN and 1.#INF.
_NAN = re.compile(r"[+-]?(nan(\(\w*\))?|1\.#(ind|[qs]nan)0*)")
_INFINITE = re.compile(r"([+-]?)1\.#inf0*")
_FORTRAN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)d[+-]?\d+", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def split_lines(text: str) -> list[str]:
    """The lines of a text, whatever ends them: LF, CRLF or CR; unlike ``str.splitlines`` nothing else does."""
    return _LINE_END.split(text)


def decode_plain(data: bytes) -> str:
    """UTF-8 text; bytes that are none, as in comments of older programs, count as Latin-1."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_header(data: bytes, last: str) -> tuple[list[str], int] | None:
    """The lines of a header in text before data that may be binary.

    Lines end as the first one does: by CR alone, or by LF, with or without a CR before it.

    Args:
        data: the file.
        last: first word of the header's last line.

    Returns:
        The lines up to ``last``, and the byte after it; None where there is no such line.
    """
    first = re.search(rb"\r\n?|\n", data[:_LONGEST_HEADER])
    if first is None:
        return None
    end = b"\r" if first[0] == b"\r" else b"\n"
    lines, position = [], 0
    while (stop := data.find(end, position, _LONGEST_HEADER)) >= 0:
        lines.append(data[position:stop].decode("latin-1").strip())
        position = stop + 1
        if lines[-1].split()[:1] == [last]:
            return lines, position
    return None


def to_whole(word: str) -> int:
    """A whole number in decimal digits.

    Raises:
        ValueError: the word is none, or has more than 18 digits.
    """
    if not _WHOLE.fullmatch(word):
        raise ValueError(f"{word.strip()[:40]!r} is not a whole number")
    return int(word)


def to_count(word: str) -> int:
    """A whole number that is not negative; raises as :func:`to_whole`."""
    count = to_whole(word)
    if count < 0:
        raise ValueError(f"{count} is no number of things")
    return count


def to_number(word: str | bytes) -> float:
    """A number as C, Microsoft's C, Fortran or Python print it.

    Raises:
        ValueError: the word is none.
    """
    text = decode_plain(word) if isinstance(word, bytes) else word
    if text.isascii() and "_" not in text:  # which Python allows between digits
        try:
            return float(text)
        except ValueError:
            pass  # it may be spelt otherwise
    text = text.strip().lower()
    if _NAN.fullmatch(text):
        return float("nan")
    if infinite := _INFINITE.fullmatch(text):
        return float(infinite[1] + "inf")
    if _FORTRAN.fullmatch(text):
        return float(text.replace("d", "e"))
    advice = "; write decimal points" if _DECIMAL_COMMA.fullmatch(text) else ""
    raise ValueError(f"{text[:40]!r} is not a number{advice}")


def to_numbers(words: Sequence[str] | Sequence[bytes]) -> np.ndarray:
    """Words as numbers (N,) float64; raises as :func:`to_number`."""
    joined = type(words[0])().join(words) if words else ""
    if joined.isascii() and (b"_" if isinstance(joined, bytes) else "_") not in joined:  # as in to_number
        try:
            return np.array(words, dtype=np.float64)
        except ValueError:
            pass  # one may be spelt otherwise
    return np.array([to_number(word) for word in words], dtype=np.float64)
