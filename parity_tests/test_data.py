"""Corpora and their split: nanoGPT's rules, folders, and a sentence for every wrong input."""

import hashlib
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nplm.data import (
    Corpus,
    default_corpus,
    read_corpus,
    split_tokens,
)
from nplm.errors import ConfigError, DataError

pytestmark = pytest.mark.cli


# ---- the default corpus -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus():
    return default_corpus()


def test_the_default_corpus_is_the_same_every_time_and_names_its_python(corpus):
    assert default_corpus() == corpus
    assert corpus.sha256 == hashlib.sha256(corpus.text.encode()).hexdigest()
    assert corpus.source.endswith("Python {}.{}.{}".format(*sys.version_info[:3]))
    assert corpus.is_default


def test_the_default_corpus_has_fewer_than_100_characters_and_all_are_plain(corpus):
    characters = set(corpus.text)
    assert len(characters) < 100
    assert all(c == "\n" or " " <= c <= "~" for c in characters)
    assert 200_000 < len(corpus.text) < 1_000_000


def test_the_default_corpus_reads_as_text_without_tables_underlines_or_gaps(corpus):
    lines = corpus.text.split("\n")
    assert not [x for x in lines if re.match(r"\s*(\+[-=]{3,}|\|.*\|$|[-=*~]{4,}$)", x)]
    assert not [x for x in lines if x.strip() == "See also:" or "Footnotes" in x]
    assert "\n\n\n" not in corpus.text
    assert lines[0] == 'The "assert" statement'
    assert "if __debug__:" not in corpus.text  # code is left out
    assert "augmented assignment" in corpus.text.lower()


def test_the_validation_part_of_the_default_corpus_is_not_in_its_training_part(corpus):
    cut = int(0.9 * len(corpus.text))
    train, validation = corpus.text[:cut], corpus.text[cut:]
    size = 40
    seen = {train[i : i + size] for i in range(len(train) - size)}
    pieces = [validation[i : i + size] for i in range(len(validation) - size)]
    assert sum(piece in seen for piece in pieces) / len(pieces) < 0.01


def test_the_default_corpus_is_prose_without_code_grammar_or_operator_lists(corpus):
    paragraphs = corpus.text.strip().split("\n\n")
    for paragraph in paragraphs:
        solid = "".join(paragraph.split())
        assert "::=" not in paragraph
        assert ">>>" not in paragraph
        assert sum(c.isalpha() for c in solid) >= 0.8 * len(solid), paragraph
        assert all(line == line.strip() for line in paragraph.split("\n"))


def test_a_python_without_the_reference_is_told_to_bring_a_file(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"installed without; pass a text file of your own"):
        default_corpus()


def test_a_corpus_is_known_by_its_text_alone():
    assert Corpus.of("a", "x", "here").sha256 == Corpus.of("b", "x", "there").sha256
    assert Corpus.of("a", "x", "here").sha256 != Corpus.of("a", "y", "here").sha256


# ---- files --------------------------------------------------------------------------------------


def write(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def test_files_are_joined_in_the_given_order_and_kept_to_the_letter(tmp_path):
    b = write(tmp_path, "b.txt", b"zwei\r\n")
    a = write(tmp_path, "a.txt", "\ufeffeins: €".encode())
    assert read_corpus([b, a]).text == "zwei\r\n\ufeffeins: €"
    joined = read_corpus([a, str(b)])
    assert joined.text == "\ufeffeins: €\nzwei\r\n"  # a newline between two files, if there is none
    assert (joined.name, read_corpus(a).name) == ("a+1", "a")
    assert joined.sha256 == hashlib.sha256(joined.text.encode()).hexdigest()
    assert str(a) in joined.source
    assert not joined.is_default


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", r"bad\.txt: the text is empty; pass a file"),
        (b" \n\t\r\n", r"nothing but white space \(5 characters\)"),
        (b"abc\xff def", r"not UTF-8: byte 0xff at offset 3 \(invalid start byte\); convert it"),
        (b"ab\xc3", r"not UTF-8: byte 0xc3 at offset 2 \(unexpected end of data\)"),
        ("text".encode("utf-16"), r"this is UTF-16 text, expected UTF-8 text; convert it: iconv"),
        ("text".encode("utf-32"), r"this is UTF-32 text, expected UTF-8"),
        (b"PK\x03\x04rest", r"this is a zip archive, expected UTF-8 text; unpack it first"),
        (b"\x1f\x8brest", r"this is a gzip file"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_name_and_reason(tmp_path, data, sentence):
    path = write(tmp_path, "bad.txt", data)
    with pytest.raises(DataError, match=sentence) as caught:
        read_corpus(path)
    assert str(path) in str(caught.value)


def test_a_path_that_is_no_readable_file_is_refused_by_name_and_reason(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt: no such file; check the path"):
        read_corpus([tmp_path / "nowhere.txt"])
    with pytest.raises(DataError, match=r"got no files"):
        read_corpus([])
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match=r"pipe: is not a regular file"):
            read_corpus([tmp_path / "pipe"])


def lay_out(folder: Path) -> Path:
    """A folder with texts at several depths, and things in it that are not read."""
    for name, data in {
        "b.txt": b"2",
        "a/z.txt": b"1\n",
        "a.txt": b"0",
        "c/deep/er/x.y.txt": "4€".encode(),
        "c/deep/b.txt": b"3\n",
        "c/notes.md": b"no",
        "c/txt": b"no",
        ".hidden.txt": b"no",
        ".git/a.txt": b"no",
        "c/.cache/deep/a.txt": b"no",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "c" / "deep" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "c" / "link.txt").symlink_to(folder / "a", target_is_directory=True)
    return folder


def test_a_folder_is_read_as_its_text_files_in_the_order_of_their_paths(tmp_path):
    folder = lay_out(tmp_path / "essays.v2")
    corpus = read_corpus(folder)
    assert corpus.text == "0\n1\n2\n3\n4€"
    assert corpus.name == "essays.v2"
    assert corpus.source == str(folder)
    assert read_corpus(lay_out(tmp_path / "elsewhere")).sha256 == corpus.sha256
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    assert read_corpus(tmp_path / "link").text == corpus.text
    single = write(tmp_path, "single.txt", b"first")
    both = read_corpus([single, folder])
    assert (both.text, both.name) == ("first\n" + corpus.text, "single+1")
    assert read_corpus([folder, single]).name == "essays.v2+1"


def test_a_folder_is_named_even_if_it_is_the_present_one(tmp_path, monkeypatch):
    folder = lay_out(tmp_path / "texts")
    monkeypatch.chdir(folder)
    assert read_corpus(".").name == "texts"


def test_a_folder_that_gives_no_text_is_refused_by_name_and_reason(tmp_path, monkeypatch):
    (empty := tmp_path / "empty").mkdir()
    write(empty, "readme.md", b"text")
    with pytest.raises(DataError, match=r"empty: no text in this folder: .* \*\.txt .* found none"):
        read_corpus(empty)
    write(empty, "bad.txt", b"\xff")
    with pytest.raises(DataError, match=r"empty/bad\.txt: not UTF-8"):
        read_corpus(empty)
    folder, scandir = lay_out(tmp_path / "texts"), os.scandir

    def refuse(path):
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"texts/c/deep: could not be listed: Permission denied"):
        read_corpus(folder)


# ---- the split ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(20, 3000))
def test_the_split_is_nanogpts_and_loses_nothing(n):
    tokens = np.arange(n)
    train, validation = split_tokens(tokens)
    assert len(train) == int(0.9 * n)
    np.testing.assert_array_equal(np.concatenate([train, validation]), tokens)


def test_a_part_too_short_for_one_window_says_how_many_tokens_it_needs():
    with pytest.raises(
        DataError,
        match=r"the validation part needs at least 9 tokens \(context \+ 1\), has 4; "
        r"use --context 3 or a longer text",
    ):
        split_tokens(np.arange(40), context=8)
    with pytest.raises(DataError, match=r"the training part needs at least 33 .* --context 19 or"):
        split_tokens(np.arange(40), 0.5, context=32)
    with pytest.raises(DataError, match=r"the training part .* has 36; use --context 3 or a"):
        split_tokens(np.arange(40), context=36)  # what fits in both parts
    with pytest.raises(DataError, match=r"has 0; use a longer text"):
        split_tokens(np.arange(1))
    assert len(split_tokens(np.arange(90), context=8)[1]) == 9


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, math.nan])
def test_a_validation_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ConfigError, match=r"above 0 and below 1, got"):
        split_tokens(np.arange(100), fraction)
