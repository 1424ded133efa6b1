"""Tokenizers: nanoGPT's characters and plain UTF-8, whole and as a stream; every wrong input."""

import json
import timeit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nplm.data import (
    TOKENIZERS,
    ByteTokenizer,
    CharTokenizer,
    StreamDecoder,
    default_corpus,
    tokenizer_from_dict,
)
from nplm.errors import DataError

pytestmark = pytest.mark.cli
# Every code point, surrogates too.
TEXT = st.text(st.characters(codec=None), min_size=1, max_size=60)


# ---- characters ---------------------------------------------------------------------------------


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


def test_encoding_a_megabyte_is_several_times_faster_than_a_loop_over_its_characters():
    text = default_corpus().text * 4
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


# ---- bytes, and both tokenizers alike -----------------------------------------------------------


@given(st.text(max_size=60))
def test_the_byte_tokenizer_is_utf8_and_decoding_undoes_encoding(text):
    tokenizer = ByteTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == 256


@given(st.binary(max_size=40), st.data())
def test_any_bytes_decode_and_in_pieces_as_whole(raw, data):
    tokenizer = ByteTokenizer()
    whole = tokenizer.decode(list(raw))
    assert whole == raw.decode("utf-8", "replace")
    assert in_pieces(tokenizer, list(raw), data) == whole


@given(st.text(min_size=1, max_size=30) | st.text("aé€😀", min_size=1), st.data())
def test_text_decoded_as_it_arrives_is_the_text_whatever_the_cuts(text, data):
    for kind in TOKENIZERS.values():
        tokenizer = kind.from_text(text)
        assert in_pieces(tokenizer, tokenizer.encode(text).tolist(), data) == text


@given(TEXT, st.data())
def test_characters_arrive_one_by_one_even_lone_surrogates(text, data):
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text).tolist()
    assert in_pieces(tokenizer, ids, data) == text
    decoder = tokenizer.decoder()
    assert [decoder.feed(i) for i in ids] == list(text)


def in_pieces(tokenizer, ids, data):
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=8).map(sorted))
    decoder = tokenizer.decoder()
    text = "".join(decoder.feed(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)]))
    return text + decoder.flush()


def test_a_character_is_handed_out_with_its_last_byte():
    decoder = ByteTokenizer().decoder()
    assert [decoder.feed(byte) for byte in "é€😀a".encode()] == [
        "", "é", "", "", "€", "", "", "", "😀", "a"
    ]  # fmt: skip
    assert decoder.feed(np.int64(0xE2)) == ""
    assert decoder.flush() == "\N{REPLACEMENT CHARACTER}"
    assert decoder.feed([0x82, 0x61]) == "\N{REPLACEMENT CHARACTER}a"  # nothing is left over


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_comes_back_as_its_own_kind(kind):
    tokenizer = TOKENIZERS[kind].from_text("ab")
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert (again.kind, type(again)) == (kind, type(tokenizer))
    assert again.to_dict() == tokenizer.to_dict()


def test_a_text_without_a_prompt_opens_with_a_new_line_or_the_first_character():
    assert ByteTokenizer().opening == "\n"
    assert CharTokenizer.from_text("b\n a").opening == "\n"
    assert CharTokenizer.from_text("ba").opening == "a"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: ByteTokenizer().encode("ab\ud800"),
            r"\(U\+D800\) at position 2 is half of a surr",
        ),
        (
            lambda: ByteTokenizer.from_text("\udfff"),
            "at position 0 .* UTF-8 cannot hold; remove it",
        ),
        (lambda: ByteTokenizer().decode([97, 256]), r"in \[0, 256\), got 256 at position 1"),
        (lambda: ByteTokenizer().decoder().feed(-1), "got -1 at position 0"),
        (lambda: ByteTokenizer.from_dict({"kind": "character"}), "kind 'byte', got 'character'"),
        (lambda: tokenizer_from_dict({"kind": "bpe"}), "'character' or 'byte', got 'bpe'"),
        (lambda: tokenizer_from_dict({"kind": ["byte"]}), r"got \['byte'\]"),
        (lambda: tokenizer_from_dict({}), "got None"),
        (lambda: tokenizer_from_dict([]), "expected a mapping with a 'kind', got list"),
        (lambda: tokenizer_from_dict({"kind": "character"}), "a string, got NoneType"),
    ],
)
def test_what_is_no_byte_or_no_known_tokenizer_is_refused_with_the_reason(make, sentence):
    with pytest.raises(DataError, match=sentence):
        make()


@pytest.mark.parametrize("text", [None, b"abc", ["a", "b"], 3])
def test_what_is_no_text_is_refused(text):
    for use in (
        CharTokenizer.from_text, CharTokenizer, CharTokenizer("abc").encode,
        ByteTokenizer.from_text, ByteTokenizer().encode,
    ):  # fmt: skip
        with pytest.raises(DataError, match=rf"expected text \(str\), got {type(text).__name__}"):
            use(text)


def test_unequal_rows_are_not_decoded_and_a_decoder_needs_a_tokenizer():
    with pytest.raises(DataError, match="expected a list of integers, got unequal rows"):
        ByteTokenizer().decode([[1], [1, 2]])
    with pytest.raises(TypeError, match=r"expected a nplm\.data\.Tokenizer, got NoneType"):
        StreamDecoder(None)
