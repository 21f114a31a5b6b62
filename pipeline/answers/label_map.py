"""The answer to a crop, taken from the label map of its picture: RoI-align, and the softmax that a loss makes of it.

Shapes: B batch, C classes, N examples, G x G cells of a map, L = G * G positions.

References:
    Yun et al. Re-labeling ImageNet. CVPR 2021, section 3.3 (the softmax of the scores that are averaged over the crop).
    He, Gkioxari, Dollar, Girshick. Mask R-CNN. ICCV 2017, section 3 (RoIAlign).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.answers.interface import Answers, Batch
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.answers.stored_batch import View
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.domains import LARGEST
from logitbank.pipeline.views import Views

_KEPT = ("dense", "fixed_tail", "out_of_fold")


class CroppedAnswers:
    """Answers to any crop of a picture, from what a store of label maps holds of the whole picture.

    A softmax forgets the shift by which a stored answer differs from the network's scores, also after averaging. A
    mirrored crop has the answer of the crop: both average the same places.

    Args:
        maps: What the store holds, [L, C] a picture.
        views: The crops, of a split with one answer an example.
        split: The pictures.

    Raises:
        ValueError: A tail rule that follows the student.
    """

    def __init__(self, maps: Answers, views: Views, split: Split) -> None:
        if maps.tail == "bucket":
            raise ValueError("--tail bucket does not go with a label map, whose rows have many answers; choose another")
        self.maps, self.views, self.split = maps, views, split
        self.tail, self.grouping, self.num_views = maps.tail, maps.grouping, LARGEST

    @property
    def parts(self) -> Sequence[StoredAnswers]:
        return self.maps.parts

    @property
    def offers(self) -> frozenset[str]:
        return self.maps.offers & frozenset(_KEPT)

    def of(self, rows_B: Tensor, view: View) -> "CroppedBatch":
        rows = rows_B.cpu().numpy()
        view_B = np.broadcast_to(torch.as_tensor(view).cpu().numpy().reshape(-1), len(rows))
        weights_BL = np.empty((len(rows), self.views.label_map**2))
        for number in np.unique(view_B).tolist():
            own_B = view_B == number
            boxes = self.views.boxes(self.split, rows[own_B], number)
            weights_BL[own_B] = roi_weights(boxes, self.views.label_map).reshape(len(boxes), -1)
        return CroppedBatch(self.maps.of(rows_B, 0), self.offers, torch.from_numpy(weights_BL))

    def logits(
        self, rows_B: Tensor, view: View, *, student_BC: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        answer = self.of(rows_B, view)
        if (served_B := answer.served()) is not None:
            raise ValueError(
                f"no teacher serves {int((~served_B).sum())} of {len(served_B)} rows; ask served(view) which rows have"
                " an answer"
            )
        return answer.pooled()

    def served(self, view: int) -> npt.NDArray[np.bool_]:
        return self.maps.served(0)

    def read_ahead(self, view: int, groups: Sequence[Tensor] = ()) -> None:
        self.maps.read_ahead(0, groups)

    def close(self) -> None:
        self.maps.close()


class CroppedBatch:
    """What the maps of B pictures say of a crop of each; see ``Batch``."""

    def __init__(self, maps: Batch, offers: frozenset[str], weights_BL: Tensor) -> None:
        self.maps, self.offers, self.weights_BL = maps, offers, weights_BL
        self.shape = (len(weights_BL),)

    def logits(self, student_BC: Tensor, temperature: float) -> Tensor:
        return self.pooled()

    def pooled(self) -> Tensor:
        """Scores averaged over the crop, float32 [B, C]."""
        scores_PC = self.maps.logits(torch.empty(0), 1.0)  # no tail here follows a student
        scores_BLC = scores_PC.reshape(*self.weights_BL.shape, -1)
        return torch.einsum("bl,blc->bc", self.weights_BL.to(scores_BLC), scores_BLC)

    def order_known(self, student_BC: Tensor, temperature: float) -> Tensor | None:
        """All rows where each class is stored, else none: averages mix what is stored with what is predicted."""
        return None if "dense" in self.offers else torch.zeros(self.shape, dtype=torch.bool, device=student_BC.device)

    def served(self) -> Tensor | None:
        served_P = self.maps.served()
        served_B = None if served_P is None else served_P.reshape(self.weights_BL.shape).any(dim=1)
        return None if served_B is None or served_B.all() else served_B

    def features(self) -> tuple[Tensor, Tensor]:
        raise ValueError("a label map keeps no features")

    def part(self, some: slice) -> "CroppedBatch":
        own, cells = range(len(self.weights_BL))[some], self.weights_BL.shape[1]
        return CroppedBatch(
            self.maps.part(slice(own.start * cells, own.stop * cells)), self.offers, self.weights_BL[some]
        )


def roi_weights(boxes: npt.NDArray[np.float64], grid: int) -> npt.NDArray[np.float64]:
    """What each cell of a map counts in the average over a box, [B, G, G]; each sums to 1.

    As ``torchvision.ops.roi_align`` with one bin, ``aligned=True`` and as many samples along a side as it has cells,
    begun ones included; a box ends where the picture does. (Its compiled operator is missing beside a torch that was
    installed for the CPU alone.)

    Args:
        boxes: Top, left, bottom, right as shares of the picture, [B, 4].
        grid: G.
    """
    inside = np.clip(boxes, 0.0, 1.0) * grid
    down_BG, along_BG = (_line_weights(inside[:, side], inside[:, side + 2], grid) for side in (0, 1))
    return down_BG[:, :, None] * along_BG[:, None, :]


def _line_weights(
    start_B: npt.NDArray[np.float64], stop_B: npt.NDArray[np.float64], grid: int
) -> npt.NDArray[np.float64]:
    """The same along one side, [B, G]: samples at the middles of equal parts, each shared by the two cells there."""
    length_B = stop_B - start_B
    count_B = np.maximum(np.ceil(length_B), 1)
    sample_S = np.arange(int(count_B.max(initial=1)))
    place_BS = start_B[:, None] + (sample_S + 0.5) * (length_B / count_B)[:, None] - 0.5
    near_BSG = np.maximum(1 - np.abs(np.clip(place_BS, 0, grid - 1)[:, :, None] - np.arange(grid)), 0)
    counts_BS = (sample_S < count_B[:, None]) / count_B[:, None]
    return np.asarray((counts_BS[:, :, None] * near_BSG).sum(axis=1))
