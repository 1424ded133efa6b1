"""Optimizers and learning-rate schedulers under torch's names; adam.py is the one to read."""

from nplm.optim import lr_scheduler
from nplm.optim.adam import Adam, AdamW
from nplm.optim.optimizer import Optimizer
from nplm.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "lr_scheduler"]
