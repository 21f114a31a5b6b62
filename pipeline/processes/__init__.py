"""Who runs it: one process, or several that torchrun or people start. May import torch, nothing of ours."""

LEAST_ROWS = 2  # of a process in a pass: batch norm needs two
