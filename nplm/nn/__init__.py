"""Layers, losses and what belongs to them, under torch.nn's names."""

from nplm.nn import functional, init, utils
from nplm.nn.activations import (
    GELU,
    Flatten,
    Identity,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)  # fmt: skip
from nplm.nn.attention import CausalSelfAttention
from nplm.nn.containers import ModuleList, Sequential
from nplm.nn.layers import MLP, Dropout, Embedding, LayerNorm, Linear, RMSNorm
from nplm.nn.losses import CrossEntropyLoss, MSELoss, NLLLoss
from nplm.nn.module import Module, Parameter

__all__ = [
    "GELU", "MLP", "CausalSelfAttention", "CrossEntropyLoss", "Dropout", "Embedding", "Flatten",
    "Identity", "LayerNorm", "Linear", "LogSoftmax", "MSELoss", "Module", "ModuleList",
    "NLLLoss", "Parameter", "RMSNorm", "ReLU", "Sequential", "SiLU", "Sigmoid", "Softmax",
    "Tanh", "functional", "init", "utils",
]  # fmt: skip
