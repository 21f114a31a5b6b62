"""Fits what a teacher's tail is predicted and coded with, from its own logits; stage two does not import it.

`predictor` and `low_rank` fit the map from head to tail, `basis` the code of what it leaves over.
"""
