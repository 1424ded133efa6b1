"""Optimizers and learning-rate schedulers under torch's names; adam.py is the one to read.

Without SparseAdam: it updates only the rows that a sparse gradient names, and nplm's are dense.
"""

from nplm.optim import lr_scheduler, swa_utils
from nplm.optim.adadelta import Adadelta
from nplm.optim.adafactor import Adafactor
from nplm.optim.adagrad import Adagrad
from nplm.optim.adam import Adam, AdamW
from nplm.optim.adamax import Adamax
from nplm.optim.asgd import ASGD
from nplm.optim.chained import ChainedOptimizer
from nplm.optim.lbfgs import LBFGS
from nplm.optim.muon import Muon
from nplm.optim.nadam import NAdam
from nplm.optim.optimizer import Optimizer
from nplm.optim.radam import RAdam
from nplm.optim.rmsprop import RMSprop
from nplm.optim.rprop import Rprop
from nplm.optim.sgd import SGD

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ChainedOptimizer",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "lr_scheduler",
    "swa_utils",
]
