"""What a training does to samples beside the views: random erasing, and mixup of pairs and of their losses.

Every draw is a function of the training's seed, the example and the epoch alone: the same in a run that was stopped,
and in several processes.

Shapes: B batch, N examples.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.fit.training import Training
from logitbank.pipeline.views.seeds import Seeds, draw_unit, view_seeds

_MIXED = 3000  # the stream of draws; those of views are others


@dataclass(frozen=True)
class Augmentation:
    """What is done to the samples of a pass once they are scaled.

    Mixup takes the rows of a pass two by two, so whatever cuts a batch keeps pairs together; an odd last row is alone.
    Each row has its own share of its mixed sample, never the smaller part, so that its label stays its main label.

    Attributes:
        training: Says what, and gives the seed.
        keys: Content key of each example, uint64 [N].
    """

    training: Training
    keys: Seeds

    def apply(self, inputs: Tensor, rows_B: Tensor, epoch: int) -> Tensor:
        """The inputs [B, ...] as the model sees them."""
        if self.training.random_erasing:
            _erase(inputs, self._seeds(rows_B, epoch), self.training.random_erasing)
        if self.training.mixup:
            share_B = self._share(rows_B, epoch).to(inputs).view(-1, *(1,) * (inputs.ndim - 1))
            inputs = share_B * inputs + (1 - share_B) * inputs[partner(len(rows_B))]
        return inputs

    def loss(self, ask: Callable[..., Tensor], rows_B: Tensor, epoch: int, *, mixes_answers: bool = False) -> Tensor:
        """The loss [B], mixed as the samples are.

        Losses are mixed and not answers: what a loss needs of a row, its label's rank or its weight, stays that of an
        answer that somebody gave. Where a loss is linear in the target's probabilities, as KL and cross-entropy are,
        the gradient is that of the mixed probabilities.

        Args:
            ask: Loss [B] of the pass for the answers to the given rows, int64 [B].
            rows_B: Those of the pass.
            epoch: Counted from 0.
            mixes_answers: The loss mixes answers itself; ``ask`` is told the partners' rows and the shares, as mixed.
        """
        if not self.training.mixup:
            return ask(rows_B)
        share_B, partners_B = self._share(rows_B, epoch), rows_B[partner(len(rows_B))]
        if mixes_answers:
            return ask(rows_B, mixed=(partners_B, share_B))
        loss_B = ask(rows_B)
        share_B = share_B.to(loss_B)
        return share_B * loss_B + (1 - share_B) * ask(partners_B)

    def _share(self, rows_B: Tensor, epoch: int) -> Tensor:
        """Each row's own share, float64 [B]: the larger of s and 1 - s, of s drawn from Beta(alpha, alpha)."""
        drawn_B = draw_unit(self._seeds(rows_B, epoch), _MIXED)
        share_B = betaincinv(self.training.mixup, self.training.mixup, drawn_B)
        return torch.from_numpy(np.maximum(share_B, 1 - share_B))

    def _seeds(self, rows_B: Tensor, epoch: int) -> Seeds:
        return view_seeds(self.training.seed, self.keys[rows_B.numpy()], epoch)


def partner(num_rows: int) -> Tensor:
    """The place that each place of a pass is mixed with: its neighbour, or an odd last one itself; int64 [B]."""
    place_B = torch.arange(num_rows)
    return (place_B ^ 1).clamp(max=num_rows - 1)


def _erase(images: Tensor, seeds: Seeds, probability: float) -> None:
    """timm's random erasing in place, with noise, image by image: it draws from global generators, kept as they were.

    References:
        Zhong et al. Random Erasing Data Augmentation. AAAI 2020.
    """
    prepare_torchvision()
    from timm.data.random_erasing import RandomErasing

    # the same noise wherever the images are
    erase = RandomErasing(probability, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]
    states = random.getstate(), torch.get_rng_state()
    try:
        for image, seed in zip(images, seeds.tolist(), strict=True):
            random.seed(seed)
            torch.default_generator.manual_seed(seed)
            erase(image)
    finally:
        random.setstate(states[0])
        torch.set_rng_state(states[1])
