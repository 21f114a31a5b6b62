"""Did this teacher give these answers: some of them computed again and compared with what the store holds.

Float rounding differs from batch to batch and from machine to machine, and an encoding loses a little; a sound store
must pass all the same. So the answers computed now go through the store's own encoding as well. What that loses on
these very rows, plus what rounding may add, is the limit for the distance to the stored answers.

Shapes: B rows, C classes, V views, N examples. Where examples are answered at positions, each answer of a row is one.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.answers.teacher_rows import TeacherRows
from logitbank.pipeline.cache_teacher.embedding import Embedding
from logitbank.pipeline.cache_teacher.sample import folds_of
from logitbank.pipeline.cache_teacher.sound import SoundTeacher
from logitbank.pipeline.cache_teacher.teachers.answering import AnsweringTeacher
from logitbank.pipeline.cache_teacher.teachers.recorded import differences
from logitbank.pipeline.encoding import finite
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.encoding.tail_predictor import TailPredictor
from logitbank.stores import Store, Teacher

NUM_PAIRS = 64
# KL T^2 is half the variance of the logits' error: these are errors of 0.045 and 0.2, several times what convolutions
# in TF32 and whole networks in half precision were seen to differ by.
ROUNDING = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 2e-2}
FEATURES_ROUNDING = {"float32": 1e-2, "bfloat16": 1e-1, "float16": 1e-1}
"""How far stored features may lie from those computed now, as a share of their size; float16 rounds to 5e-4."""
_AT_ONCE = 256
_TEMPERATURE, _MOST_TEMPERATURES = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3})?"), 8
_FIDELITY_FACTOR, _FIDELITY_SIGMA = 2.0, 5.0


@dataclass(frozen=True, kw_only=True)
class Recomputed:
    """What came out, means over (row, view) pairs; distances are KL(teacher now || stored) T^2 in nats.

    Attributes:
        num_pairs: How many were compared.
        agreement: Share whose best class is the same.
        distance: By temperature.
        encoding_loss: What the encoding itself loses on the same pairs.
        encoding_agreement: The agreement that it leaves.
        limit: The largest distance that a sound store has.
        features_distance: Of stored features from those now, as a share of their size; None where none are kept.
        problems: Why the store's answers are not this teacher's, as phrases; empty when they are.
    """

    num_pairs: int
    agreement: float
    encoding_agreement: float
    distance: dict[str, float]
    encoding_loss: dict[str, float]
    limit: dict[str, float]
    features_distance: float | None = None
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        def listed(values: dict[str, float]) -> str:
            return " / ".join(f"{value:.2g}" for value in values.values())

        return (
            f"recomputed {self.num_pairs} answers: top-1 agreement {self.agreement:.4f} (after the encoding alone"
            f" {self.encoding_agreement:.4f}), KL T^2 {listed(self.distance)} nats at T = {' / '.join(self.distance)}"
            f" (the encoding alone {listed(self.encoding_loss)}; limit {listed(self.limit)})"
            + ("" if self.features_distance is None else f"; features {self.features_distance:.1e} of their size apart")
        )


def recompute(
    store: Store, teacher: Teacher, answers: AnsweringTeacher, num_pairs: int = NUM_PAIRS, seed: int = 0
) -> Recomputed:
    """Runs the teacher on random (row, view) pairs; in a cross-fitted store, the teacher of the row's fold.

    Args:
        store: A finished store.
        teacher: Whose answers are checked.
        answers: The network that is said to have given them.
        num_pairs: How many pairs; all of them where there are fewer.
        seed: Which pairs.

    Raises:
        ValueError: ``num_pairs`` is none.
    """
    if num_pairs < 1:
        raise ValueError(f"--recompute is {num_pairs}; expected at least 1")
    parts = list(_compared(store, teacher, answers, _pairs(store, teacher, num_pairs, seed)))
    measured = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    identity = answers.identity()
    rounding = ROUNDING[identity["precision"]]
    names = [key.removeprefix("kl ") for key in measured if key.startswith("kl ")]
    distance = {name: float(measured[f"kl {name}"].mean()) for name in names}
    loss = {name: float(measured[f"loss {name}"].mean()) for name in names}
    limit = {name: loss[name] + rounding for name in names}
    problems = differences(teacher.identity, identity)
    problems += [
        f"its answers are KL T^2 {distance[name]:.2g} nats from the stored ones at T = {name}, the limit is"
        f" {limit[name]:.2g}"
        for name in names
        if not distance[name] <= limit[name]
    ][:1]
    problems += [
        f"the encoding loses KL T^2 {loss[name]:.2g} nats at T = {name}, the store says {recorded:.2g}"
        for name in names
        if isinstance(recorded := teacher.fidelity.get(name), int | float)
        and not loss[name]
        <= _FIDELITY_FACTOR * recorded + rounding + _FIDELITY_SIGMA * _error(measured[f"loss {name}"])
    ][:1]
    apart = _features_apart(measured)
    if apart is not None and not apart <= FEATURES_ROUNDING[identity["precision"]]:
        problems.append(f"its features are {apart:.2g} of their size from the stored ones")
    return Recomputed(
        num_pairs=len(measured["agree"]),
        agreement=float(measured["agree"].mean()),
        encoding_agreement=float(measured["encoding agrees"].mean()),
        distance=distance,
        encoding_loss=loss,
        limit=limit,
        features_distance=apart,
        problems=problems,
    )


def _pairs(store: Store, teacher: Teacher, num_pairs: int, seed: int) -> npt.NDArray[np.int64]:
    """Distinct (view, row) pairs in order, int64 [B, 2], of rows that the teacher serves."""
    served = np.flatnonzero(TeacherRows(store, teacher, tail="uniform").served(0))
    total = store.num_views * len(served)
    flat = np.random.default_rng(seed).choice(total, min(num_pairs, total), replace=False, shuffle=False)
    flat.sort()
    return np.stack([flat // len(served), served[flat % len(served)]], axis=1)


def _compared(
    store: Store, teacher: Teacher, answers: AnsweringTeacher, pairs: npt.NDArray[np.int64]
) -> Iterator[dict[str, Tensor]]:
    """Measures of each pair, float64 [B], a part of a block at a time."""
    decoder, predictor = TeacherRows(store, teacher), TailPredictor.from_constants(teacher.constants())
    embedding = Embedding.kept_by(teacher)
    names = [name for name in teacher.fidelity if _TEMPERATURE.fullmatch(name) and float(name) > 0][:_MOST_TEMPERATURES]
    names = names or ["1", "2", "4"]
    sound = SoundTeacher(answers)
    for view, block, rows in _by_block(teacher, pairs):
        stored = teacher.answers(view, block, decoder.names)
        own_B, rows_B = rows - teacher.rows(block).start, torch.from_numpy(rows)
        labels_B, folds_B = decoder.labels_N[rows_B], None if decoder.folds_N is None else decoder.folds_N[rows_B]
        now_BC, features_BK = _now(sound, rows, view, embedding)
        mask = ["mask"] if teacher.positions is not None and "mask" in teacher.arrays else []
        there_B = torch.ones(labels_B.shape, dtype=torch.bool)
        for array in teacher.block(view, block, mask).values():
            there_B = torch.from_numpy(array[own_B])
        encoded = encode(now_BC, labels_B, decoder.encoding, predictor=predictor, folds_B=folds_B)
        stored_BC, same_BC = (
            decoder.logits({name: torch.from_numpy(array) for name, array in arrays.items()}, rows_B)
            for arrays in ({name: array[own_B] for name, array in stored.items()}, encoded)
        )
        now_BC, stored_BC, same_BC = (logits_BC[there_B] for logits_BC in (finite(now_BC), stored_BC, same_BC))
        best_B = now_BC.argmax(1)
        part = {
            "agree": (stored_BC.argmax(1) == best_B).double(),
            "encoding agrees": (same_BC.argmax(1) == best_B).double(),
        }
        for name in names:
            part[f"kl {name}"] = _kl(now_BC, stored_BC, float(name))
            part[f"loss {name}"] = _kl(now_BC, same_BC, float(name))
        if features_BK is not None:
            kept_BK = teacher.block(view, block, ["embedding"])["embedding"][own_B].astype(np.float64)
            part["gap"] = torch.from_numpy(((features_BK - kept_BK) ** 2).sum(1))
            part["size"] = torch.from_numpy((kept_BK**2).sum(1))
        yield part


def _features_apart(measured: Mapping[str, Tensor]) -> float | None:
    if "gap" not in measured:
        return None
    return float((measured["gap"].sum() / measured["size"].sum().clamp(min=1e-12)).sqrt())


def _now(
    sound: SoundTeacher, rows: npt.NDArray[np.int64], view: int, embedding: Embedding | None
) -> tuple[Tensor, npt.NDArray[np.float64] | None]:
    """What the teacher says of rows: logits float32 [B, C], and features as they are kept, [B, K]."""
    logits_BC = torch.empty(len(rows), *sound.split.answer_shape)
    features_BK = None if embedding is None else np.empty((len(rows), embedding.size))
    for positions, own_BC, own_BD in sound.batches(rows, view):
        logits_BC[torch.from_numpy(positions)] = own_BC.cpu()
        if embedding is not None and features_BK is not None and own_BD is not None:
            features_BK[positions] = embedding.rows(own_BD, folds_of(sound, rows[positions]))
    return logits_BC, features_BK


def _by_block(teacher: Teacher, pairs: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
    """(view, block, rows), at most ``_AT_ONCE`` rows of one block at a time."""
    cells = np.stack([pairs[:, 0], pairs[:, 1] // teacher.block_rows], axis=1)
    starts = np.flatnonzero(np.r_[True, (np.diff(cells, axis=0) != 0).any(axis=1)])
    for start, stop in zip(starts, np.r_[starts[1:], len(pairs)], strict=True):
        step = max(1, _AT_ONCE // (teacher.positions or 1))
        for first in range(start, stop, step):
            view, block = (int(number) for number in cells[start])
            yield view, block, pairs[first : min(first + step, stop), 1]


def _kl(teacher_BC: Tensor, decoded_BC: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || decoded) of each row in nats, float64 [B]."""
    log_p_BC = torch.log_softmax(teacher_BC.double() / temperature, 1)
    log_q_BC = torch.log_softmax(decoded_BC.double() / temperature, 1)
    return temperature**2 * (log_p_BC.exp() * (log_p_BC - log_q_BC)).sum(1)


def _error(values_B: Tensor) -> float:
    """Standard error of the mean."""
    return float(values_B.std()) / len(values_B) ** 0.5 if len(values_B) > 1 else 0.0
