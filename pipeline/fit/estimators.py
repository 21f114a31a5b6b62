"""Students of scikit-learn: which there are, what each is fitted by, and how one is spelled.

Imports nothing heavy, since a run's settings are judged by it; trees.py fits them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from logitbank.pipeline.spelling import unknown

PREFIX = "sklearn:"
SQUARED_ERROR, CROSS_ENTROPY = "squared error", "cross-entropy"

_TREE = ("max_depth", "min_samples_split", "min_samples_leaf", "min_weight_fraction_leaf", "max_features")
_GROWN = (*_TREE, "max_leaf_nodes", "min_impurity_decrease", "ccp_alpha")
_FOREST = ("n_estimators", *_GROWN, "bootstrap", "max_samples")
_BOOSTED = (
    *("learning_rate", "max_iter", "max_leaf_nodes", "max_depth", "min_samples_leaf", "l2_regularization"),
    *("max_features", "max_bins"),
)
_STOPPED = ("early_stopping", "validation_fraction", "n_iter_no_change", "tol")
_ELSEWHERE = {"random_state": "--seed", "n_jobs": "--threads", "loss": "--loss", "criterion": "--loss"}


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """One line of the table.

    Attributes:
        module: Where scikit-learn has it.
        fits: The kind of loss that it is fitted by.
        options: Those that it takes, by scikit-learn's names.
        fixed: Those that it is given always.
        boosted: Trees that add up to scores, not trees of which the mean is taken.
        about: For people.
    """

    module: str
    fits: str
    options: tuple[str, ...]
    fixed: Mapping[str, Any]
    boosted: bool = False
    about: str


_SQUARED: Mapping[str, Any] = {"criterion": "squared_error"}
_ENTROPY: Mapping[str, Any] = {"criterion": "log_loss"}

ESTIMATORS: dict[str, Estimator] = {
    "DecisionTreeRegressor": Estimator(
        module="sklearn.tree", fits=SQUARED_ERROR, options=_GROWN, fixed=_SQUARED, about="one tree"
    ),
    "RandomForestRegressor": Estimator(
        module="sklearn.ensemble", fits=SQUARED_ERROR, options=_FOREST, fixed=_SQUARED, about="a forest"
    ),
    "ExtraTreesRegressor": Estimator(
        module="sklearn.ensemble", fits=SQUARED_ERROR, options=_FOREST, fixed=_SQUARED, about="a forest of random cuts"
    ),
    "HistGradientBoostingRegressor": Estimator(
        module="sklearn.ensemble",
        fits=SQUARED_ERROR,
        options=(*_BOOSTED, *_STOPPED),
        fixed={"loss": "squared_error"},
        boosted=True,
        about="boosted trees, for each class its own",
    ),
    "DecisionTreeClassifier": Estimator(
        module="sklearn.tree", fits=CROSS_ENTROPY, options=_GROWN, fixed=_ENTROPY, about="one tree"
    ),
    "RandomForestClassifier": Estimator(
        module="sklearn.ensemble", fits=CROSS_ENTROPY, options=_FOREST, fixed=_ENTROPY, about="a forest"
    ),
    "ExtraTreesClassifier": Estimator(
        module="sklearn.ensemble", fits=CROSS_ENTROPY, options=_FOREST, fixed=_ENTROPY, about="a forest of random cuts"
    ),
    # stopping early would judge copies of the rows that it is fitted to
    "HistGradientBoostingClassifier": Estimator(
        module="sklearn.ensemble",
        fits=CROSS_ENTROPY,
        options=_BOOSTED,
        fixed={"loss": "log_loss", "early_stopping": False},
        boosted=True,
        about="boosted trees",
    ),
}


def is_estimator(student: str) -> bool:
    """Is it one of scikit-learn's: ``sklearn:NAME?option=value&option=value``."""
    return student.startswith(PREFIX)


def read_estimator(student: str) -> tuple[str, Estimator, dict[str, Any]]:
    """Name, line of the table and options of a student.

    Raises:
        ValueError: Another estimator or option, or an option twice.
    """
    name, _, query = student.removeprefix(PREFIX).partition("?")
    if name not in ESTIMATORS:
        raise ValueError(unknown("scikit-learn student", name, ESTIMATORS))
    found, options = ESTIMATORS[name], dict[str, Any]()
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key in _ELSEWHERE:
            raise ValueError(f"{student}: {key} is set by {_ELSEWHERE[key]}; leave it out here")
        if key not in found.options:
            raise ValueError(f"{student}: {unknown('option', key, found.options)}")
        if key in options:
            raise ValueError(f"{student}: {key} is given twice; give it once")
        options[key] = _value(text)
    return name, found, options


def _value(text: str) -> Any:
    """JSON where it is JSON (numbers, true, false, null), else text; Python's words are JSON's."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except json.JSONDecodeError:
        return text
