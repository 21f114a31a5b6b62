"""How a model comes to be: the one training loop, for teachers and students alike, and trees, which take no steps.

training.py     Training: every setting of a run, and the learning rate as a function of the step
optimizers.py   what the names of optimisers and precisions stand for: timm's factory
loop.py         fit: the loop, top to bottom
feed.py         the rows and samples of each step, read ahead
augment.py      what is done to samples beside the views: random erasing, mixup of pairs and of their losses
progress.py     what changes while it runs: one step, the running average, what would be kept, what is best so far
private.py     steps of DP-SGD
predict.py      logits in evaluation mode
weights.py      weights rounded to few bits with a straight-through gradient
checkpoint.py   everything that a killed run needs to go on bit for bit, in one safetensors file
estimators.py   students of scikit-learn: which there are, and what each is fitted by
trees.py        fits one of them to targets, and takes its trees out of it

The package gives the description alone, which loads nothing heavy.
"""

from logitbank.pipeline.fit.training import COLUMNS, SCHEDULES, EpochRecord, Training

__all__ = ["COLUMNS", "SCHEDULES", "EpochRecord", "Training"]
