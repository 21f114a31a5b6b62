"""Views: a function of seed, key and view number alone."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.datasets import Split
from pipeline.views import TRANSFORMS, Views, check_probes, draw, mix64, probe, view_seeds


def test_mix64_is_splitmix64() -> None:
    """First outputs of the published generator for the seed 1234567."""
    state, gamma = 1234567, 0x9E3779B97F4A7C15
    states = np.array([(state + i * gamma) % 2**64 for i in range(3)], dtype=np.uint64)
    assert mix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("transform", [name for name in TRANSFORMS if name != "none"])
def test_a_view_depends_on_nothing_but_seed_key_and_number(digits: Split, transform: str) -> None:
    views = Views(transform=transform, num_views=3, seed=5)
    whole = views.samples(digits, slice(None), 1)
    rows = np.random.default_rng(0).permutation(len(digits))[:100]
    assert (views.samples(digits, rows, 1) == whole[rows]).all()
    assert (np.concatenate([views.samples(digits, np.array([row]), 1) for row in rows]) == whole[rows]).all()
    moved = replace(digits, samples=digits.samples[::-1], labels=digits.labels[::-1])
    assert (views.samples(moved, slice(None), 1)[::-1] == whole).all()
    for other in (
        views.samples(digits, slice(None), 2),
        replace(views, seed=6).samples(digits, slice(None), 1),
    ):
        assert (other != whole).any(axis=(1, 2, 3)).mean() > 0.9


def test_flip_crop_is_a_crop_of_the_padded_image(digits: Split) -> None:
    views = Views(transform="flip-crop", num_views=1)
    out = views.samples(digits, slice(0, 200), 0)
    flipped = 0
    for image, view in zip(digits.samples[:200, ..., 0], out[..., 0], strict=True):
        padded = np.pad(image, 1)
        crops = [padded[top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
        straight = any((crop == view).all() for crop in crops)
        mirrored = any((crop[:, ::-1] == view).all() for crop in crops)
        assert straight or mirrored
        flipped += mirrored and not straight
    assert 60 < flipped < 140


def test_draws_are_uniform_and_independent() -> None:
    seeds = view_seeds(0, np.arange(90_000, dtype=np.uint64), 0)
    first, second = draw(seeds, 0, 9), draw(seeds, 1, 9)
    table = np.histogram2d(first, second, bins=9)[0]
    expected = 90_000 / 81
    chi2 = float(((table - expected) ** 2 / expected).sum())
    assert chi2 < 80 + 5 * np.sqrt(160)  # mean 80, standard deviation 12.6


def test_probes_prove_the_replay(digits: Split) -> None:
    views = Views(transform="flip-crop", num_views=2)
    probes = probe(digits, views)
    check_probes(digits, views, probes, num_views=2)
    probes["digest"][1, 3] ^= np.uint64(1)
    with pytest.raises(ValueError, match=f"view 1 of example {probes['row'][3]} replays to other pixels"):
        check_probes(digits, views, probes, num_views=2)


def test_probes_catch_a_changed_transform(digits: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    views = Views(transform="flip-crop", num_views=1)
    probes = probe(digits, views)
    changed = replace(TRANSFORMS["flip-crop"], apply=lambda images, seeds: np.roll(images, 1, axis=1))
    monkeypatch.setitem(TRANSFORMS, "flip-crop", changed)
    with pytest.raises(ValueError, match="view 0 of example 0 replays"):
        check_probes(digits, views, probes, num_views=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transform": "flip"}, "did you mean 'flip-crop'"),
        ({"num_views": 0}, "at least 1"),
    ],
)
def test_impossible_views(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Views(**settings)  # type: ignore[arg-type]
