"""Answers that can be learnt from: asked about a few rows before a pass, and each held to what logits are during it.

Shapes: B batch, C classes, Q picked answers. Where an example is answered at L positions, B stands for [B, L].
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.asked import Budget
from logitbank.pipeline.cache_teacher.picked import Picked, pick, shown_rows
from logitbank.pipeline.cache_teacher.teachers.answering import AnsweringTeacher, Batch, Rows
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding

ZERO_FLOOR = 1e-6
"""The probability that stands for one of zero, whose log no student can reach."""
ZERO_BELOW = 1e3
"""Nats below a row's best class where a logit means probability zero, as -inf does: exp(-1000) is 0 in any float."""
LARGEST = 1e5
"""Of a row's best logit; beyond it float32 has no room for differences of a hundredth."""
_ASKED = 256  # rows
_ASKED_EXAMPLES = 8  # where each has positions
_EVIDENCE = 64  # numbers between 0 and 1 that are not so by luck
_NEXT_TO_NONE = 0.1  # of the mean: what an unlikely class has of a percentage, and logits far above 0 never
# Rows may differ by this much of a logit, or by this share of the row's spread, from one batch to another.
_NOISE = {"float32": (0.05, 1e-3), "bfloat16": (0.3, 0.1), "float16": (0.3, 0.05)}
_MOST_UNLIKE = 0.1  # of the rows: a single choice may tip over in half precision


class SoundTeacher:
    """The same answers; what is no logit is refused, and probabilities of zero are raised to a floor.

    A zero probability becomes ``ZERO_FLOOR``, or that of the row's least probable other class where it is lower.

    Args:
        teacher: Whose.
    """

    def __init__(self, teacher: AnsweringTeacher) -> None:
        self._teacher = teacher
        self.split, self.views, self.identity = teacher.split, teacher.views, teacher.identity
        self.folds, self.fold_attributes, self.groups = teacher.folds, teacher.fold_attributes, teacher.groups
        self.seen, self.features = teacher.seen, teacher.features

    def fitting_rows(self, encoding: Encoding | Budget, asked: int) -> int:
        """Rows that may fit a tail predictor: none of a teacher that answers with the best classes of each row alone.

        Raises:
            ValueError: It is to be kept in a way that says more than it did.
        """
        said = self.identity().get("imported", {})
        if not said.get("heads_only"):
            return asked
        if isinstance(encoding, Budget) or encoding.kind != "topk" or encoding.top_k > said["top_k"]:
            raise ValueError(
                f"{said['from']} has {said['top_k']} classes a row, and of the others only their mass; pass"
                f" --encoding topk --top-k {said['top_k']} or fewer"
            )
        return 0

    def __call__(self, rows: Rows, view: int) -> Tensor:
        return floored(self.raw(rows, view))

    def batches(self, rows: Rows, view: int) -> Iterator[Batch]:
        for batch in self._teacher.batches(rows, view):
            yield batch._replace(logits=floored(_checked(self.split, batch.logits, rows[batch.positions], view)))

    def raw(self, rows: Rows, view: int) -> Tensor:
        """The logits before they are raised, float32 [B, C]."""
        return _checked(self.split, self._teacher(rows, view), rows, view)

    def raw_of(self, picked: Picked, view: int) -> Tensor:
        """The same of picked answers, float32 [Q, C]."""
        if picked.places is None:
            return self.raw(picked.rows, view)
        found: Tensor | None = None
        for places, logits_BC, _ in self._teacher.batches(picked.rows, view):
            own, own_BC = picked.of_batch(places, _checked(self.split, logits_BC, picked.rows[places], view))
            if found is None:
                found = own_BC.new_empty((len(picked), own_BC.shape[1]))
            found[torch.from_numpy(own).to(found.device)] = own_BC
        return torch.empty((0, self.split.num_classes)) if found is None else found


def _checked(split: Split, logits_BC: Tensor, rows: Rows, view: int) -> Tensor:
    """Answers to rows of a view in float32; ValueError when one is no logits. What an example lacks is set to 0."""
    logits_BC = logits_BC.float()
    shape = (len(rows), *split.answer_shape)
    if tuple(logits_BC.shape) != shape:
        raise ValueError(
            f"the teacher answers {len(rows)} rows with logits {list(logits_BC.shape)}; expected {list(shape)}"
        )
    if split.positions is not None and split.readable is not None:
        absent_B = torch.from_numpy(~split.readable[rows]).to(logits_BC.device)
        logits_BC = logits_BC.masked_fill(absent_B[..., None], 0.0)
    best_B = logits_BC.amax(-1)
    bad_B = ~(best_B.abs() <= LARGEST)
    if bad_B.any():
        place = tuple(bad_B.nonzero()[0].tolist())
        best = float(best_B[place])
        found = "nothing but -inf" if best == -math.inf else f"a best logit of {best:g}"
        where = f"row {int(rows[place[0]])}" + "".join(f" position {position}" for position in place[1:])
        raise ValueError(
            f"the teacher answers {where} of view {view} with {found}; expected finite logits, the"
            f" best within {LARGEST:g} of 0 (-inf: a class of probability zero); look at its input scaling,"
            " --precision, and the scale of its last layer"
        )
    return logits_BC


def floored(logits_BC: Tensor) -> Tensor:
    """Logits float32 [B, C] with zero probabilities raised to the floor; the very same where there are none."""
    zero_BC = is_zero(logits_BC)
    if not zero_BC.any():
        return logits_BC
    floor_B1 = logits_BC.masked_fill(zero_BC, -math.inf).logsumexp(-1, keepdim=True) + math.log(ZERO_FLOOR)
    least_B1 = logits_BC.masked_fill(zero_BC, math.inf).amin(-1, keepdim=True)
    return torch.where(zero_BC, torch.minimum(floor_B1, least_B1), logits_BC)


def is_zero(logits_BC: Tensor) -> Tensor:
    """Which probabilities are zero, bool [B, C]."""
    return logits_BC < logits_BC.amax(-1, keepdim=True) - ZERO_BELOW


def ask_first(teacher: AnsweringTeacher) -> SoundTeacher:
    """Asks about a few rows of the first view, twice and in other batches, before anything is made.

    Raises:
        ValueError: Numbers that are no logits; probabilities that stand for logits; or answers that differ from one
            time to the next, or with the company that a row has in its batch.
    """
    sound = SoundTeacher(teacher)
    asked = _some_answers(teacher)
    if not len(asked):
        return sound
    raw_BC = sound.raw_of(asked, 0)
    reason = stand_for_logits(raw_BC.cpu().numpy())
    if reason:
        raise ValueError(
            f"the teacher's answers look like probabilities, expected logits: {reason}; leave out a network's last"
            " softmax or sigmoid, save np.log(array) of probabilities; when they are logits, subtract a number from all"
            " of them, which changes no softmax"
        )
    first_BC = floored(raw_BC)
    order = np.random.default_rng(0).permutation(len(asked.rows))
    cut = len(order) // 3
    again_BC = torch.empty_like(first_BC)
    for some in (order[:cut], order[cut:]):
        if len(some):
            part, own = asked.only(some)
            again_BC[torch.from_numpy(own).to(again_BC.device)] = floored(sound.raw_of(part, 0))
    unlike = int(_unlike(first_BC, again_BC, str(teacher.identity().get("precision"))).sum())
    if unlike > _MOST_UNLIKE * len(asked):
        raise ValueError(
            f"the teacher answers {unlike} of {len(asked)} rows differently when it is asked again in another batch; a"
            " stored answer would be one of many: switch off its dropout, and let its normalisation use running"
            " statistics (eval mode), not those of the batch"
        )
    if isinstance(teacher, ArrayTeacher):  # its other rows cost no forward pass
        for view in range(teacher.views.num_views):
            rows = np.arange(len(teacher.split))
            for positions, logits_BC, _ in teacher.batches(rows, view):
                _checked(teacher.split, logits_BC, rows[positions], view)
    return sound


def _some_answers(teacher: AnsweringTeacher) -> Picked:
    split, seed = teacher.split, teacher.views.seed
    order = shown_rows(split, np.random.default_rng(seed).permutation(len(split)))
    if split.positions is None:
        return Picked(split, order[:_ASKED])
    return pick(split, order, _ASKED, seed, most=_ASKED_EXAMPLES)[0]


def _unlike(first_BC: Tensor, again_BC: Tensor, precision: str) -> Tensor:
    """Rows whose answers differ by more than rounding, bool [B]; a common shift of a row's logits counts, too."""
    least, share = _NOISE.get(precision, _NOISE["float32"])
    apart_B = (first_BC - again_BC).square().mean(1).sqrt()
    return apart_B > least + share * first_BC.std(1, unbiased=False)


def stand_for_logits(values_BC: npt.NDArray[np.floating]) -> str:
    """Why numbers are probabilities, percentages or votes, in words; empty when they may be logits."""
    if not len(values_BC) or not (values_BC >= 0).all():
        return ""
    sum_B, most = values_BC.sum(1, dtype=np.float64), float(values_BC.max())
    if most == 0:
        return ""
    if np.allclose(sum_B, 1, atol=1e-2):
        return "each row adds to 1"
    if values_BC.size < _EVIDENCE:
        return ""
    if most <= 1 + 1e-3:
        return "every number lies between 0 and 1"
    kept_B = (values_BC > 0).sum(1)
    if len(sum_B) < 8 or kept_B.max() == 1:  # a label times a number may be a logit
        return ""
    if np.allclose(sum_B, sum_B.mean(), rtol=1e-2) and values_BC.min() <= _NEXT_TO_NONE * values_BC.mean():
        return f"no number is negative and each row adds to {sum_B.mean():.3g}"
    if kept_B.max() == kept_B.min() < values_BC.shape[1] - 1:  # all but one: logits above the row's least
        return f"no number is negative and each row has {kept_B[0]} classes that are not 0"
    return ""
