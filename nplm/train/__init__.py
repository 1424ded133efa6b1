"""Training: accumulation, one step, the loop; checkpoints and the run folder."""

from nplm.train.accumulation import WindowResult, accumulate
from nplm.train.early_stopping import EarlyStopping
from nplm.train.loop import Evaluation, evaluate, fit
from nplm.train.step import StepRecord, train_step

__all__ = [
    "EarlyStopping", "Evaluation", "StepRecord", "WindowResult", "accumulate", "evaluate",
    "fit", "train_step",
]  # fmt: skip
