"""Who runs it: one process, or several that torchrun, people or Ray start. May import torch and ray, and of ours only
stores, whose waiting is told in the same words.

    rank, device, together      which of several a process is, where it computes; one model by several
    ray_cluster, ray_engine     Ray
    bar, heap                   how far something is; what the C library keeps
"""

LEAST_ROWS = 2  # of a process in a pass: batch norm needs two
