"""One network of a teacher: its files, its weights, its input scaling and its identity."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from logitbank.pipeline.cache_teacher.teachers.claims import Claims
from logitbank.pipeline.cache_teacher.train import FOLD_FILE, SINGLE_FILE
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.models import Given, Preprocessing, build_model, own_preprocessing, settle
from logitbank.pipeline.models.causal_lm import load_causal_lm, says_weights
from logitbank.pipeline.models.parts import split_selection
from logitbank.pipeline.models.preprocessing import fit_preprocessing
from logitbank.pipeline.models.weights import load_weights, weights_digest

FOLD_PLACEHOLDER = "{fold}"
RANDOM_INIT = "random-init"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TeacherNetwork:
    """One network with its input scaling and its identity."""

    model: nn.Module
    preprocessing: Preprocessing
    identity: Mapping[str, Any]


def load_teacher(
    split: Split,
    architecture: str,
    path: Path,
    part: str,
    preprocessing: Given | None,
    recorded: Preprocessing | None = None,
) -> tuple[TeacherNetwork, Claims]:
    """One network with the weights of a file, and what the file says of them.

    Args:
        split: Gives inputs and classes.
        architecture: As in ``load_teachers``.
        path: The weights.
        part: Which part of the file; see ``load_weights``.
        preprocessing: Overrides the file's metadata and the model's own.
        recorded: What a store says of it; only ``preprocessing`` overrides that.
    """
    claims = Claims.read(path)
    trained_as = claims.architecture or architecture
    if trained_as != architecture:
        raise ValueError(f"{path}: weights of {trained_as!r}, not {architecture!r}; pass --teacher {trained_as}")
    own = own_preprocessing(architecture, split)
    scaling = settle(split, preprocessing, recorded, claims.preprocessing, own)
    model = build_model(architecture, split if scaling is None else scaling.sized(split))
    taken = load_weights(model, path, architecture=architecture, part=part)
    if taken.said:
        _log.warning("note: %s", taken.said)
    if scaling is None:
        raise ValueError(
            f"{path}: nothing says how {architecture!r} wants its input scaled; pass --mean and --std"
            f" (this data: {_suggest(split)})"
        )
    scaling.check(split)
    identity = {"architecture": architecture, "weights_sha256": weights_digest(taken.state)}
    if taken.part:
        identity["weights_part"] = taken.part
    return TeacherNetwork(model=model.eval(), preprocessing=scaling, identity=identity), claims


def _suggest(split: Split) -> str:
    scaling = fit_preprocessing(split)
    mean, std = (",".join(f"{value:.4g}" for value in values[:4]) for values in (scaling.mean, scaling.std))
    return f"mean {mean}, std {std}"


def fold_paths(weights: str, plan: FoldPlan | None) -> list[Path] | None:
    """The fold teachers' files in order, or None when ``weights`` means one teacher."""
    pattern = weights
    if Path(weights).is_dir():
        if not (Path(weights) / FOLD_FILE.format(fold=0)).exists():
            return None
        pattern = str(Path(weights) / FOLD_FILE)
    if FOLD_PLACEHOLDER not in pattern:
        return None
    found = 0
    while Path(pattern.replace(FOLD_PLACEHOLDER, str(found))).is_file():
        found += 1
    num_folds = plan.num_folds if plan is not None else found
    paths = [Path(pattern.replace(FOLD_PLACEHOLDER, str(fold))) for fold in range(num_folds)]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None or num_folds < 2:
        raise ValueError(f"{missing or pattern}: no such weights; expected one file a fold, fold 0 first")
    return paths


def single_path(weights: str) -> Path:
    """The file of a teacher that is one network."""
    path = Path(weights)
    return path / SINGLE_FILE if path.is_dir() else path


def untrained_teachers(
    split: Split, architecture: str, num_teachers: int, scaling: Preprocessing
) -> tuple[TeacherNetwork, ...]:
    """Networks with seeded random weights, one a fold."""
    scaling.check(split)
    teachers = []
    for fold in range(num_teachers):
        torch.manual_seed(fold)
        model = build_model(architecture, scaling.sized(split)).eval()
        identity = {"architecture": architecture, "weights_sha256": weights_digest(model.state_dict())}
        teachers.append(
            TeacherNetwork(model=model, preprocessing=scaling, identity={**identity, "weights": RANDOM_INIT})
        )
    return tuple(teachers)


def load_language_model(split: Split, architecture: str, given: Given | None) -> TeacherNetwork:
    """A network of transformers with the weights of its own folder."""
    scaling = settle(split, given) or fit_preprocessing(split)
    model = load_causal_lm(architecture, split)
    identity = {"architecture": architecture, "weights_sha256": weights_digest(model.state_dict())}
    return TeacherNetwork(model=model, preprocessing=scaling, identity=identity)


def load_again(
    split: Split,
    architecture: str,
    weights: str,
    *,
    num_teachers: int,
    preprocessing: Given | None,
    recorded: Sequence[Preprocessing],
) -> tuple[tuple[TeacherNetwork, ...], tuple[Claims, ...]]:
    """The teachers that are said to have answered a store's rows, without a proof of what they were trained on.

    Args:
        split: The examples.
        architecture: As in ``load_teachers``.
        weights: As in ``load_teachers``.
        num_teachers: How many the store has: 1, or one a fold.
        preprocessing: Overrides all that is said.
        recorded: The store's own of each teacher, which is what is repeated.

    Returns:
        The teachers in fold order, and what their weights say of themselves.

    Raises:
        ValueError: Missing weights, of another architecture, or of another number of teachers.
    """
    if weights == RANDOM_INIT:
        scaling = settle(split, preprocessing, recorded[0]) or recorded[0]
        return untrained_teachers(split, architecture, num_teachers, scaling), ()
    if says_weights(architecture, weights):
        return (load_language_model(split, architecture, preprocessing),), ()
    weights, part = split_selection(weights)
    paths = fold_paths(weights, None) or [single_path(weights)]
    if not paths[0].is_file():
        raise ValueError(f"{paths[0]}: no such weights; expected a file, or a folder that train-teacher wrote")
    if len(paths) != num_teachers:
        raise ValueError(
            f"{weights}: found weights of {len(paths)} teachers, the store was answered by {num_teachers}; give"
            f" {'one file' if num_teachers == 1 else 'a folder with one file a fold, or a {fold} pattern'}"
        )
    loaded = [
        load_teacher(split, architecture, path, part, preprocessing, said)
        for path, said in zip(paths, recorded, strict=True)
    ]
    return tuple(teacher for teacher, _ in loaded), tuple(claims for _, claims in loaded)
