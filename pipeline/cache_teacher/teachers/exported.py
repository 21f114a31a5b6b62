"""Teachers that have already spoken, to this program: exports of a store, matched to the data by content key.

Shapes: B batch, C classes, N examples, P probes, V views.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.answers.guessed_labels import all_named, said_of_labels
from logitbank.pipeline.cache_teacher.teachers import EXPORT_PREFIX
from logitbank.pipeline.cache_teacher.teachers.answering import Batch, Features, Rows, in_turn
from logitbank.pipeline.cache_teacher.teachers.arrays import declared_folds
from logitbank.pipeline.cache_teacher.teachers.claims import Seen, nothing_known, nothing_seen, trained_on
from logitbank.pipeline.cache_teacher.teachers.sparse import check_head, sparse_logits
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.exchange import open_export
from logitbank.pipeline.exchange.document import check_views
from logitbank.pipeline.folds import FoldPlan, Folds, fold_digest
from logitbank.pipeline.views import Views, check_probes
from logitbank.stores.write.match import match_rows

MASS_TOLERANCE = 0.01  # by which the probabilities of a row may miss 1; a coarse encoding is off by less


class ExportTeacher:
    """What `cli export` wrote. Which row is whose is told by content keys and labels alone, never by position.

    Args:
        path: An .npz file.
        split: The examples; each must be in the export, which may have others besides.
        views: The export's own, or the first of them: same transform, same seed, and the same pixels.
        plan: Cross-fitting folds, only where the export has none, or the same.

    Raises:
        ValueError: Damaged, about other classes, labels, views or pixels, or examples are missing.
    """

    features: Features | None = None

    def __init__(self, path: Path, split: Split, views: Views, *, plan: FoldPlan | None = None) -> None:
        self.path, self.split, self.views = path, split, views
        self._export = open_export(path)
        said = self._export.description
        if said.num_classes != split.num_classes:
            raise ValueError(f"{path} answers {said.num_classes} classes; {split.spec} has {split.num_classes}")
        check_views(views, said, str(path))
        self._rows = self._find_rows()
        self._check_pixels()
        self.folds, self.fold_attributes = self._find_folds(plan)
        self.groups = split.groups if plan is None else plan.groups(split)
        self.seen = self._find_seen()

    def identity(self) -> dict[str, Any]:
        """The teacher's own identity, and how its answers came here."""
        said = self._export.description
        kept = ("teacher", "encoding", "tail", "fidelity", "lineage", "license")
        imported = {
            "from": EXPORT_PREFIX + self.path.name,
            "sha256": self._digest,
            **{name: said.content[name] for name in kept if said.content.get(name)},
            **said_of_labels(said.content["identity"]),
        }
        if not said.dense:
            labelled = int((self.split.labels[self._rows >= 0] >= 0).sum())
            imported = all_named(said.arrays["index"].row_shape[0], labelled) | imported
            imported["assumed"] = [
                f"the mass outside the top {said.arrays['index'].row_shape[0]} and the label is spread evenly",
                "label_rank of a label outside them is counted among these even logits",
            ]
        return {**said.content["identity"], "imported": imported}

    def __call__(self, rows: Rows, view: int) -> Tensor:
        wanted = self._rows[rows]
        usable = wanted >= 0
        values, labels = self._export.rows(view, wanted[usable]), self._export.labels[wanted[usable]]
        served = values.pop("mask", np.ones(labels.shape, np.bool_))  # [B], or [B, L]: numbers of others say nothing
        logits_BC = torch.zeros((*labels.shape, self.split.num_classes))
        try:
            few = {name: array[served] for name, array in values.items()}
            logits_BC[torch.from_numpy(served)] = self._logits(few, labels[served])
        except ValueError as error:
            raise ValueError(f"{self.path}: view {view}: {error}; export the store again") from error
        logits_NC = torch.zeros((len(rows), *logits_BC.shape[1:]))
        logits_NC[torch.from_numpy(usable)] = logits_BC
        return logits_NC

    def batches(self, rows: Rows, view: int) -> Iterator[Batch]:
        return in_turn(self, rows, view, self.split)

    def _logits(self, values: dict[str, npt.NDArray[Any]], labels: npt.NDArray[np.int32]) -> Tensor:
        """Dense logits of natural values, checked: they are a stranger's."""
        description = self._export.description
        arrays = {name: torch.from_numpy(value) for name, value in values.items()}
        log_prob = arrays["log_prob"]
        mass_B = log_prob.double().exp().sum(1)
        if not description.dense:
            check_head(values["index"].astype(np.int64), description.num_classes)
            mass_B += arrays["log_tail_mass"].double().exp()
        good_B = ((mass_B - 1).abs() <= MASS_TOLERANCE) & arrays["logsumexp"].isfinite()
        if not good_B.all():
            row = int((~good_B).nonzero()[0])
            raise ValueError(f"the probabilities of an example add to {float(mass_B[row]):g}")
        if not description.dense:
            arrays["index"] = torch.from_numpy(values["index"].astype(np.int64))
            return sparse_logits(arrays, torch.from_numpy(labels.astype(np.int64)), description.num_classes)
        return arrays.get("logit", log_prob + arrays["logsumexp"][:, None])

    def _find_rows(self) -> npt.NDArray[np.int64]:
        """The export's row of each example, -1 where it is blank; where there are positions, where all are."""
        split, export = self.split, self._export
        rows = match_rows(split.keys, split.labels, None, cast(Any, export))
        wanted = np.ones(split.labels.shape, np.bool_) if split.readable is None else split.readable
        found = export.served[rows] & (rows >= 0).reshape(-1, *(1,) * (wanted.ndim - 1))
        lacks, has = (answers.reshape(len(split), -1).any(axis=1) for answers in (wanted & ~found, wanted))
        if lacks.any():
            raise ValueError(
                f"{self.path} lacks {int(lacks.sum())} of the {int(has.sum())} examples of {split.spec}; pass the data"
                " that it was made of, in any order"
            )
        return np.where(has, rows, -1)

    def _check_pixels(self) -> None:
        """Raises ValueError unless the views replay to the pixels that the teacher saw."""
        if self.views.transform == "none":
            return  # the content key has shown it
        content = self._export.description.content
        if self.views.mixes and content["dataset"].get("fingerprint_unordered") != self.split.describe().get(
            "fingerprint_unordered"
        ):
            raise ValueError(
                f"{self.path}: transform {self.views.transform!r} mixes examples of the whole data; pass all of it"
            )
        try:
            keys = np.array([int(key, 16) for key in content["probes"]["key"]], dtype=np.uint64)
            digests = [[int(digest, 16) for digest in row] for row in content["probes"]["digest"]]
            digests_VP = np.array(digests, dtype=np.uint64)[: self.views.num_views]
            if digests_VP.shape != (self.views.num_views, len(keys)):
                raise ValueError(f"its shape is {digests_VP.shape}")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.path}: holds no proof of its views' pixels; export the store again") from error
        order = self.split.rows_by_key
        place = np.minimum(np.searchsorted(self.split.keys[order], keys), len(order) - 1)
        here = self.split.keys[order[place]] == keys
        if not here.any():
            raise ValueError(
                f"{self.path}: none of the examples that prove its views is in {self.split.spec}; pass more"
            )
        probes = {"row": order[place[here]], "digest": digests_VP[:, here]}
        check_probes(self.split, self.views, probes, num_views=self.views.num_views)

    def _find_seen(self) -> Seen:
        """What the export says of all its rows holds for some of them."""
        summary = self._export.description.content.get("summary")
        said = summary if isinstance(summary, dict) and self.folds is None else {}
        if said.get("kind") == "seen":
            return trained_on(self.split)
        # "held out" without counts compared whole datasets, not rows
        return (
            nothing_seen(self.split) if said.get("kind") == "held out" and "seen" in said else nothing_known(self.split)
        )

    def _find_folds(self, plan: FoldPlan | None) -> tuple[Folds | None, Mapping[str, Any] | None]:
        """The folds of a cross-fitted teacher, which must be those that its answers were made with."""
        export = self._export
        said = export.description.content.get("folds")
        if export.folds is None or not isinstance(said, dict):
            return declared_folds(plan, self.split)
        known = type(said.get("num_folds")) is int and {"strategy", "seed"} <= said.keys()
        known = known and int(export.folds.max()) < said["num_folds"]
        if not known or said.get("digest") != fold_digest(export.keys, export.folds):
            raise ValueError(f"{self.path}: its folds do not match the checksum in its document; export it again")
        folds = np.where(self._rows >= 0, export.folds[self._rows], 0).astype(np.uint16)
        if plan is not None and not np.array_equal(folds, plan.assign(self.split)):
            raise ValueError(f"{self.path} was cross-fitted with other folds than {plan.attributes()}; drop --folds")
        proof = f"{said.get('proof', 'not said')}, as the export says"
        return folds, {**said, "digest": fold_digest(self.split.keys, folds), "proof": proof}

    @cached_property
    def _digest(self) -> str:
        return files_digest([self.path])


def files_digest(paths: list[Path]) -> str:
    """SHA-256 of a file, or of several files' digests and names."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    lines = [f"{digest} {path.parent.name}/{path.name}\n" for digest, path in zip(digests, paths, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
