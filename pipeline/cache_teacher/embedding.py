"""The features of a teacher as a store keeps them: all or their principal components, with the head that reads them.

Shapes: B batch, C classes, D features, K features that are kept, F folds (1 without cross-fitting).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.sample import Sample, folds_of
from logitbank.pipeline.cache_teacher.teachers.answering import Features
from logitbank.stores import RowArray, Teacher

LARGEST = 65_504.0  # of a float16


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """How features become rows of `embedding`.

    Attributes:
        size: K.
        basis_FDK: Principal directions, and the mean that they are about; None keeps features as they are.
        head_FCK: Weight of the teacher's last layer on what is kept, where it reads the features; with its bias.
    """

    size: int
    basis_FDK: Tensor | None = None
    mean_FD: Tensor | None = None
    head_FCK: Tensor | None = None
    bias_FC: Tensor | None = None

    @classmethod
    def of(cls, features: Features, sample: Sample, dim: int) -> "Embedding":
        """What is kept of a teacher's features; ``dim`` principal components of them on a sample, or, for 0, all.

        Raises:
            ValueError: As many components as features, or more, or too few rows to find them.
        """
        heads = features.heads
        head_FCD = None if heads is None else torch.stack([weight for weight, _ in heads])
        bias_FC = None if heads is None else torch.stack([bias for _, bias in heads])
        if not dim:
            return cls(size=features.num_features, head_FCK=head_FCD, bias_FC=bias_FC)
        if dim >= features.num_features:
            raise ValueError(
                f"--embedding-dim is {dim}, the teacher has {features.num_features} features; take fewer, or leave it"
                " out to keep them as they are"
            )
        mean_FD, basis_FDK = _principal(sample, features, dim)
        if head_FCD is not None and bias_FC is not None:
            bias_FC = bias_FC + (head_FCD @ mean_FD[:, :, None]).squeeze(2)
            head_FCD = head_FCD @ basis_FDK
        return cls(size=dim, basis_FDK=basis_FDK, mean_FD=mean_FD, head_FCK=head_FCD, bias_FC=bias_FC)

    @classmethod
    def kept_by(cls, stored: Teacher) -> "Embedding | None":
        """That of a teacher that is there; None where it has none."""
        if "embedding" not in stored.row_arrays:
            return None
        found = {name: stored.constant(name) for name in _CONSTANTS if name in stored.constant_names}
        parts: dict[str, Any] = {_CONSTANTS[name]: torch.from_numpy(array) for name, array in found.items()}
        return cls(size=stored.row_arrays["embedding"].row_shape[0], **parts)

    def constants(self) -> dict[str, npt.NDArray[np.float32]]:
        """What a store keeps once."""
        arrays = {name: getattr(self, field) for name, field in _CONSTANTS.items()}
        return {name: array.float().cpu().numpy() for name, array in arrays.items() if array is not None}

    @property
    def row_arrays(self) -> dict[str, RowArray]:
        """The array that a row is kept in."""
        return {"embedding": RowArray(dtype="float16", row_shape=(self.size,))}

    def rows(self, features_BD: Tensor, folds_B: Tensor | None) -> npt.NDArray[np.float16]:
        """Rows of `embedding`, [B, K].

        Raises:
            ValueError: A feature is not finite, or too large for float16.
        """
        kept_BK = features_BD.float().cpu()
        if self.basis_FDK is not None and self.mean_FD is not None:
            fold_B = torch.zeros(len(kept_BK), dtype=torch.int64) if folds_B is None else folds_B
            out_BK = torch.empty(len(kept_BK), self.size)
            for fold in torch.unique(fold_B).tolist():
                own_B = fold_B == fold
                out_BK[own_B] = (kept_BK[own_B] - self.mean_FD[fold]) @ self.basis_FDK[fold]
            kept_BK = out_BK
        if len(kept_BK) and not kept_BK.abs().max() <= LARGEST:
            raise ValueError(
                f"the teacher's features reach {float(kept_BK.abs().max()):g}; `embedding` is float16, which holds at"
                f" most {LARGEST:g}; name another layer, or keep principal components with --embedding-dim"
            )
        return kept_BK.numpy().astype(np.float16)


_CONSTANTS = {
    "embedding_basis": "basis_FDK",
    "embedding_mean": "mean_FD",
    "head_weight": "head_FCK",
    "head_bias": "bias_FC",
}
"""Constants of a store, and the attributes that they are."""


def _principal(sample: Sample, features: Features, dim: int) -> tuple[Tensor, Tensor]:
    """Mean [F, D] and the first principal directions [F, D, K] of the features of the rows that fit the predictor."""
    rows = sample.fitted.rows
    folds = folds_of(sample.teacher, rows)
    fold_N = torch.zeros(len(rows), dtype=torch.int64) if folds is None else folds
    found_ND = torch.empty(len(rows), features.num_features, dtype=torch.float64)
    for batch in sample.teacher.batches(rows, 0):
        assert batch.features is not None  # of a teacher with features
        found_ND[torch.from_numpy(batch.positions)] = batch.features.double().cpu()
    means, bases = [], []
    for fold in range(1 if sample.teacher.folds is None else int(sample.teacher.folds.max()) + 1):
        own_ND = found_ND[fold_N == fold]
        if len(own_ND) <= dim:
            raise ValueError(
                f"--embedding-dim {dim} needs more than {dim} rows to find so many directions, found {len(own_ND)} of"
                f" the {len(rows)} rows of --predictor-rows; take fewer directions or more rows"
            )
        mean_D = own_ND.mean(0)
        directions_DK = torch.linalg.eigh((own_ND - mean_D).T @ (own_ND - mean_D)).eigenvectors[:, -dim:].flip(1)
        sign_K = directions_DK.gather(0, directions_DK.abs().argmax(0, keepdim=True)).sign()
        means.append(mean_D)
        bases.append(directions_DK * sign_K)  # one of two signs, so that the same rows give the same directions
    return torch.stack(means).float(), torch.stack(bases).float()
