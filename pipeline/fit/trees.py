"""Fits an estimator of scikit-learn to targets, and takes its trees out of it.

Shapes: N rows, D features, C classes.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.limits import check_fits
from logitbank.pipeline.fit.estimators import CROSS_ENTROPY, Estimator, read_estimator
from logitbank.pipeline.models.trees import PROB_FLOOR, Tree, TreeEnsemble

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]
_COPIES = 3  # of repeated rows in memory: the rows, and the library's own


def check_estimator(student: str) -> None:
    """Raises ValueError, in one line, when scikit-learn would not take the student's options."""
    _make(student, seed=0, threads=1)


def fit_trees(
    student: str,
    features_ND: Features,
    target_NC: Floats,
    weight_N: Floats,
    *,
    scale: str = "logit",
    temperature: float = 1.0,
    seed: int = 0,
    threads: int = 0,
) -> TreeEnsemble:
    """A student that was fitted to targets.

    A regressor takes the targets of all classes, or, boosted, those of each class by itself. A classifier takes every
    row once for each class that its target holds, with the class's share as the row's weight, which makes its log loss
    the cross-entropy with the target.

    Args:
        student: ``sklearn:NAME?option=value``.
        features_ND: Inputs.
        target_NC: Logits, or numbers that sum to 1.
        weight_N: How much each row counts; rows of weight 0 are left out.
        scale: "logit" or "probability": what the targets are.
        temperature: The logits are so many times those that fit the targets.
        seed: ``random_state``.
        threads: CPU threads; 0 leaves it to the library.

    Raises:
        ValueError: Nothing to fit, or scikit-learn refuses.
    """
    from threadpoolctl import threadpool_limits

    _, kind, _ = read_estimator(student)
    chosen = weight_N > 0
    if not chosen.any():
        raise ValueError(f"{student}: no row has anything to fit; give labels, or a loss that follows the teacher")
    features_ND, target_NC, weight_N = features_ND[chosen], target_NC[chosen], weight_N[chosen]
    try:
        with threadpool_limits(threads or None):
            if kind.fits == CROSS_ENTROPY:
                return _classify(student, kind, features_ND, target_NC, weight_N, temperature, seed, threads)
            return _regress(student, kind, features_ND, target_NC, weight_N, scale, seed, threads)
    except (ValueError, TypeError) as error:  # scikit-learn explains over several lines
        text = str(error).splitlines()[0]
        raise ValueError(text if text.startswith(student) else f"{student}: {text}") from error


def _regress(
    student: str,
    kind: Estimator,
    features_ND: Features,
    target_NC: Floats,
    weight_N: Floats,
    scale: str,
    seed: int,
    threads: int,
) -> TreeEnsemble:
    weights, num_classes = _unless_equal(weight_N), target_NC.shape[1]
    base_C = np.zeros(num_classes)
    if kind.boosted:
        trees = list[Tree]()
        for column in range(num_classes):
            fitted = _make(student, seed=seed, threads=threads).fit(features_ND, target_NC[:, column], weights)
            base_C[column] = fitted._baseline_prediction.item()
            trees += _boosted(fitted, [column])
    else:
        fitted = _make(student, seed=seed, threads=threads).fit(features_ND, target_NC, weights)
        trees = list(_averaged(fitted, np.arange(num_classes), num_classes))
    return TreeEnsemble(features_ND.shape[1], num_classes, trees, base=base_C, is_probability=scale == "probability")


def _classify(
    student: str,
    kind: Estimator,
    features_ND: Features,
    target_NC: Floats,
    weight_N: Floats,
    temperature: float,
    seed: int,
    threads: int,
) -> TreeEnsemble:
    num_classes = target_NC.shape[1]
    rows, classes = np.nonzero(target_NC > 0)
    check_fits(f"{student} on {len(rows)} pairs of a row and a class", _COPIES * len(rows) * features_ND[0].nbytes)
    weights = _unless_equal(target_NC[rows, classes] * weight_N[rows])
    fitted = _make(student, seed=seed, threads=threads).fit(features_ND[rows], classes, weights)
    known = fitted.classes_
    if not kind.boosted:
        trees = list(_averaged(fitted, known, num_classes))
        return TreeEnsemble(features_ND.shape[1], num_classes, trees, is_probability=True, temperature=temperature)
    base_C = np.full(num_classes, np.log(PROB_FLOOR))  # of a class that no row has
    if len(known) == 2:  # one score, of the second against the first
        base_C[known] = 0.0, fitted._baseline_prediction.item()
        trees = _boosted(fitted, known[1:])
    else:
        base_C[known] = fitted._baseline_prediction[0]
        trees = _boosted(fitted, known)
    return TreeEnsemble(features_ND.shape[1], num_classes, trees, base=base_C, temperature=temperature)


def _make(student: str, *, seed: int, threads: int) -> Any:
    """The estimator before it is fitted."""
    name, kind, options = read_estimator(student)
    estimator = getattr(import_module(kind.module), name)
    more = {"n_jobs": threads or None} if "n_jobs" in estimator().get_params() else {}
    made = estimator(**kind.fixed, **options, **more, random_state=seed)
    try:
        made._validate_params()
        if options.get("max_samples") is not None and not options.get("bootstrap", made.bootstrap):
            raise ValueError("max_samples does nothing without bootstrap=true; leave it out")
    except ValueError as error:
        raise ValueError(f"{student}: {str(error).splitlines()[0]}") from error
    return made


def _unless_equal(weight_N: Floats) -> Floats | None:
    """None where weights would change nothing."""
    return None if (weight_N == weight_N[0]).all() else weight_N


def _averaged(fitted: Any, classes: npt.NDArray[np.integer], num_classes: int) -> Iterator[Tree]:
    """The trees of a forest, or the one tree, each leaf with its share of the mean."""
    estimators = getattr(fitted, "estimators_", [fitted])
    for each in estimators:
        nodes = each.tree_
        own = np.arange(nodes.node_count)
        leaf = nodes.children_left < 0
        value = np.zeros((nodes.node_count, num_classes))
        value[:, classes] = nodes.value.reshape(nodes.node_count, -1) / len(estimators)
        yield Tree(
            feature=np.where(leaf, 0, nodes.feature),
            threshold=np.where(leaf, 0.0, nodes.threshold),
            left=np.where(leaf, own, nodes.children_left),
            right=np.where(leaf, own, nodes.children_right),
            value=value,
        )


def _boosted(fitted: Any, classes: "npt.NDArray[np.integer] | list[int]") -> list[Tree]:
    """The trees of boosting: of every round one for each class."""
    found = []
    for of_round in fitted._predictors:
        for label, predictor in zip(classes, of_round, strict=True):
            nodes = predictor.nodes
            own, leaf = np.arange(len(nodes)), nodes["is_leaf"].astype(bool)
            found.append(
                Tree(
                    feature=np.where(leaf, 0, nodes["feature_idx"]),
                    threshold=np.where(leaf, 0.0, nodes["num_threshold"]),
                    left=np.where(leaf, own, nodes["left"]),
                    right=np.where(leaf, own, nodes["right"]),
                    value=np.where(leaf, nodes["value"], 0.0)[:, None],
                    output=int(label),
                )
            )
    return found
