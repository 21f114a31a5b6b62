"""Teachers from scikit-learn: fitted here, on the complement of each fold, and never saved.

An estimator has no weights that could be stored without pickling it. It is fitted in the pass itself, with a fixed
``random_state``, so that a second run, or another part, gives the same answers.

Shapes: B rows, C classes, D features, N examples.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.teachers import SKLEARN_PREFIX
from logitbank.pipeline.cache_teacher.teachers.answering import Batch, Features
from logitbank.pipeline.cache_teacher.teachers.claims import nothing_seen, trained_on
from logitbank.pipeline.cache_teacher.teachers.load import fold_attributes
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.folds import FoldPlan, Folds
from logitbank.pipeline.models.preprocessing import Preprocessing, fit_preprocessing
from logitbank.pipeline.spelling import unknown
from logitbank.pipeline.views import Views

PROB_FLOOR = 1e-6  # as ``sound.ZERO_FLOOR``

ESTIMATORS: dict[str, str] = {
    "RandomForestClassifier": "sklearn.ensemble",
    "ExtraTreesClassifier": "sklearn.ensemble",
    "GradientBoostingClassifier": "sklearn.ensemble",
    "HistGradientBoostingClassifier": "sklearn.ensemble",
    "AdaBoostClassifier": "sklearn.ensemble",
    "BaggingClassifier": "sklearn.ensemble",
    "DecisionTreeClassifier": "sklearn.tree",
    "KNeighborsClassifier": "sklearn.neighbors",
    "LogisticRegression": "sklearn.linear_model",
    "GaussianNB": "sklearn.naive_bayes",
    "MLPClassifier": "sklearn.neural_network",
    "LinearDiscriminantAnalysis": "sklearn.discriminant_analysis",
    "QuadraticDiscriminantAnalysis": "sklearn.discriminant_analysis",
}


class EstimatorTeacher:
    """Fits one estimator on everything, or one on the complement of each fold; each answers its own fold.

    A logit is the natural log of the probability that ``predict_proba`` gives, raised to ``floor`` where it is lower (a
    forest says 0 where no tree voted). Images are flattened; every input is standardised with the mean and deviation of
    the rows the estimator is fitted on. Unlabelled rows are answered but not fitted on.

    Args:
        spec: ``sklearn:NAME?option=value``, options as in scikit-learn, and ``floor``.
        split: The examples.
        plan: Cross-fitting folds; None fits on everything.
        seed: ``random_state`` of the estimator of fold 0; of fold b, ``seed + b``.
        on_fit: Called with the number of each estimator before it is fitted.

    Raises:
        ValueError: Unknown estimator or option.
    """

    features: Features | None = None

    def __init__(
        self,
        spec: str,
        split: Split,
        *,
        plan: FoldPlan | None = None,
        seed: int = 0,
        on_fit: Callable[[int], None] | None = None,
    ) -> None:
        self.spec, self.split, self.views = spec, split, Views()
        self.folds: Folds | None = None
        self.fold_attributes: Mapping[str, Any] | None = None
        self.groups = split.groups if plan is None else plan.groups(split)
        self.seen = trained_on(split) if plan is None else nothing_seen(split)
        self._make, self.options, self.floor = _parse(spec)
        if plan is not None:
            self.folds = plan.assign(split)
            self.fold_attributes = fold_attributes(plan, split, self.folds, proof="fitted here")
        self.seed, self._on_fit = seed, on_fit
        self._fitted: dict[int, tuple[Preprocessing, Any]] = {}
        self._make(self.options, seed)  # an option that does not exist is said now

    def identity(self) -> dict[str, Any]:
        import sklearn

        recipe = {
            "estimator": self.spec,
            "floor": self.floor,
            "seed": self.seed,
            "sklearn": sklearn.__version__,
            "data": self.split.fingerprint,
            "folds": self.fold_attributes,
        }
        text = json.dumps(recipe, sort_keys=True, allow_nan=False)
        digests = [hashlib.sha256(f"{fold} {text}".encode()).hexdigest() for fold in range(self._num_folds)]
        return {
            "architecture": self.spec,
            "weights_sha256": digests,
            "weights": "none: fitted in the pass; the digest is that of the recipe",
            "sklearn": sklearn.__version__,
            "precision": "float64",
        }

    def __call__(self, rows: npt.NDArray[np.integer], view: int) -> Tensor:
        log_prob_NC = np.empty((len(rows), self.split.num_classes), dtype=np.float32)
        for fold in range(self._num_folds):
            own = np.arange(len(rows)) if self.folds is None else np.flatnonzero(self.folds[rows] == fold)
            if len(own):
                log_prob_NC[own] = self._answer(fold, rows[own])
        return torch.from_numpy(log_prob_NC)

    def batches(self, rows: npt.NDArray[np.integer], view: int) -> Iterator[Batch]:
        yield Batch(np.arange(len(rows)), self(rows, view))

    @property
    def _num_folds(self) -> int:
        return 1 if self.folds is None else int(self.folds.max()) + 1

    def _answer(self, fold: int, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        if fold not in self._fitted:
            self._fitted[fold] = self._fit(fold)
        scaling, estimator = self._fitted[fold]
        prob_BC = np.zeros((len(rows), self.split.num_classes))
        prob_BC[:, estimator.classes_] = estimator.predict_proba(self._features(rows, scaling))
        log_prob_BC: npt.NDArray[np.float64] = np.log(np.maximum(prob_BC, self.floor))
        return log_prob_BC

    def _fit(self, fold: int) -> tuple[Preprocessing, Any]:
        if self._on_fit is not None:
            self._on_fit(fold)
        labelled = self.split.labels >= 0
        if self.split.readable is not None:
            labelled &= self.split.readable
        rows = np.flatnonzero(labelled if self.folds is None else labelled & (self.folds != fold))
        if not len(rows):
            raise ValueError(f"{self.split.spec}: no labelled rows to fit {self.spec} on; give labels")
        scaling = fit_preprocessing(self.split, rows)
        estimator = self._make(self.options, self.seed + fold)
        try:
            estimator.fit(self._features(rows, scaling), self.split.labels[rows])
        except ValueError as error:  # scikit-learn explains over several lines
            raise ValueError(f"{self.spec}: {str(error).splitlines()[0]}") from error
        return scaling, estimator

    def _features(self, rows: npt.NDArray[np.integer], scaling: Preprocessing) -> npt.NDArray[np.float32]:
        return np.asarray(scaling(torch.from_numpy(self.split.samples[rows])).flatten(1).numpy())


def _parse(spec: str) -> tuple[Callable[[dict[str, Any], int], Any], dict[str, Any], float]:
    name, _, query = spec.removeprefix(SKLEARN_PREFIX).partition("?")
    if name not in ESTIMATORS:
        raise ValueError(unknown("scikit-learn estimator", name, ESTIMATORS))
    options = {key: _value(text) for key, text in parse_qsl(query, keep_blank_values=True)}
    floor = options.pop("floor", PROB_FLOOR)
    if not isinstance(floor, float) or not 0 < floor < 1:
        raise ValueError(f"{spec}: floor is {floor!r}; expected a probability between 0 and 1, such as 1e-6")
    estimator = getattr(import_module(ESTIMATORS[name]), name)
    known = estimator().get_params()

    def make(options: dict[str, Any], seed: int) -> Any:
        for option in options:
            if option not in known:
                raise ValueError(f"{spec}: {unknown('option', option, known)}")
        fixed = {"random_state": seed} if "random_state" in known and "random_state" not in options else {}
        return estimator(**fixed, **options)

    return make, options, floor


def _value(text: str) -> Any:
    """JSON where it is JSON (numbers, true, false, null), else text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
