"""What losses take of a student beside logits: its places, and the store's features that their modules are made of.

Shapes: B batch, N rows, K features of the teacher.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.models.check import shown
from logitbank.pipeline.models.features import PENULTIMATE, Place, find_place
from logitbank.pipeline.models.subclasses import SubclassNetwork
from logitbank.pipeline.train_student.losses import Material, Objective, StoredFeatures
from logitbank.pipeline.views import Views
from logitbank.stores import StoreError

FIT_ROWS = 20_000
"""Of the rows that a student is trained on, so many at random show what the teacher's features are like."""


@dataclass(frozen=True, kw_only=True)
class Captured:
    """An objective, and where it captures features in a student.

    Attributes:
        objective: With its modules, made for this student.
        places: Where it captures, by what it calls it.
    """

    objective: Objective
    places: dict[str, Place] = field(default_factory=dict)


def equip(
    objective: Objective,
    name: str,
    model: nn.Module,
    split: Split,
    *,
    views: Views,
    scaling: Preprocessing,
    stored: StoredFeatures | None,
    seed: int,
) -> Captured:
    """The objective, made for a student.

    Args:
        objective: With every option bound, or to be searched.
        name: What the user calls the student.
        model: The student, on the CPU.
        split: Its examples.
        views: How they are shown.
        scaling: Its input scaling.
        stored: The store's features, where the objective needs them.
        seed: Of modules that are drawn at random.

    Raises:
        ValueError: The student has no such places.
    """
    places: dict[str, Place] = {}
    student_features = subclasses = 0
    inner = model.model if isinstance(model, SubclassNetwork) else model
    if "student_features_BD" in objective.captures:
        scaling = scaling.on(split)
        inputs = scaling(shown(split, views, scaling))
        training = model.training
        try:
            model.eval()
            place, student_features = find_place(name, inner, PENULTIMATE, lambda asked: asked(inputs))
        finally:
            model.train(training)
        places["student_features_BD"] = place
    if "subclass_logits_BG" in objective.captures:
        if not isinstance(model, SubclassNetwork):
            raise ValueError(
                f"loss {objective.name!r} teaches subclasses, and {name!r} has none; take --student subclasses:4:{name}"
            )
        places["subclass_logits_BG"], subclasses = Place(model.add, reads=True), model.subclasses
    material = Material(
        num_classes=split.num_classes,
        num_examples=len(split),
        student_features=student_features,
        subclasses=subclasses,
        teacher=stored,
    )
    return Captured(objective=objective.equipped(material, seed), places=places)


def stored_features(answers: Answers, split: Split, rows: npt.NDArray[np.int64]) -> StoredFeatures:
    """The teacher's features of some of the rows that a student is trained on, in the first view.

    Raises:
        ValueError: The store's last layer is none of such features.
    """
    (part,) = answers.parts
    served = rows[answers.served(0)[rows]]
    if len(served) > FIT_ROWS:
        served = np.sort(np.random.default_rng(0).choice(served, FIT_ROWS, replace=False))
    rows_N = torch.from_numpy(served)
    values_NK, fold_N = (found.cpu() for found in answers.of(rows_N, 0).features())
    class_N = torch.from_numpy(split.labels[served]).clone()
    unlabelled_N = (class_N < 0).nonzero()[:, 0]
    for unlabelled_B in torch.split(unlabelled_N, 4096) if len(unlabelled_N) else ():
        flat_BC = torch.zeros(len(unlabelled_B), split.num_classes)
        best_B = answers.logits(rows_N[unlabelled_B], 0, student_BC=flat_BC).argmax(1)
        class_N[unlabelled_B] = best_B.cpu()
    num_folds = 1 if part.teacher.folds is None else int(part.teacher.folds["num_folds"])
    head_FCK: Tensor | None = None
    if "head_weight" in part.teacher.constant_names:
        head_FCK = torch.from_numpy(part.teacher.constant("head_weight")).float()
        expected = (num_folds, split.num_classes, values_NK.shape[1])
        if tuple(head_FCK.shape) != expected:
            raise StoreError(
                f"head_weight of teacher {part.teacher.name!r} is {list(head_FCK.shape)}, expected {list(expected)}:"
                " folds, classes, features; do not use this store"
            )
    return StoredFeatures(values_NK=values_NK, fold_N=fold_N, class_N=class_N, head_FCK=head_FCK, num_folds=num_folds)
