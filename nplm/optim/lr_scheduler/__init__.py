"""Learning-rate schedulers with torch's mechanics: the same lr, bit for bit, at every step.

They move any optimizer that has `param_groups` and `step`: nplm's and torch's own. base.py is the
one to read first.
"""

from nplm.optim.lr_scheduler.base import LRScheduler
from nplm.optim.lr_scheduler.combined import ChainedScheduler, SequentialLR
from nplm.optim.lr_scheduler.cosine import CosineAnnealingLR, CosineAnnealingWarmRestarts
from nplm.optim.lr_scheduler.cycles import CyclicLR, OneCycleLR
from nplm.optim.lr_scheduler.factors import (
    ConstantLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)
from nplm.optim.lr_scheduler.lambdas import LambdaLR, MultiplicativeLR
from nplm.optim.lr_scheduler.plateau import ReduceLROnPlateau
from nplm.optim.lr_scheduler.swa import SWALR

__all__ = [
    "SWALR",
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]
