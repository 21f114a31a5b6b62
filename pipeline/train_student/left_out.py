"""A fold that a student is not trained on, so that it may answer it as a fold teacher of the next generation.

Shapes: N examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.views import Views
from logitbank.stores import Store

_PLAN = ("num_folds", "strategy", "seed", "digest")


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """One fold of a store.

    Attributes:
        fold: Its number.
        plan: How the store's examples were assigned to folds: num_folds, strategy, seed, digest.
        kept_N: bool, the examples of the other folds.
    """

    fold: int
    plan: Mapping[str, Any]
    kept_N: npt.NDArray[np.bool_]

    def attributes(self) -> dict[str, Any]:
        """As the student's weights say it, for `cache-teacher`."""
        return {**self.plan, "left_out": self.fold}


def leave_out(fold: str, store: Store, answers: Answers, views: Views) -> LeftOut | None:
    """The fold that is left out, if any.

    Args:
        fold: Its number as text; empty leaves nothing out.
        store: Whose folds.
        answers: Of the store's teachers that the student learns from.
        views: Of the store.

    Raises:
        ValueError: The store's teachers have no folds, or not this one; or the views mix it into the others.
    """
    if not fold:
        return None
    plan = next((part.teacher.folds for part in answers.parts if part.teacher.folds is not None), None)
    if plan is None or store.folds is None:
        raise ValueError(
            f"--leave-out {fold} names a fold, but the teacher of {store.path} has none; cache fold teachers, with"
            " cache-teacher --folds, or leave it out"
        )
    if not fold.isdecimal() or int(fold) >= plan["num_folds"]:
        raise ValueError(f"--leave-out is {fold!r}; expected a fold of the store, 0 to {plan['num_folds'] - 1}")
    if views.mixes:
        raise ValueError(
            f"--leave-out {fold} cannot be kept: the store's views mix two examples, and the other one may be of this"
            " fold; use a store without mixup and cutmix"
        )
    kept_N = np.asarray(store.folds) != int(fold)
    return LeftOut(fold=int(fold), plan={name: plan[name] for name in _PLAN}, kept_N=kept_N)
