"""Layers, losses and what belongs to them, under torch.nn's names."""

from nplm.nn import functional, init, utils
from nplm.nn.activations import GELU, ReLU, SiLU
from nplm.nn.attention import CausalSelfAttention
from nplm.nn.containers import ModuleList, Sequential
from nplm.nn.layers import MLP, Dropout, Embedding, LayerNorm, Linear, RMSNorm
from nplm.nn.losses import CrossEntropyLoss, MSELoss
from nplm.nn.module import Module, Parameter

__all__ = [
    "GELU", "MLP", "CausalSelfAttention", "CrossEntropyLoss", "Dropout", "Embedding", "LayerNorm",
    "Linear", "MSELoss", "Module", "ModuleList", "Parameter", "RMSNorm", "ReLU", "Sequential",
    "SiLU", "functional", "init", "utils",
]  # fmt: skip
