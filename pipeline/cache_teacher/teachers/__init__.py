"""Who can answer: networks that run here, scikit-learn's estimators, and files of those who have already spoken.

`build` makes one of them of what a user names. May import all that stage one may; nothing of a pass.
"""
