"""Who can answer: networks that run here, scikit-learn's estimators, and files of those who have already spoken.

`build` makes one of them of what a user names. May import all that stage one may; nothing of a pass.
"""

ARRAY_PREFIX, TOPK_PREFIX, EXPORT_PREFIX = "array:", "topk:", "export:"
TINYVIT_PREFIX, SKLEARN_PREFIX = "tinyvit:", "sklearn:"
NO_WEIGHTS = (ARRAY_PREFIX, TOPK_PREFIX, EXPORT_PREFIX, TINYVIT_PREFIX, SKLEARN_PREFIX)
"""What a teacher's name begins with that is no network."""
