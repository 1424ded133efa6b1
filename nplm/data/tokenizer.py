"""Tokenizers: text to integers and back. Here: one token a character."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nplm.errors import DataError


class CharTokenizer:
    """One token a character: the id is its place in `characters`, sorted by code point (nanoGPT).

    Raises DataError when `characters` is empty, unsorted, or names a character twice.
    """

    kind = "character"

    def __init__(self, characters: str) -> None:
        if not characters:
            raise DataError("CharTokenizer: needs at least one character, got none")
        self.characters = characters
        self._codes = _code_points(characters)  # (V,)
        if np.any(self._codes[1:] <= self._codes[:-1]):
            raise DataError(
                "CharTokenizer: characters must be sorted and each stand once; "
                "use CharTokenizer.from_text(text)"
            )
        # A direct table makes encoding one `take`: 1.1 M code points at most, 4 MB.
        self._ids = np.full(int(self._codes[-1]) + 1, -1, np.int32)
        self._ids[self._codes] = np.arange(len(self._codes))

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """Take every character of `text`; raises DataError if it is empty."""
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        """The number of characters, V."""
        return len(self.characters)

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Return the ids (N,) of N characters; raises DataError at the first unknown character."""
        codes = _code_points(text)
        known = codes < len(self._ids)
        ids = self._ids[np.where(known, codes, 0)].astype(np.int64)
        unknown = ~known | (ids < 0)
        if unknown.any():
            at = int(np.argmax(unknown))
            raise DataError(
                f"character {text[at]!a} (U+{ord(text[at]):04X}) at position {at} is not "
                f"among the {self.vocab_size} characters of this tokenizer; "
                "remove it, or train on a text that contains it"
            )
        return ids

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids (N,); raises DataError for an id outside [0, V)."""
        array = np.asarray(ids)
        if array.size == 0:
            return ""
        if array.ndim > 1 or array.dtype.kind not in "iu":
            raise DataError(
                f"decode: expected a list of integers, got {array.dtype} of shape {array.shape}"
            )
        array = array.reshape(-1)
        check_tokens(array, self.vocab_size, "decode")
        raw: bytes = self._codes[array].astype("<u4").tobytes()
        return raw.decode("utf-32-le", "surrogatepass")

    def to_dict(self) -> dict[str, Any]:
        """Return what tokenizer.json holds."""
        return {"kind": self.kind, "characters": self.characters}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CharTokenizer":
        """Rebuild from `to_dict()`; raises DataError for another kind or a damaged dict."""
        if not isinstance(data, Mapping):
            raise DataError(
                "tokenizer: expected a mapping of 'kind' and 'characters', "
                f"got {type(data).__name__}; take the one that `to_dict` made"
            )
        kind, characters = data.get("kind"), data.get("characters")
        if kind != cls.kind:
            raise DataError(f"tokenizer: expected kind {cls.kind!r}, got {kind!r}")
        if not isinstance(characters, str):
            raise DataError(
                f"tokenizer: characters must be a string, got {type(characters).__name__}"
            )
        return cls(characters)


def check_tokens(
    tokens: npt.NDArray[Any] | Sequence[int], vocab_size: int | None, what: str = "tokens"
) -> None:
    """Raise DataError at the first token outside [0, vocab_size); None leaves the top open."""
    array = np.asarray(tokens)
    bad = array < 0 if vocab_size is None else (array < 0) | (array >= vocab_size)
    if bad.any():
        at = int(np.argmax(bad))
        top = "at least 0" if vocab_size is None else f"in [0, {vocab_size})"
        raise DataError(
            f"{what}: token ids must be {top}, got {array[at]} at position {at}; "
            "encode the text with the tokenizer of this model"
        )


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    # A lone surrogate (from a damaged file name or JSON) is a character like any other here.
    raw = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return raw.astype(np.uint32, copy=False)
