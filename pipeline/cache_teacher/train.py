"""Trains teachers of our own: one on everything, or B of them, each on the complement of its fold."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.files.versions import library_versions
from logitbank.pipeline.fit import EpochRecord, Training
from logitbank.pipeline.fit.checkpoint import Checkpoint
from logitbank.pipeline.fit.loop import BatchLoss, fit
from logitbank.pipeline.folds import FoldPlan, fold_digest
from logitbank.pipeline.models import Given, Preprocessing, build_model, settle_fresh
from logitbank.pipeline.models.check import check_network
from logitbank.pipeline.models.weights import KEY_SPACE, read_metadata, save_weights
from logitbank.pipeline.user_code import is_factory
from logitbank.pipeline.views import Views
from logitbank.stores.locks import locked

SINGLE_FILE = "teacher.safetensors"
FOLD_FILE = "fold{fold}.safetensors"
CHECKPOINT_ENDING = ".checkpoint.safetensors"

OnEpoch = Callable[[int, EpochRecord], None]


class HardLabels(BatchLoss):
    """Cross-entropy with the dataset's labels, for rows that have one; of many positions, the mean of the labelled."""

    def __init__(self, split: Split) -> None:
        if (split.labels < 0).all():
            raise ValueError(f"{split.spec}: every row is unlabelled; a teacher needs labels")
        self.labels = torch.from_numpy(split.labels)

    def __call__(self, logits_BC: Tensor, rows_B: Tensor, **_: int) -> Tensor:
        labels_B = self.labels[rows_B].to(logits_BC.device)
        logits_PC, labels_P = logits_BC.float().flatten(0, -2), labels_B.flatten()
        loss_B = F.cross_entropy(logits_PC, labels_P, reduction="none", ignore_index=-1).view_as(labels_B)
        return loss_B if labels_B.ndim == 1 else loss_B.sum(dim=1) / (labels_B >= 0).sum(dim=1).clamp(min=1)


def train_teachers(
    split: Split,
    architecture: str,
    training: Training,
    out: Path,
    *,
    plan: FoldPlan | None = None,
    transform: str = "none",
    preprocessing: Given | None = None,
    device: torch.device | None = None,
    on_epoch: OnEpoch | None = None,
    on_there: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Trains and saves one teacher, or one for each fold of the plan.

    The same call goes on where a killed one stopped: teachers that are finished stay, an unfinished one goes on after
    its last whole epoch, to the same weights bit for bit.

    Args:
        split: Training examples; those without a label, and those that cannot be read, are left out.
        architecture: A name of the model table.
        training: Settings; the teacher of fold b is initialised and shuffled with seed ``training.seed + b``.
        out: Folder for ``teacher.safetensors`` or ``fold0.safetensors``, ``fold1.safetensors``, ...
        plan: Cross-fitting folds; None trains one teacher on everything.
        transform: Augmentation, a fresh view each epoch.
        preprocessing: Input scaling; the default is the model's own, or the mean and deviation of its training rows.
        device: Where to train.
        on_epoch: Called with the number of the teacher and the record of every epoch, restored ones first.
        on_there: Called with the file of each teacher that was there already.

    Returns:
        The files, in fold order.

    Raises:
        ValueError: The folder holds other teachers.
    """
    if architecture.startswith("sklearn:"):
        raise ValueError(f"{architecture} is fitted by cache-teacher itself: pass it there with --teacher, and --folds")
    loss = HardLabels(split)
    num_views = 1 if transform == "none" else training.epochs
    views = Views(transform=transform, num_views=num_views, seed=training.seed)
    views.check(split)
    if views.mixes:
        raise ValueError(f"transform {transform!r} mixes labels too, which train-teacher cannot; leave out the mixing")
    # a mistake is answered before anything is made
    trial = settle_fresh(architecture, split, preprocessing, np.arange(min(100, len(split))))
    trial.check(split)
    fresh = build_model(architecture, trial.sized(split))
    check_network(architecture, fresh, split, views=views, preprocessing=trial, to_train=True)
    jobs = list(_jobs(split, architecture, training, out, plan=plan, views=views, given=preprocessing))
    with locked(out):
        existed = out.exists()
        done = _finished(jobs, out)
        out.mkdir(parents=True, exist_ok=True)
        for number, job in enumerate(jobs):
            if job.path in done:
                job.checkpoint.path.unlink(missing_ok=True)  # of a process that was killed before it removed it
                if on_there is not None:
                    on_there(job.path)
                continue
            try:
                _train(
                    job,
                    split,
                    architecture,
                    loss,
                    views,
                    device=device,
                    on_epoch=None if on_epoch is None else partial(on_epoch, number),
                )
            except BaseException:
                if not existed and not any(out.iterdir()):
                    out.rmdir()
                raise
    return [job.path for job in jobs]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One teacher to be trained.

    Attributes:
        path: Its weights.
        training: With its own seed.
        rows: int64, those it is trained on; None: all.
        scaling: Its input scaling.
        metadata: What its weights will say, the versions of libraries apart.
    """

    path: Path
    training: Training
    rows: npt.NDArray[np.int64] | None
    scaling: Preprocessing
    metadata: Mapping[str, Any]

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.path.with_name(f"{self.path.stem}{CHECKPOINT_ENDING}"), self.metadata)


def _train(
    job: _Job,
    split: Split,
    architecture: str,
    loss: BatchLoss,
    views: Views,
    *,
    device: torch.device | None,
    on_epoch: Callable[[EpochRecord], None] | None,
) -> None:
    torch.manual_seed(job.training.seed)
    model = build_model(architecture, job.scaling.sized(split))
    fit(
        model,
        split,
        loss,
        job.training,
        views=views,
        preprocessing=job.scaling,
        rows=job.rows,
        device=device,
        checkpoint=job.checkpoint,
        on_epoch=on_epoch,
    )
    keys = split.keys if job.rows is None else split.keys[job.rows]
    metadata = {**job.metadata, "versions": library_versions()}
    save_weights(job.path, model, metadata, keys, complete=not is_factory(architecture))
    job.checkpoint.path.unlink(missing_ok=True)


def _jobs(
    split: Split,
    architecture: str,
    training: Training,
    out: Path,
    *,
    plan: FoldPlan | None,
    views: Views,
    given: Given | None,
) -> Iterator[_Job]:
    folds = plan.assign(split) if plan is not None else None
    usable = split.usable
    code = views.attributes().get("code_sha256")
    for fold in range(plan.num_folds if plan is not None else 1):
        chosen = usable if folds is None else usable & (folds != fold)
        rows = None if chosen.all() else np.flatnonzero(chosen)
        scaling = settle_fresh(architecture, split, given, rows)
        metadata: dict[str, Any] = {
            "architecture": architecture,
            "num_classes": split.num_classes,
            "input_shape": list(scaling.sized(split).input_shape),
            "dataset": f"{split.name} {split.split}",
            "data_fingerprint": split.fingerprint,
            KEY_SPACE: split.key_space,
            "preprocessing": scaling.attributes(),
            "transform": views.transform,
            "training": training.attributes(),
            **({} if code is None else {"transform_sha256": code}),
        }
        if plan is not None and folds is not None:
            digest = fold_digest(split.keys, folds)
            metadata["folds"] = {**plan.attributes(), "left_out": fold, "digest": digest}
        yield _Job(
            path=out / (SINGLE_FILE if plan is None else FOLD_FILE.format(fold=fold)),
            training=replace(training, seed=training.seed + fold),
            rows=rows,
            scaling=scaling,
            metadata=metadata,
        )


def _finished(jobs: Sequence[_Job], out: Path) -> set[Path]:
    """The teachers that are there already; ValueError when the folder holds others."""
    own = {path for job in jobs for path in (job.path, job.checkpoint.path)}
    others = sorted(path for path in out.glob("*.safetensors") if path not in own)
    if others:
        raise ValueError(f"{others[0]} exists already and is of another call; choose another --out or remove it")
    done = set()
    for job in jobs:
        if not job.path.exists():
            continue
        found = read_metadata(job.path)
        different = [name for name, value in job.metadata.items() if found.get(name) != value]
        if different:
            shown = "; ".join(_difference(name, found.get(name), job.metadata[name]) for name in different[:3])
            raise ValueError(
                f"{job.path} is there already, and is another teacher ({shown}); give the same options to go on, or"
                " choose another --out"
            )
        done.add(job.path)
    return done


def _difference(name: str, found: object, wanted: object) -> str:
    """The first place where two settings differ, as ``training.lr 0.1, here 0.05``."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        inner = next((key for key in (*wanted, *found) if found.get(key) != wanted.get(key)), "")
        return _difference(f"{name}.{inner}", found.get(inner), wanted.get(inner))
    return f"{name} {str(found)[:60]}, here {str(wanted)[:60]}"
