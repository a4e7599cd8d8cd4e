"""Numbers, marks and line ends of text files as programs of all systems write them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from geo3d.datasets import BrokenScene
from geo3d.datasets.files import read_plain
from geo3d.datasets.plain_text import read_header, split_lines, to_count, to_number, to_numbers, to_whole


@pytest.mark.parametrize("word", ["nan", "-NaN", "nan(ind)", "-nan(ind)", "nan(snan)", "-1.#IND00", "1.#QNAN"])
def test_numbers_that_are_none(word):
    assert math.isnan(to_number(word))
    assert np.isnan(to_numbers([word.encode(), b"1"])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1.#INF", math.inf),
        ("-1.#INF00", -math.inf),
        ("inf", math.inf),
        ("1.5D+03", 1500),
        ("-.5d-1", -0.05),
        ("+2.", 2),
    ],
)
def test_numbers_spelt_otherwise(word, value):
    assert to_number(word) == value
    assert to_numbers([word, "1"]).tolist() == [value, 1]


@pytest.mark.parametrize("word", ["", "²", "٣", "1_0", "0x10", "1.#", "nan(", "d3", "abc", "1 2"])
def test_words_that_are_no_numbers(word):
    with pytest.raises(ValueError, match="is not a number"):
        to_number(word)
    for words in ([word, "1"], [word.encode(), b"1"]):
        with pytest.raises(ValueError, match="is not a number"):
            to_numbers(words)


def test_lines_end_at_their_ends_alone():
    assert split_lines("a\x85b\x0cc\r\nd\re\n") == ["a\x85b\x0cc", "d", "e", ""]


@pytest.mark.parametrize("word", ["", "²", "٣", "1_0", "1.0", "9" * 19, "9" * 5000])
def test_words_that_are_no_whole_numbers(word):
    with pytest.raises(ValueError, match="is not a whole number"):
        to_whole(word)
    assert (to_whole("-12"), to_count("+7")) == (-12, 7)
    with pytest.raises(ValueError, match="-12 is no number of things"):
        to_count("-12")


def test_headers_end_as_their_first_line_does():
    for end in (b"\n", b"\r\n", b"\r"):
        head = b"".join(line + end for line in (b" a b ", b"", b"not the end", b"end 1"))
        assert read_header(head + b"\r\n\rbody", "end") == (["a b", "", "not the end", "end 1"], len(head))
    assert read_header(b"a\nb\n", "end") is None
    assert read_header(b"end", "end") is None


def test_marks(tmp_path):
    path = tmp_path / "a.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text("é 1\n", encoding=encoding)
        assert read_plain(path, "a") == "é 1\n".encode()
    path.write_bytes(b"\xff\xfe1")
    with pytest.raises(BrokenScene, match="begins as UTF-16 and is damaged"):
        read_plain(path, "a")
