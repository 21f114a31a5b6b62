"""What the benchmark against a plain loop is made of, on made-up data."""

import numpy as np
import pytest
import torch
from scipy import stats

from bench.against_timm import MEAN, STD, augmented, interval


def test_crops_are_padded_and_flipped_and_scaled() -> None:
    images_B = torch.randint(1, 256, (40, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    pixels = augmented(images_B).permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)
    shown = (pixels * 255).round().to(torch.uint8)
    padded = np.pad(images_B.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0)))
    flipped = 0
    for image, whole in zip(shown.numpy(), padded, strict=True):
        crops = [whole[top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
        as_it_is = any(np.array_equal(image, crop) for crop in crops)
        flipped += not as_it_is
        assert as_it_is or any(np.array_equal(image[:, ::-1], crop) for crop in crops)
    assert 10 < flipped < 30


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_interval_is_students(count: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    expected = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    np.testing.assert_allclose(interval(values.tolist()), expected, rtol=1e-3, atol=1e-3)
