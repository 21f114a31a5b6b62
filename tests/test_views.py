"""Views: a function of seed, key and view number alone."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.user_code import load_factory
from logitbank.pipeline.views import TRANSFORMS, Views, allow_transform, check_probes, draw, mix64, probe, view_seeds
from logitbank.pipeline.views.mixing import own_share, partners


def test_mix64_is_splitmix64() -> None:
    """First outputs of the published generator for the seed 1234567."""
    state, gamma = 1234567, 0x9E3779B97F4A7C15
    states = np.array([(state + i * gamma) % 2**64 for i in range(3)], dtype=np.uint64)
    assert mix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize(
    "transform",
    [
        *(name for name in TRANSFORMS if name != "none"),
        "rrc+randaugment?size=12&magnitude=20&scale=0.3",
        "flip-crop+mixup",
        "rrc+randaugment+cutmix",
    ],
)
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
        assert (other != whole).any(axis=(1, 2, 3)).mean() > (0.7 if transform == "randaugment" else 0.9)


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
        ({"transform": "rrc?siz=3"}, "unknown option 'siz' of rrc"),
        ({"transform": "rrc?size=big"}, "expected a number"),
        ({"transform": "mixup+rrc"}, "come last"),
        ({"transform": "aug.py:make"}, "name its path"),
    ],
)
def test_impossible_views(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Views(**settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def colours() -> Split:
    """Smooth coloured images: shape, colour and place are all there to be changed."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (60, 4, 4, 3))
    images = coarse.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)
    labels = np.arange(60) % 3
    return Split(name="x", split="train", spec="x", samples=images, labels=labels, num_classes=3)


def test_rrc_covers_the_image_and_keeps_its_scale(colours: Split) -> None:
    views = Views(transform="rrc?size=16&scale=0.5")
    out = views.samples(colours, slice(None), 0)
    assert out.shape == (60, 16, 16, 3)
    assert out.dtype == np.uint8
    assert np.abs(out.mean(axis=(1, 2)) - colours.samples.mean(axis=(1, 2))).mean() < 20
    whole = Views(transform="rrc?scale=1").samples(colours, slice(None), 0)
    plain = colours.samples[:, :, :, :]
    as_is = (whole == plain).all(axis=(1, 2, 3)) | (whole == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    assert as_is.mean() > 0.05  # a square of the whole area is the image or its mirror image


def test_randaugment_changes_most_images_and_is_stronger_with_magnitude(colours: Split) -> None:
    changes = []
    for magnitude in (3, 25):
        out = Views(transform=f"randaugment?magnitude={magnitude}").samples(colours, slice(None), 0)
        changes.append(np.abs(out.astype(int) - colours.samples).mean())
    assert 0 < changes[0] < changes[1]


def test_a_mixed_image_is_mostly_its_own(colours: Split) -> None:
    seeds = view_seeds(0, colours.keys, 0)
    share = own_share(seeds) / 256
    images = np.asarray(colours.samples)
    others = images[partners(seeds, colours.rows_by_key)]
    assert share.min() >= 0.5
    mixed = Views(transform="mixup").samples(colours, slice(None), 0)
    expected = share[:, None, None, None] * images + (1 - share[:, None, None, None]) * others
    assert np.abs(mixed - expected).max() <= 0.5 + 1e-9
    cut = Views(transform="cutmix").samples(colours, slice(None), 0)
    own = (cut == colours.samples).all(axis=3)
    assert (own | (cut == others).all(axis=3)).all()
    assert own.mean(axis=(1, 2)).min() >= 0.5


def test_probes_catch_another_version_of_every_step(colours: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rrc", "randaugment", "mixup", "cutmix"):
        views = Views(transform=name, num_views=1)
        probes = probe(colours, views)
        entry, old = TRANSFORMS[name], TRANSFORMS[name].apply

        def changed(*arguments: np.ndarray, old: Callable[..., np.ndarray] = old) -> np.ndarray:
            return np.asarray(np.bitwise_xor(old(*arguments), 1))

        with monkeypatch.context() as patch:
            patch.setitem(TRANSFORMS, name, replace(entry, apply=changed))
            with pytest.raises(ValueError, match="view 0 of example 0 replays"):
                check_probes(colours, views, probes, num_views=1)
        check_probes(colours, views, probes, num_views=1)


USER = """
import numpy as np

def invert():
    return lambda images, seeds: 255 - images

def rank():
    return lambda images, seeds: images + np.arange(len(images), dtype=np.uint8)[:, None, None, None]

def nothing():
    return 3
"""


def test_user_code_runs_only_when_its_file_is_named(
    colours: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # other tests of this process name files too
    monkeypatch.setattr("logitbank.pipeline.views.transforms._user_code", {})
    (tmp_path / "own.py").write_text(USER)
    stored = {"transform": "own.py:invert", "num_views": 1, "seed": 0}
    with pytest.raises(ValueError, match="name its path"):
        Views.from_attributes(stored)
    views = Views(transform=allow_transform(f"{tmp_path}/own.py:invert"))
    assert (views.samples(colours, slice(None), 0) == 255 - colours.samples).all()
    assert views.attributes()["transform"] == "own.py:invert"
    assert len(views.attributes()["code_sha256"]) == 64
    assert Views.from_attributes(views.attributes()) == views
    probes = probe(colours, views)
    check_probes(colours, views, probes, num_views=1)
    before = (tmp_path / "own.py").stat()
    (tmp_path / "own.py").write_text(USER.replace("255 -", "254 -"))
    os.utime(tmp_path / "own.py", ns=(before.st_atime_ns, before.st_mtime_ns))  # as large and as old as it was
    allow_transform(f"{tmp_path}/own.py:invert")
    with pytest.raises(ValueError, match="view 0 of example 0 replays"):
        check_probes(colours, views, probes, num_views=1)
    with pytest.raises(ValueError, match="alone than in a batch"):
        probe(colours, Views(transform=allow_transform(f"{tmp_path}/own.py:rank")))
    for name, message in (("nothing", "returned int"), ("no", "defines no function 'no'"), ("USER", "no function")):
        with pytest.raises(ValueError, match=message):
            allow_transform(f"{tmp_path}/own.py:{name}")


def test_files_that_cannot_be_run(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    for text, message in (
        (f"{tmp_path}/broken.py:make", "ZeroDivisionError"),
        (f"{tmp_path}/none.py:make", "no such file"),
        ("no.such.package:make", "cannot be run"),
        ("make", "names no factory"),
    ):
        with pytest.raises(ValueError, match=message):
            load_factory(text)
