"""Trains teachers of our own: one on everything, or B of them, each on the complement of its fold."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.datasets import Split
from pipeline.fit import BatchLoss, EpochRecord, Training, fit
from pipeline.folds import FoldPlan, fold_digest
from pipeline.models import Preprocessing, build_model, own_preprocessing
from pipeline.models.check import check_network
from pipeline.models.preprocessing import fit_preprocessing
from pipeline.models.weights import save_weights
from pipeline.user_code import is_factory
from pipeline.versions import library_versions
from pipeline.views import Views

SINGLE_FILE = "teacher.safetensors"
FOLD_FILE = "fold{fold}.safetensors"

OnEpoch = Callable[[int, EpochRecord], None]


class HardLabels(BatchLoss):
    """Cross-entropy with the dataset's labels, for rows that have one."""

    def __init__(self, split: Split) -> None:
        if (split.labels < 0).all():
            raise ValueError(f"{split.spec}: every row is unlabelled; a teacher needs labels")
        self.labels = torch.from_numpy(split.labels)

    def __call__(self, logits_BC: Tensor, rows_B: Tensor, **_: int) -> Tensor:
        return F.cross_entropy(logits_BC.float(), self.labels[rows_B].to(logits_BC.device), reduction="none")


def train_teachers(
    split: Split,
    architecture: str,
    training: Training,
    out: Path,
    *,
    plan: FoldPlan | None = None,
    transform: str = "none",
    preprocessing: Preprocessing | None = None,
    device: torch.device | None = None,
    on_epoch: OnEpoch | None = None,
) -> list[Path]:
    """Trains and saves one teacher, or one for each fold of the plan.

    Args:
        split: Training examples; those without a label, and those that cannot be read, are left out.
        architecture: A name of the model table.
        training: Settings; the teacher of fold b is initialised and shuffled with seed ``training.seed + b``.
        out: Folder for ``teacher.safetensors`` or ``fold0.safetensors``, ``fold1.safetensors``, ...
        plan: Cross-fitting folds; None trains one teacher on everything.
        transform: Augmentation, a fresh view each epoch.
        preprocessing: Input scaling; the default is the model's own, or the mean and deviation of its training rows.
        device: Where to train.
        on_epoch: Called with the number of the teacher and the record of every epoch.

    Returns:
        The files written, in fold order.
    """
    if architecture.startswith("sklearn:"):
        raise ValueError(f"{architecture} is fitted by cache-teacher itself: pass it there with --teacher, and --folds")
    folds = plan.assign(split) if plan is not None else None
    loss = HardLabels(split)
    num_views = 1 if transform == "none" else training.epochs
    views = Views(transform=transform, num_views=num_views, seed=training.seed)
    views.check(split)
    if views.mixes:
        raise ValueError(f"transform {transform!r} mixes labels too, which train-teacher cannot; leave out the mixing")
    # a mistake is answered before anything is made
    given = preprocessing or own_preprocessing(architecture)
    trial = given or fit_preprocessing(split, np.arange(min(100, len(split))))
    trial.check(split)
    check_network(
        architecture, build_model(architecture, split), split, views=views, preprocessing=trial, to_train=True
    )
    existing = sorted(out.glob("*.safetensors"))
    if existing:
        raise ValueError(f"{existing[0]} exists already; choose another --out or remove it")
    out.mkdir(parents=True, exist_ok=True)
    usable = split.labels >= 0 if split.readable is None else (split.labels >= 0) & split.readable
    paths = []
    for fold in range(plan.num_folds if plan is not None else 1):
        chosen = usable if folds is None else usable & (folds != fold)
        rows = None if chosen.all() else np.flatnonzero(chosen)
        torch.manual_seed(training.seed + fold)
        model = build_model(architecture, split)
        scaling = given or fit_preprocessing(split, rows)
        try:
            fit(
                model,
                split,
                loss,
                Training(**{**training.attributes(), "seed": training.seed + fold}),
                views=views,
                preprocessing=scaling,
                rows=rows,
                device=device,
                on_epoch=None if on_epoch is None else partial(on_epoch, fold),
            )
        except BaseException:
            if not any(out.iterdir()):
                out.rmdir()
            raise
        metadata: dict[str, Any] = {
            "architecture": architecture,
            "num_classes": split.num_classes,
            "input_shape": list(split.input_shape),
            "dataset": f"{split.name} {split.split}",
            "data_fingerprint": split.fingerprint,
            "preprocessing": scaling.attributes(),
            "transform": transform,
            "training": training.attributes(),
            "versions": library_versions(),
        }
        if plan is not None and folds is not None:
            digest = fold_digest(split.keys, folds)
            metadata["folds"] = {**plan.attributes(), "left_out": fold, "digest": digest}
        paths.append(out / (SINGLE_FILE if plan is None else FOLD_FILE.format(fold=fold)))
        keys = split.keys if rows is None else split.keys[rows]
        save_weights(paths[-1], model, metadata, keys, complete=not is_factory(architecture))
    return paths
