"""Fits what a teacher's tail is predicted and coded with, from its own logits; stage two does not import it."""
