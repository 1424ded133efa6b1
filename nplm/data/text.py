"""Corpora: the text that a model is trained on, and its split into training and validation.

The default corpus needs no download: CPython carries its language reference, for `help()`.
"""

import hashlib
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from nplm import files
from nplm.errors import ConfigError, DataError

_DEFAULT_SOURCE = "pydoc_data.topics"
_Int = TypeVar("_Int", bound=np.integer[Any])


@dataclass(frozen=True)
class Corpus:
    """A text with its identity: what a run records about the data that it saw."""

    name: str  # short, for people
    text: str
    sha256: str  # hexadecimal, of the UTF-8 text
    source: str  # the files, or the module, that it came from

    @classmethod
    def of(cls, name: str, text: str, source: str) -> "Corpus":
        """Make a corpus and compute its hash."""
        return cls(name, text, hashlib.sha256(text.encode("utf-8")).hexdigest(), source)

    @property
    def is_default(self) -> bool:
        """Whether this is `default_corpus()`, whose text depends on the Python version."""
        return self.source.startswith(_DEFAULT_SOURCE)


def default_corpus() -> Corpus:
    """Return the prose of CPython's language reference as ASCII text; the same for one Python.

    Topics come in alphabetical order. A paragraph that several topics share is kept once: otherwise
    a fifth of the text would repeat, and much of the validation part would have been trained on.

    Raises DataError where Python was installed without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "the default corpus is Python's language reference (pydoc_data.topics), which this "
            "Python was installed without; pass a text file of your own"
        ) from None
    seen: set[str] = set()
    cleaned = [_clean(topics[name], seen) for name in sorted(topics)]
    version = ".".join(str(part) for part in sys.version_info[:3])
    source = f"{_DEFAULT_SOURCE} of Python {version}"
    return Corpus.of("python-reference", "\n\n".join(filter(None, cleaned)) + "\n", source)


# ---- cleaning ------------------------------------------------------------------------------------

_PLAIN = str.maketrans(
    {
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{LEFT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
        "\N{EN DASH}": "-",
        "\N{EM DASH}": "--",
        "\N{MULTIPLICATION SIGN}": "x",
        "\N{RIGHTWARDS ARROW}": "->",
    }
)
_GRID = re.compile(r"\s*(\+[-=+]{3,}.*|\|.*\||[-=+ ]{4,})")  # a rule or a row of a table
_UNDERLINE = re.compile(r"([*=~^\"'#-])\1*")
_NOISE = re.compile(r"-\[ .* \]-")  # -[ Footnotes ]-
_ASIDE = re.compile(r" \([Ss]ee [^()\n]*\)")  # (see section Naming and binding)
_LEAD_IN = 24  # characters; a shorter block (a heading, "Note:") may repeat


def _clean(topic: str, seen: set[str]) -> str:
    """Strip a topic of tables, underlines, cross-references, and of the blocks in `seen`."""
    lines: list[str] = []
    aside_indent: int | None = None  # while in a "See also:" list: how far it is indented
    width = previous_width = 0  # before characters are mapped: an underline is as long as its title
    for raw in topic.split("\n"):
        previous_width, width = width, len(raw)
        line = _ascii(raw).rstrip()
        indent = len(line) - len(line.lstrip())
        if aside_indent is not None and line:
            if indent > aside_indent:
                continue
            aside_indent = None
        if line.strip() == "See also:":
            aside_indent = indent
            continue
        underlines = width == previous_width and _UNDERLINE.fullmatch(line)
        if not underlines and not _NOISE.fullmatch(line) and not (line and _GRID.fullmatch(line)):
            lines.append(line)
    text = _ASIDE.sub("", "\n".join(lines))
    blocks = [_unindented(b) for b in re.split(r"\n{2,}", text.strip("\n")) if _is_prose(b)]
    return "\n\n".join(_unseen(blocks, seen))


def _is_prose(block: str) -> bool:
    """Mostly letters, lines of about the same indent: no grammar, no code, no list of operators.

    Prose alone is what a small model learns to spell in a few minutes.
    """
    solid = "".join(block.split())
    indents = [len(line) - len(line.lstrip()) for line in block.split("\n")]
    letters = sum(map(str.isalpha, solid))
    return (
        "::=" not in block
        and ">>>" not in block
        and letters >= 0.85 * len(solid)
        and max(indents) - min(indents) <= 3
    )


def _unindented(block: str) -> str:
    """Every line from its first letter on, single spaces between words."""
    return "\n".join(" ".join(line.split()) for line in block.split("\n"))


def _ascii(text: str) -> str:
    """Map typographic characters to ASCII; letters lose their accents, the rest is dropped."""
    plain = unicodedata.normalize("NFKD", text.translate(_PLAIN)).expandtabs()
    return "".join(c for c in plain if c == "\n" or " " <= c <= "~")


def _unseen(blocks: list[str], seen: set[str]) -> list[str]:
    """Keep the blocks (paragraphs) that no earlier topic had, and remember them."""
    kept: list[str] = []
    for block in blocks:
        words = " ".join(block.split())
        if len(words) < _LEAD_IN or words not in seen:
            kept.append(block)
            seen.add(words)
        elif kept and len(kept[-1]) < _LEAD_IN:
            kept.pop()  # what it introduced is gone
    return kept


# ---- files ---------------------------------------------------------------------------------------

# UTF-32's mark begins like UTF-16's, so it is asked first.
_OTHER_FORMATS = (
    (b"\xff\xfe\x00\x00", "UTF-32 text", "convert it to UTF-8 first"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "convert it to UTF-8 first"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"\x1f\x8b", "a gzip file", "unpack it first"),
)


def read_corpus(paths: Path | str | Sequence[Path | str]) -> Corpus:
    """Read UTF-8 files and join them in the given order; a folder stands for its `*.txt` files.

    Those are all files below it, by relative path; hidden files and folders are left out, links to
    folders are not followed. Line ends and a byte order mark are kept as they are; a newline is put
    between two files where the first does not end in one. Raises DataError for a file that is
    missing, not a regular file, or not UTF-8, for a folder that cannot be listed or has no text,
    and when all files together hold nothing but white space.
    """
    listed = [Path(p) for p in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not listed:
        raise DataError("read_corpus: got no files; pass at least one text file")
    parts = [_read_text(file) for path in listed for file in _text_files(path)]
    text = "".join(p if p.endswith("\n") or not p else p + "\n" for p in parts[:-1]) + parts[-1]
    names = ", ".join(str(p) for p in listed[:3]) + (" ..." if len(listed) > 3 else "")
    if not text:
        raise DataError(f"{names}: the text is empty; pass a file with text to train on")
    if not text.strip():
        raise DataError(
            f"{names}: the text is nothing but white space ({len(text)} characters); "
            "pass a file with text to train on"
        )
    first = listed[0].resolve()
    name = first.name if files.is_directory(first) else listed[0].stem
    if len(listed) > 1:
        name += f"+{len(listed) - 1}"
    return Corpus.of(name, text, ", ".join(str(p.resolve()) for p in listed))


def _text_files(path: Path) -> list[Path]:
    """The file itself, or a folder's texts."""
    if not files.is_directory(path):
        return [path]
    found = files.files_below(path, ".txt", error=DataError)
    if not found:
        raise DataError(
            f"{path}: no text in this folder: expected files *.txt in it or below, found none; "
            "pass another folder, or files by name"
        )
    return found


def _read_text(path: Path) -> str:
    data = files.read_bytes(path, error=DataError)
    for start, what, advice in _OTHER_FORMATS:
        if data.startswith(start):
            raise DataError(f"{path}: this is {what}, expected UTF-8 text; {advice}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} "
            f"({error.reason}); convert it first, for example: iconv -f LATIN1 -t UTF-8"
        ) from None


# ---- split ---------------------------------------------------------------------------------------


def split_tokens(
    tokens: npt.NDArray[_Int], validation_fraction: float = 0.1, *, context: int = 1
) -> tuple[npt.NDArray[_Int], npt.NDArray[_Int]]:
    """Cut tokens (N,) into a training part, the first, and a validation part, the rest (views).

    The cut is nanoGPT's: `int(0.9 * N)`. Raises DataError if a part is shorter than one window,
    which is context + 1 tokens, ConfigError for a fraction outside (0, 1).
    """
    if not 0.0 < validation_fraction < 1.0:
        raise ConfigError(
            f"validation_fraction must be above 0 and below 1, got {validation_fraction}"
        )
    cut = int((1.0 - validation_fraction) * len(tokens))
    train, validation = tokens[:cut], tokens[cut:]
    fits = min(len(train), len(validation)) - 1
    require_window(train, context, "the training part", fits)
    require_window(validation, context, "the validation part", fits)
    return train, validation


def require_window(
    tokens: npt.NDArray[Any], context: int, what: str, fits: int | None = None
) -> None:
    """Raise DataError unless tokens (N,) hold one window, N >= context + 1; ConfigError below 1.

    fits: the context to advise; None: the longest that these tokens allow.
    """
    if context < 1:
        raise ConfigError(f"context must be at least 1 token, got {context}")
    if len(tokens) <= context:
        fits = len(tokens) - 1 if fits is None else fits
        advice = f"--context {fits} or a longer text" if fits > 0 else "a longer text"
        raise DataError(
            f"{what} needs at least {context + 1} tokens (context + 1), has {len(tokens)}; "
            f"use {advice}"
        )
