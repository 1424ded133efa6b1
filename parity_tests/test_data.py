"""Corpora, their split and the tokenizer: nanoGPT's rules, and a sentence for every wrong input."""

import hashlib
import math
import os
import re
import sys
import timeit
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nplm.data import (
    CharTokenizer,
    Corpus,
    default_corpus,
    read_corpus,
    split_tokens,
)
from nplm.errors import ConfigError, DataError

pytestmark = pytest.mark.cli
TEXT = st.text(
    st.characters(codec=None), min_size=1, max_size=60
)  # every code point, surrogates too


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
    with pytest.raises(DataError, match=r"is a folder, expected a file"):
        read_corpus([tmp_path])
    with pytest.raises(DataError, match=r"got no files"):
        read_corpus([])
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match=r"pipe: is not a regular file"):
            read_corpus([tmp_path / "pipe"])


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
    with pytest.raises(DataError, match=r"the training part needs at least 33 tokens"):
        split_tokens(np.arange(40), 0.5, context=32)
    with pytest.raises(DataError, match=r"has 0; use a shorter context or a longer text"):
        split_tokens(np.arange(1))
    assert len(split_tokens(np.arange(90), context=8)[1]) == 9


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, math.nan])
def test_a_validation_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ConfigError, match=r"above 0 and below 1, got"):
        split_tokens(np.arange(100), fraction)


# ---- the tokenizer ------------------------------------------------------------------------------


@settings(deadline=None)
@given(TEXT)
def test_the_tokenizer_is_nanogpts_and_decoding_undoes_encoding(text):
    tokenizer = CharTokenizer.from_text(text)
    chars = sorted(set(text))  # nanoGPT, data/shakespeare_char/prepare.py
    stoi = {ch: i for i, ch in enumerate(chars)}
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert ids.tolist() == [stoi[c] for c in text]
    assert tokenizer.vocab_size == len(chars)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids.tolist()) == text
    again = CharTokenizer.from_dict(tokenizer.to_dict())
    assert again.characters == tokenizer.characters


@pytest.mark.parametrize("odd", ["\0", "\ud800", "\U0010ffff"])
def test_the_ends_of_unicode_and_lone_surrogates_are_characters_like_others(odd):
    text = "".join(sorted("a" + odd))
    tokenizer = CharTokenizer.from_text(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    unknown = "b" if odd != "\U0010ffff" else "\U0010fffe"
    with pytest.raises(DataError, match="at position 1 is not among"):
        tokenizer.encode(odd + unknown)


def test_the_empty_text_encodes_to_nothing_and_back():
    tokenizer = CharTokenizer("ab")
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([]) == ""


@settings(deadline=None)
@given(TEXT, TEXT)
def test_the_first_unknown_character_is_named_with_its_position(known, text):
    tokenizer = CharTokenizer.from_text(known)
    unknown = [i for i, c in enumerate(text) if c not in known]
    if not unknown:
        tokenizer.encode(text)
        return
    with pytest.raises(DataError, match="remove it, or train on a text") as caught:
        tokenizer.encode(text)
    assert f"character {text[unknown[0]]!a}" in str(caught.value)
    assert f"at position {unknown[0]} is not among the {tokenizer.vocab_size}" in str(caught.value)


def test_encoding_a_megabyte_is_several_times_faster_than_a_loop_over_its_characters(corpus):
    text = corpus.text * 4
    tokenizer = CharTokenizer.from_text(text)
    stoi = {c: i for i, c in enumerate(tokenizer.characters)}
    loop = min(timeit.repeat(lambda: [stoi[c] for c in text], number=1, repeat=3))
    ours = min(timeit.repeat(lambda: tokenizer.encode(text), number=1, repeat=3))
    back = min(timeit.repeat(lambda: tokenizer.decode(tokenizer.encode(text)), number=1, repeat=3))
    assert ours < loop / 2
    assert back < loop


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: CharTokenizer(""), "at least one character"),
        (lambda: CharTokenizer("ba"), "must be sorted and each stand once"),
        (lambda: CharTokenizer("aa"), "must be sorted and each stand once"),
        (lambda: CharTokenizer("ab").decode([0, 2]), r"in \[0, 2\), got 2 at position 1"),
        (lambda: CharTokenizer("ab").decode([-1]), r"got -1 at position 0"),
        (lambda: CharTokenizer("ab").decode([0.5]), r"list of integers, got float64"),
        (lambda: CharTokenizer("ab").decode([[0]]), r"of shape \(1, 1\)"),
        (lambda: CharTokenizer.from_dict({"kind": "bpe"}), "expected kind 'character', got 'bpe'"),
        (lambda: CharTokenizer.from_dict({"kind": "character"}), "a string, got NoneType"),
    ],
)
def test_a_wrong_tokenizer_or_id_is_refused_with_the_reason(make, sentence):
    with pytest.raises(DataError, match=sentence):
        make()


def test_the_default_corpus_is_prose_without_code_grammar_or_operator_lists():
    paragraphs = default_corpus().text.strip().split("\n\n")
    for paragraph in paragraphs:
        solid = "".join(paragraph.split())
        assert "::=" not in paragraph
        assert ">>>" not in paragraph
        assert sum(c.isalpha() for c in solid) >= 0.8 * len(solid), paragraph
        assert all(line == line.strip() for line in paragraph.split("\n"))
