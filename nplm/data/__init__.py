"""Data: corpora, tokenizers, datasets, and the batches that training reads."""

from nplm.data.collate import default_collate, default_convert
from nplm.data.dataloader import DataLoader
from nplm.data.dataset import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)
from nplm.data.loader import (
    IGNORE_INDEX,
    Batch,
    RandomWindows,
    SequentialWindows,
    TokenWindows,
    Window,
    collate_windows,
    windows_of,
)
from nplm.data.sampler import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
)
from nplm.data.text import Corpus, default_corpus, read_corpus, split_tokens
from nplm.data.tokenizer import (
    TOKENIZERS,
    ByteTokenizer,
    CharTokenizer,
    StreamDecoder,
    Tokenizer,
    tokenizer_from_dict,
)

__all__ = [
    "IGNORE_INDEX",
    "TOKENIZERS",
    "Batch",
    "BatchSampler",
    "ByteTokenizer",
    "CharTokenizer",
    "ConcatDataset",
    "Corpus",
    "DataLoader",
    "Dataset",
    "IterableDataset",
    "RandomSampler",
    "RandomWindows",
    "Sampler",
    "SequentialSampler",
    "SequentialWindows",
    "StreamDecoder",
    "Subset",
    "SubsetRandomSampler",
    "TensorDataset",
    "TokenWindows",
    "Tokenizer",
    "Window",
    "collate_windows",
    "default_collate",
    "default_convert",
    "default_corpus",
    "random_split",
    "read_corpus",
    "split_tokens",
    "tokenizer_from_dict",
    "windows_of",
]
