"""The table of losses: one entry per loss with its official settings, nothing registered elsewhere.

It is written in files by what the losses do: compare logits as published recipes do (table_recipes.py), measure a
divergence (table_divergences.py), use the labels or raw logits (table_labels.py), look at features
(table_features.py), or remember each example (table_memory.py). Defaults are those of the
authors' code where one is known, and `setting` says for which data; `use` says what a loss is robust to and when to
take it; `unsure` says what could not be verified.
"""

from __future__ import annotations

from .kinds import Loss
from .table_divergences import DIVERGENCES
from .table_features import FEATURE_LOSSES
from .table_labels import LABELLED, SEMIPARAMETRIC
from .table_memory import MEMORY_LOSSES
from .table_recipes import RECIPES

LOSSES: dict[str, Loss] = {**RECIPES, **DIVERGENCES, **LABELLED, **SEMIPARAMETRIC}
EVERY_LOSS: dict[str, Loss] = {**LOSSES, **FEATURE_LOSSES, **MEMORY_LOSSES}
"""Those that look at logits and labels alone, and those that look at features or remember examples, too."""
