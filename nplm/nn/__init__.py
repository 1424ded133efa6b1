"""Layers, losses and what belongs to them, under torch.nn's names."""

from nplm.nn import functional, init, utils
from nplm.nn.attention import CausalSelfAttention
from nplm.nn.layers import (
    GELU,
    MLP,
    CrossEntropyLoss,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    ModuleList,
    MSELoss,
    ReLU,
    RMSNorm,
    Sequential,
    SiLU,
)  # fmt: skip
from nplm.nn.module import Module, Parameter

__all__ = [
    "GELU", "MLP", "CausalSelfAttention", "CrossEntropyLoss", "Dropout", "Embedding", "LayerNorm",
    "Linear", "MSELoss", "Module", "ModuleList", "Parameter", "RMSNorm", "ReLU", "Sequential",
    "SiLU", "functional", "init", "utils",
]  # fmt: skip
