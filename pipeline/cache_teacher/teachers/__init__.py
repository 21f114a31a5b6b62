"""Who can answer: networks that run here, scikit-learn's estimators, and files of those who have already spoken.

    answering                   what stage one asks of any of them
    load, networks, running, compute, claims        networks that run here, and what their weights say
    estimators, recorded        scikit-learn's; the teacher that a store records
    arrays, exported, sparse    logits in a file; exports of a store; the best classes alone
    topk, topk_files, topk_rows, tinyvit, tinyvit_files         what other programs saved

`build` makes one of them of what a user names. May import all that stage one may; nothing of a pass.
"""

ARRAY_PREFIX, TOPK_PREFIX, EXPORT_PREFIX = "array:", "topk:", "export:"
TINYVIT_PREFIX, SKLEARN_PREFIX = "tinyvit:", "sklearn:"
NO_WEIGHTS = (ARRAY_PREFIX, TOPK_PREFIX, EXPORT_PREFIX, TINYVIT_PREFIX, SKLEARN_PREFIX)
"""What a teacher's name begins with that is no network."""
