"""Whether the shift that a row holds gives its tail its mass: the tail's shape computed again, without torch.

Shapes: R rows, K kept classes, C classes, F folds, D inner dimension of the map, M directions of the code.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from logitbank.stores.format.schema import StoreError

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_LEAST_LEFT = np.float32(2.0**-11)  # of a tail's mass beside the label's: less is rounding
_SLACK, _ROUNDING = 0.02, 2.0**-9  # nats, and their share of the largest logit: tails may be summed in float16
_ROUNDS = 8
_LOWEST = np.float32(-3e4)


class Tails:
    """What a teacher's constants say of the tails of its rows.

    Args:
        constants: By name; those of a predicted tail.
        num_classes: C.
        num_folds: F, 1 without folds.

    Raises:
        StoreError: They are not what the format says.
    """

    def __init__(self, constants: Mapping[str, np.ndarray], num_classes: int, num_folds: int) -> None:
        missing = sorted({"tail_matrix", "tail_bias", "tail_gauge"} - set(constants))
        if missing:
            raise StoreError(f"rows with tail_shift need {missing[0]}, found none; do not use this store")
        self._constants, self._one = constants, constants["tail_bias"].shape[:1] == (1,)
        num_folds = 1 if self._one else num_folds
        inner = constants["tail_factor"].shape[1:2] if "tail_factor" in constants else (num_classes,)
        most = constants["tail_scale"].shape[1:2] if "tail_scale" in constants else (0,)
        shapes = {
            "tail_matrix": (num_folds, num_classes, *inner),
            "tail_bias": (num_folds, num_classes),
            "tail_gauge": (3,),
            "tail_factor": (num_folds, *inner, num_classes),
            "tail_basis": (num_folds, *most, num_classes),
            "tail_scale": (num_folds, *most),
            "tail_width": (num_folds, *most),
            "tail_levels": (510,),
        }
        needed = {"tail_basis", "tail_scale", "tail_width", "tail_levels"} if "tail_basis" in constants else set[str]()
        for name in sorted(needed | set(constants) & set(shapes)):
            found = constants[name].shape if name in constants else None
            if found != shapes[name]:
                wanted = f"{name} {list(shapes[name])}"
                raise StoreError(f"a predicted tail takes {wanted}, found {list(found or ())}; do not use this store")
        if "tail_width" in constants and int(constants["tail_width"].max(initial=0)) > 8:
            raise StoreError("tail_width must be at most 8 bits; do not use this store")
        self._held: tuple[int, dict[str, Floats]] = (-1, {})

    def shape(self, index_RK: Ids, head_RK: Floats, folds_R: Ids, code: np.ndarray | None) -> Floats:
        """Logits of all classes up to a constant per row, [R, C]; those of the head mean nothing."""
        a, b, limit = self._constants["tail_gauge"]
        if a or b:
            head_RK = np.maximum(head_RK, _LOWEST)
            head_RK = head_RK - a * head_RK[:, -1:] + b
        x_RK = np.clip(head_RK, -limit, limit)
        shape_RC = np.empty((len(head_RK), self._constants["tail_bias"].shape[1]), np.float32)
        folds_R = np.zeros_like(folds_R) if self._one else folds_R
        for fold in np.unique(folds_R).tolist():
            own_R = np.flatnonzero(folds_R == fold)
            shape_RC[own_R] = self._of_fold(fold, index_RK[own_R], x_RK[own_R], None if code is None else code[own_R])
        return shape_RC

    def _of_fold(self, fold: int, index_RK: Ids, x_RK: Floats, code: np.ndarray | None) -> Floats:
        floats = self._floats(fold)
        matrix_CD = floats["tail_matrix"]
        sum_RD = np.zeros((len(x_RK), matrix_CD.shape[1]), np.float32)
        one_RD = np.empty_like(sum_RD)
        for k in range(x_RK.shape[1]):  # one class after the other: what is added stays in a cache
            np.take(matrix_CD, index_RK[:, k], axis=0, out=one_RD)
            one_RD *= x_RK[:, k, None]
            sum_RD += one_RD
        sum_RC = sum_RD @ floats["tail_factor"] if "tail_factor" in floats else sum_RD
        sum_RC += floats["tail_bias"]
        if code is not None and "tail_basis" in floats:
            sum_RC += self._coefficients(fold, code) @ floats["tail_basis"]
        return sum_RC

    def _floats(self, fold: int) -> dict[str, Floats]:
        """The maps of a fold in float32; those of the fold asked for last are held."""
        if self._held[0] != fold:
            names = [
                name for name in ("tail_matrix", "tail_factor", "tail_bias", "tail_basis") if name in self._constants
            ]
            self._held = fold, {name: self._constants[name][fold].astype(np.float32) for name in names}
        return self._held[1]

    def _coefficients(self, fold: int, code: np.ndarray) -> Floats:
        """What a row's code says of each direction, [R, M]."""
        width_M = self._constants["tail_width"][fold].astype(np.int64)
        start_M = np.cumsum(width_M) - width_M
        padded = np.pad(code, ((0, 0), (0, 2))).astype(np.int64)
        first_M = np.minimum(start_M // 8, code.shape[1])
        pair = padded[:, first_M] | padded[:, first_M + 1] << 8
        number = pair >> start_M % 8 & (1 << width_M) - 1
        level = self._constants["tail_levels"].astype(np.float32)[number + (1 << width_M) - 2]
        return np.asarray(level * np.where(width_M > 0, self._constants["tail_scale"][fold], 0), np.float32)


def wrong_shift(
    shape_RC: Floats,
    shift_R: Floats,
    index_RK: Ids,
    head_RK: Floats,
    label_R: Ids,
    label_logit_R: Floats,
    tail_R: Floats,
) -> npt.NDArray[np.bool_]:
    """Rows whose shift does not give the tail its mass, bool [R].

    Args:
        shape_RC: Logits of all classes up to a constant; overwritten.
        shift_R: What they are raised by.
        index_RK: The head.
        head_RK: Its raw logits.
        label_R: The label, or the best class where there is no label outside the head.
        label_logit_R: Its raw logit; -inf where there is no label outside the head.
        tail_R: Log of the mass outside the head, in raw logits.
    """
    kth_R = np.nextafter(head_RK[:, -1], np.float32(-np.inf))
    label_logit_R = np.minimum(label_logit_R, kth_R)
    rest_R = _log_minus(tail_R, label_logit_R)
    size_R = np.maximum(np.maximum(shape_RC.max(1), -shape_RC.min(1)), np.abs(head_RK[:, 0]))
    slack_R = _SLACK + _ROUNDING * size_R
    np.put_along_axis(shape_RC, index_RK, -np.inf, 1)
    np.put_along_axis(shape_RC, label_R[:, None], -np.inf, 1)
    wrong_R = (shape_RC.max(1) > -np.inf) & ~(np.abs(_log_mass(shape_RC, shift_R, kth_R) - rest_R) <= slack_R)
    wrong_R &= ~(np.isneginf(rest_R) & np.isneginf(shift_R))
    rows = np.flatnonzero(wrong_R)  # those whose mass cannot be reached below the K-th are right all the same
    if len(rows):
        own_RC, limit_R = shape_RC[rows], kth_R[rows]
        reached_R = _log_mass(own_RC, _shift(own_RC, rest_R[rows], limit_R), limit_R)
        wrong_R[rows] = ~(np.abs(reached_R - _log_mass(own_RC, shift_R[rows], limit_R)) <= slack_R[rows])
    return np.asarray(wrong_R)


def _log_minus(a_R: Floats, b_R: Floats) -> Floats:
    gap_R = np.maximum(a_R - b_R, _LEAST_LEFT)
    return np.where(np.isneginf(a_R), a_R, a_R + np.log(-np.expm1(-gap_R)))


def _log_mass(shape_RC: Floats, shift_R: Floats, kth_R: Floats) -> Floats:
    """Log of the mass of shifted tails, none of whose classes exceeds the K-th of its row, [R]."""
    raised_RC = shape_RC + shift_R[:, None]
    np.minimum(raised_RC, kth_R[:, None], out=raised_RC)
    best_R = np.maximum(raised_RC.max(1), np.finfo(np.float32).min)
    raised_RC -= best_R[:, None]
    return np.asarray(np.log(np.exp(raised_RC, out=raised_RC).sum(1)) + best_R)


def _shift(shape_RC: Floats, rest_R: Floats, kth_R: Floats) -> Floats:
    """The shift that a reader would compute, [R]."""
    shift_R = rest_R - _log_mass(shape_RC, np.zeros_like(rest_R), np.full_like(rest_R, np.inf))
    for _ in range(_ROUNDS):
        over_RC = shape_RC > (kth_R - shift_R)[:, None]
        left_R = _log_minus(rest_R, kth_R + np.log(over_RC.sum(1, dtype=np.float32)))
        under_R = _log_mass(np.where(over_RC, -np.inf, shape_RC), np.zeros_like(rest_R), np.full_like(rest_R, np.inf))
        raised_R = np.where(over_RC.any(1) & (under_R > np.finfo(np.float32).min), left_R - under_R, shift_R)
        if not (raised_R > shift_R + 1e-5).any():
            break
        shift_R = np.maximum(shift_R, raised_R)
    return shift_R
