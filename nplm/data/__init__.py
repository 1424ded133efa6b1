"""Data: corpora, tokenizers, and the batches that training reads."""

from nplm.data.loader import (
    IGNORE_INDEX,
    Batch,
    RandomWindows,
    SequentialWindows,
    windows_of,
)
from nplm.data.text import Corpus, default_corpus, read_corpus, split_tokens
from nplm.data.tokenizer import CharTokenizer

__all__ = [
    "IGNORE_INDEX",
    "Batch",
    "CharTokenizer",
    "Corpus",
    "RandomWindows",
    "SequentialWindows",
    "default_corpus",
    "read_corpus",
    "split_tokens",
    "windows_of",
]
