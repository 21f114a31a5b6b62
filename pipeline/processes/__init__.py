"""Who runs it: one process, shares of a pass, or processes that torchrun starts. May import torch, nothing of ours."""
