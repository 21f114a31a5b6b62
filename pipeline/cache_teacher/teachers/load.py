"""Loads the networks of a teacher, and proves which rows each may answer.

Shapes: N examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from logitbank.pipeline.cache_teacher.teachers.claims import (
    SEEN,
    UNKNOWN,
    Claims,
    FoldClaim,
    Seen,
    nothing_known,
    nothing_seen,
)
from logitbank.pipeline.cache_teacher.teachers.networks import (
    RANDOM_INIT,
    TeacherNetwork,
    fold_paths,
    load_language_model,
    load_teacher,
    single_path,
    untrained_teachers,
)
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.folds import FoldPlan, Folds, fold_digest
from logitbank.pipeline.models import Given, settle_fresh
from logitbank.pipeline.models.causal_lm import says_weights
from logitbank.pipeline.models.parts import split_selection


@dataclass(frozen=True, kw_only=True)
class TeacherSet:
    """One teacher for all rows, or one for each fold.

    Attributes:
        teachers: One, or B in fold order.
        folds: uint16 [N], the teacher that answers each row; None when one teacher answers all.
        plan: How the folds were assigned.
        seen: int8 [N], whether the teacher that answers a row was trained on it, as far as that is known.
        proof: "metadata" when every fold teacher's weights say themselves which fold they left out, "declared" when
            only the caller says so.
    """

    teachers: tuple[TeacherNetwork, ...]
    seen: Seen
    folds: Folds | None = None
    plan: FoldPlan | None = None
    proof: str = ""
    training_fingerprint: str | None = None
    fold_attributes: Mapping[str, Any] | None = field(default=None)

    def identity(self) -> dict[str, Any]:
        """Who answered, as a store records it."""
        first = self.teachers[0].identity
        parts = [teacher.identity.get("weights_part", "") for teacher in self.teachers]
        return {
            "architecture": first["architecture"],
            "weights_sha256": [teacher.identity["weights_sha256"] for teacher in self.teachers],
            "preprocessing": [teacher.preprocessing.attributes() for teacher in self.teachers],
            "training_fingerprint": self.training_fingerprint,
            **({"weights_part": parts} if any(parts) else {}),
        }


def load_teachers(
    split: Split,
    architecture: str,
    weights: str,
    *,
    plan: FoldPlan | None = None,
    preprocessing: Given | None = None,
) -> TeacherSet:
    """Loads one teacher or a set of fold teachers and checks that none answers a row it has seen.

    Args:
        split: The examples to be answered.
        architecture: A name of the model table.
        weights: A file, a folder that ``train-teacher`` wrote, a pattern with ``{fold}``, or ``random-init``: an
            untrained network, as a control. ``::PART`` behind it selects a part of each file; see ``load_weights``.
            Empty for ``causal-lm:FOLDER`` with the weights of its folder.
        plan: Folds as the caller declares them: needed for fold teachers whose files do not say it.
        preprocessing: Overrides the weights' metadata and the model's own configuration.

    Raises:
        ValueError: Missing weights, weights of another architecture, or a fold teacher that has seen its fold.
    """
    if weights == RANDOM_INIT:
        return _untrained(split, architecture, plan, preprocessing)
    if says_weights(architecture, weights):
        if plan is not None:
            raise ValueError(f"{architecture} is one teacher, which has no folds; leave out --folds")
        network = load_language_model(split, architecture, preprocessing)
        return TeacherSet(teachers=(network,), seen=nothing_known(split))
    weights, part = split_selection(weights)
    paths = fold_paths(weights, plan)
    if paths is None:
        path = single_path(weights)
        if plan is not None:
            raise ValueError(
                f"--folds needs one file a fold, {weights} is one file; give a folder or a {{fold}} pattern"
            )
        teacher, claims = load_teacher(split, architecture, path, part, preprocessing)
        seen = claims.seen(split)
        _refuse_lone_fold_teacher(claims, seen, split, path)
        return TeacherSet(teachers=(teacher,), seen=seen, training_fingerprint=claims.fingerprint)
    loaded = [load_teacher(split, architecture, path, part, preprocessing) for path in paths]
    _refuse_twins([teacher for teacher, _ in loaded], paths)
    said = [claims for _, claims in loaded]
    claimed = [claims.folds for claims in said if claims.folds is not None]
    if claimed and len(claimed) < len(said):
        raise ValueError(
            f"{weights}: some files say which fold they left out and some do not; retrain or re-export them"
        )
    proof = "metadata" if claimed else "declared"
    if claimed:
        plan = _plan_from_claims(plan, claimed, paths)
    if plan is None:
        raise ValueError(f"{weights}: the files do not say how rows were assigned to folds; pass --folds, --fold-seed")
    folds = plan.assign(split)
    if claimed:
        _prove(split, folds, said, paths)
    seen = seen_out_of_fold(split, folds, said)
    _refuse_seen(split, folds, seen, paths)
    return TeacherSet(
        teachers=tuple(teacher for teacher, _ in loaded),
        seen=seen,
        folds=folds,
        plan=plan,
        proof=proof,
        training_fingerprint=said[0].fingerprint,
        fold_attributes=fold_attributes(plan, split, folds, proof=proof),
    )


def _untrained(split: Split, architecture: str, plan: FoldPlan | None, preprocessing: Given | None) -> TeacherSet:
    """Networks that have seen nothing: what a student learns from them, it does not learn from a teacher."""
    scaling = settle_fresh(architecture, split, preprocessing)
    teachers = untrained_teachers(split, architecture, 1 if plan is None else plan.num_folds, scaling)
    seen = nothing_seen(split)
    if plan is None:
        return TeacherSet(teachers=teachers, seen=seen)
    folds = plan.assign(split)
    attributes = fold_attributes(plan, split, folds, proof="untrained")
    return TeacherSet(
        teachers=teachers, seen=seen, folds=folds, plan=plan, proof="untrained", fold_attributes=attributes
    )


def _refuse_twins(teachers: list[TeacherNetwork], paths: list[Path]) -> None:
    """Two fold teachers with the same weights cannot both have left out their own fold."""
    seen: dict[str, Path] = {}
    for teacher, path in zip(teachers, paths, strict=True):
        twin = seen.setdefault(teacher.identity["weights_sha256"], path)
        if twin != path:
            raise ValueError(
                f"{path}: the same weights as {twin}, so one of them has seen the rows it would answer; train one"
                " teacher on the complement of each fold"
            )


def fold_attributes(plan: FoldPlan, split: Split, folds: Folds, *, proof: str) -> dict[str, Any]:
    """The folds as a store records them."""
    return {**plan.attributes(), "digest": fold_digest(split.keys, folds), "proof": proof}


def seen_out_of_fold(split: Split, folds: Folds, said: Sequence[Claims]) -> Seen:
    """Whether the teacher of each row's fold was trained on it, or on an equal one, as far as its weights say it."""
    seen = nothing_known(split)
    for fold, claims in enumerate(said):
        own = folds == fold
        if claims.training_keys is not None:
            seen[own] = claims.seen(split)[own]
        elif claims.folds is not None:  # trained on the complement of its fold, which was compared
            seen[own] = nothing_seen(split)[own]
    return seen


def _refuse_seen(split: Split, folds: Folds, seen: Seen, paths: list[Path]) -> None:
    """Raises when the content keys say that a fold teacher would answer rows that it has seen."""
    for fold, path in enumerate(paths):
        own = folds == fold
        count = int((seen[own] == SEEN).sum())
        if count:
            raise ValueError(
                f"{path}: this teacher was trained on {count} of the {int(own.sum())} rows of fold {fold} of"
                f" {split.spec} that it would answer, or on rows equal to them; train it on the other folds alone"
            )


def _refuse_lone_fold_teacher(claims: Claims, seen: Seen, split: Split, path: Path) -> None:
    claim = claims.folds
    if claim is None or not ((seen == SEEN).any() or claims.fingerprint == split.fingerprint):
        return
    count = "" if (seen == UNKNOWN).any() else f" ({int((seen == SEEN).sum())} of {len(split)})"
    raise ValueError(
        f"{path}: this teacher left out fold {claim.left_out} of {claim.plan.num_folds} and has seen the other"
        f" rows{count}; pass the folder {path.parent} for cross-fitting"
    )


def _plan_from_claims(declared: FoldPlan | None, claims: list[FoldClaim], paths: list[Path]) -> FoldPlan:
    plans = {claim.plan for claim in claims}
    if len(plans) > 1:
        raise ValueError(f"{paths[0].parent}: the fold teachers were trained with {len(plans)} different fold plans")
    plan = plans.pop()
    if declared is not None and declared != plan:
        raise ValueError(f"the weights say {plan.attributes()}, the command says {declared.attributes()}; drop --folds")
    if plan.num_folds != len(paths):
        raise ValueError(f"{paths[0].parent}: {len(paths)} fold teachers found, expected {plan.num_folds}")
    return plan


def _prove(split: Split, folds: Folds, said: list[Claims], paths: list[Path]) -> None:
    """Raises unless teacher b was trained on these very examples without fold b."""
    digest = fold_digest(split.keys, folds)
    for fold, (claims, path) in enumerate(zip(said, paths, strict=True)):
        claim = claims.folds
        assert claim is not None
        if claims.fingerprint != split.fingerprint:
            raise ValueError(
                f"{path}: fold teacher of {claims.dataset} (fingerprint {str(claims.fingerprint)[:8]}),"
                f" this data is {split.spec} ({split.fingerprint[:8]}); cross-fitting answers the training rows only"
            )
        if claim.digest != digest:
            raise ValueError(f"{path}: its fold assignment differs from this one ({claim.digest[:8]}, {digest[:8]})")
        if claim.left_out != fold:
            raise ValueError(
                f"{path}: this teacher left out fold {claim.left_out} and has seen fold {fold}; it must not"
                f" answer it: name the files by the fold they left out"
            )
