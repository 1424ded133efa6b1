"""Tokenizers: text to integers and back. Here: one token a character, or one a UTF-8 byte."""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from nplm.errors import DataError


class Tokenizer(ABC):
    """Text to ids in [0, V) and back; a subclass says which bytes an id stands for."""

    kind: ClassVar[str]  # its name in tokenizer.json
    codec: ClassVar[tuple[str, str]]  # how those bytes are read as text, and what if they cannot be

    @classmethod
    @abstractmethod
    def from_text(cls, text: str) -> "Tokenizer":
        """Make a tokenizer that can encode `text`."""

    @classmethod
    @abstractmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Tokenizer":
        """Rebuild from `to_dict()`; raises DataError for another kind or a damaged dict."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of different tokens, V."""

    @property
    @abstractmethod
    def opening(self) -> str:
        """What a text starts with when nobody gave a prompt: a new line, if there is one."""

    @abstractmethod
    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Return the ids (N,) of a text; raises DataError at the first that has none."""

    @abstractmethod
    def to_bytes(self, ids: npt.NDArray[Any]) -> bytes:
        """Return the bytes that ids (N,) in [0, V) stand for, for `codec` to read."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return what tokenizer.json holds."""

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids (N,), or of one id; raises DataError for an id outside [0, V)."""
        decoder = self.decoder()
        return decoder.feed(ids) + decoder.flush()

    def decoder(self) -> "StreamDecoder":
        """Return what decodes ids as they arrive."""
        return StreamDecoder(self)


class StreamDecoder:
    """Ids in, one or a few at a time; text out as soon as whole characters are there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not isinstance(tokenizer, Tokenizer):
            raise TypeError(
                f"StreamDecoder: expected a nplm.data.Tokenizer, got {type(tokenizer).__name__}"
            )
        self.tokenizer = tokenizer
        name, errors = tokenizer.codec
        self._codec = codecs.getincrementaldecoder(name)(errors)

    def feed(self, ids: npt.ArrayLike) -> str:
        """Return the text that ids (N,), or one id, complete; DataError for one outside [0, V)."""
        try:
            array = np.asarray(ids)
        except ValueError:  # rows of unequal length
            raise DataError("decode: expected a list of integers, got unequal rows") from None
        if array.size == 0:
            return ""
        if array.ndim > 1 or array.dtype.kind not in "iu":
            raise DataError(
                f"decode: expected a list of integers, got {array.dtype} of shape {array.shape}"
            )
        array = array.reshape(-1)
        check_tokens(array, self.tokenizer.vocab_size, "decode")
        return self._codec.decode(self.tokenizer.to_bytes(array))

    def flush(self) -> str:
        """Return what is left, a character that was never completed, and start anew."""
        return self._codec.decode(b"", final=True)


class CharTokenizer(Tokenizer):
    """One token a character: the id is its place in `characters`, sorted by code point (nanoGPT).

    Raises DataError when `characters` is empty, unsorted, or names a character twice.
    """

    kind = "character"
    codec = ("utf-32-le", "surrogatepass")  # a lone surrogate is a character like any other

    def __init__(self, characters: str) -> None:
        _require_text(characters, "CharTokenizer")
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
        _require_text(text, "CharTokenizer.from_text")
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        """The number of characters, V."""
        return len(self.characters)

    @property
    def opening(self) -> str:
        """A new line if there is one, else the first character."""
        return "\n" if "\n" in self.characters else self.characters[0]

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Return the ids (N,) of N characters; raises DataError at the first unknown character."""
        _require_text(text, "CharTokenizer.encode")
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

    def to_bytes(self, ids: npt.NDArray[Any]) -> bytes:
        """Return the characters of ids (N,) in UTF-32."""
        raw: bytes = self._codes[ids].astype("<u4").tobytes()
        return raw

    def to_dict(self) -> dict[str, Any]:
        """Return what tokenizer.json holds."""
        return {"kind": self.kind, "characters": self.characters}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CharTokenizer":
        """Rebuild from `to_dict()`; raises DataError for another kind or a damaged dict."""
        _require_kind(data, cls.kind)
        characters = data.get("characters")
        if not isinstance(characters, str):
            raise DataError(
                f"tokenizer: characters must be a string, got {type(characters).__name__}"
            )
        return cls(characters)


class ByteTokenizer(Tokenizer):
    """One token a byte of the UTF-8 text, V = 256: any text, in up to four tokens a character.

    What a model writes need not be UTF-8: bytes that are no character decode to U+FFFD.
    """

    kind = "byte"
    codec = ("utf-8", "replace")
    vocab_size = 256
    opening = "\n"

    @classmethod
    def from_text(cls, text: str) -> "ByteTokenizer":
        """Return the one ByteTokenizer there is; raises DataError if `text` cannot be encoded."""
        _utf8(text)
        return cls()

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Return the UTF-8 bytes of `text` (N,); raises DataError at a lone surrogate."""
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int64)

    def to_bytes(self, ids: npt.NDArray[Any]) -> bytes:
        """Return ids (N,) as the bytes that they are."""
        return ids.astype(np.uint8).tobytes()

    def to_dict(self) -> dict[str, Any]:
        """Return what tokenizer.json holds."""
        return {"kind": self.kind}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ByteTokenizer":
        """Rebuild from `to_dict()`; raises DataError for another kind."""
        _require_kind(data, cls.kind)
        return cls()


TOKENIZERS: dict[str, type[Tokenizer]] = {"character": CharTokenizer, "byte": ByteTokenizer}


def tokenizer_from_dict(data: Mapping[str, Any]) -> Tokenizer:
    """Rebuild the tokenizer whose `to_dict()` this is; raises DataError for an unknown kind."""
    kind = _require_kind(data, *TOKENIZERS)
    return TOKENIZERS[kind].from_dict(data)


def _require_kind(data: Any, *kinds: str) -> str:
    if not isinstance(data, Mapping):
        raise DataError(
            f"tokenizer: expected a mapping with a 'kind', got {type(data).__name__}; "
            "take the one that `to_dict` made"
        )
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise DataError(f"tokenizer: expected kind {' or '.join(map(repr, kinds))}, got {kind!r}")
    return kind


def check_tokens(
    tokens: npt.NDArray[Any] | Sequence[int], vocab_size: int | None, what: str = "tokens"
) -> None:
    """Raise DataError at the first token outside [0, vocab_size); None leaves the top open."""
    array = np.asarray(tokens)
    end = 2**63 if vocab_size is None and array.dtype == np.uint64 else vocab_size  # int64's end
    bad = array < 0 if end is None else (array < 0) | (array >= end)
    if bad.any():
        at = int(np.argmax(bad))
        top = "at least 0" if end is None else f"in [0, {end})"
        raise DataError(
            f"{what}: token ids must be {top}, got {array[at]} at position {at}; "
            "encode the text with the tokenizer of this model"
        )


def _require_text(text: Any, what: str) -> None:
    if not isinstance(text, str):
        raise DataError(
            f"{what}: expected text (str), got {type(text).__name__}; decode bytes before, as with "
            "raw.decode('utf-8')"
        )


def _utf8(text: str) -> bytes:
    _require_text(text, "ByteTokenizer")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        at = error.start
        raise DataError(
            f"character {text[at]!a} (U+{ord(text[at]):04X}) at position {at} is half of a "
            "surrogate pair, which UTF-8 cannot hold; remove it"
        ) from None


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    # A lone surrogate (from a damaged file name or JSON) is a character like any other here.
    raw = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return raw.astype(np.uint32, copy=False)
