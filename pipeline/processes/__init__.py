"""Who runs it: one process, or several that torchrun, people or Ray start. May import torch and ray, and of ours only
stores, whose waiting is told in the same words."""

LEAST_ROWS = 2  # of a process in a pass: batch norm needs two
