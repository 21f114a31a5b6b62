"""The one training loop, for teachers and students alike.

training.py     Training: every setting of a run, and the learning rate as a function of the step
loop.py         fit: the loop, top to bottom; predict: logits in evaluation mode
weights.py      running average of the weights, and weights rounded to few bits with a straight-through gradient
processes.py    several processes that train one model together, as torchrun starts them
checkpoint.py   everything that a killed run needs to go on bit for bit, in one safetensors file
"""

from logitbank.pipeline.fit.checkpoint import Checkpoint
from logitbank.pipeline.fit.loop import BatchLoss, Diverged, fit, predict
from logitbank.pipeline.fit.training import COLUMNS, OPTIMIZERS, SCHEDULES, EpochRecord, Training
from logitbank.pipeline.processes.together import Processes

__all__ = [
    "COLUMNS",
    "OPTIMIZERS",
    "SCHEDULES",
    "BatchLoss",
    "Checkpoint",
    "Diverged",
    "EpochRecord",
    "Processes",
    "Training",
    "fit",
    "predict",
]
