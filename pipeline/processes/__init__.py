"""Who runs it: one process, shares of a pass, or processes that torchrun starts. May import torch, nothing of ours."""

LEAST_ROWS = 2  # of a process in a pass: batch norm needs two
