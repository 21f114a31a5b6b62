"""Views of photographs are functions of the original: the pixels that torchvision makes by hand of the same files."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from logitbank.pipeline.alignment import check_data
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.datasets.image_files import paths_of
from logitbank.pipeline.datasets.resize_crop import ResizeCrop
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.folds import group_ids
from logitbank.pipeline.views import Views, check_probes, probe, view_seeds
from logitbank.pipeline.views.geometry import _attempt, _boxes, _first_box
from logitbank.pipeline.views.randaugment import randaugment, randaugment_pictures

SHAPES = ((500, 375), (375, 500), (300, 300), (64, 200), (1, 1), (3, 400))
SMALL, LARGE = ResizeCrop(resize=(40, 40), crop=(32, 32)), ResizeCrop(resize=(70, 70), crop=(64, 64))


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Smooth colours with some noise, so that resampling and decoding both matter."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, shape in enumerate(SHAPES * 2):
        folder = tmp_path / "train" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        photograph(*shape, number).save(folder / f"{number:02}.{'jpg' if number < 9 else 'png'}", quality=90)
    photograph(90, 60, 50).convert("CMYK").save(tmp_path / "train" / "cat" / "cmyk.jpg")
    photograph(90, 60, 51).convert("P").save(tmp_path / "train" / "cat" / "palette.png")
    photograph(90, 60, 52).convert("L").save(tmp_path / "train" / "dog" / "grey.jpg")
    photograph(90, 60, 53).save(
        tmp_path / "train" / "dog" / "moves.gif", save_all=True, append_images=[photograph(90, 60, 54)]
    )
    return tmp_path


def files_of(split: Split) -> list[Path]:
    paths = paths_of(split)
    assert paths is not None
    return paths


def as_libraries_read(path: Path) -> Image.Image:
    """torchvision's and timm's own loaders."""
    with Image.open(path) as image:
        return image.convert("RGB")


def test_originals_are_the_pictures_that_libraries_read(photos: Path) -> None:
    split = load_split(f"imagefolder:{photos}")
    assert split.originals is not None
    for row, path in enumerate(files_of(split)):
        assert (np.asarray(split.originals.source.original(row)) == np.asarray(as_libraries_read(path))).all(), path
    assert load_split(split.spec).fingerprint == split.fingerprint


@pytest.mark.parametrize("transform", ["rrc", "rrc?scale=0.3", "rrc?size=50"])
def test_crops_are_those_made_by_hand(photos: Path, transform: str) -> None:
    prepare_torchvision()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    split = load_split(f"imagefolder:{photos}")
    views = Views(transform=transform, num_views=3, seed=4)
    views.check(split)
    fit = ResizeCrop(resize=(40, 40), crop=(32, 24), interpolation="bicubic")
    size = [50, 50] if "size" in transform else [32, 24]
    mirrored = 0
    for view in range(3):
        shown = views.samples(split, np.arange(len(split)), view, fit)
        assert shown.shape == (len(split), *size, 3)
        seeds = view_seeds(4, split.keys, view)
        for row, path in enumerate(files_of(split)):
            picture = as_libraries_read(path)
            scale = 0.3 if "scale" in transform else 0.08
            top, left, height, width = _boxes(picture.height, picture.width, seeds[row : row + 1], scale)[0].tolist()
            assert 0 <= top <= top + height <= picture.height
            assert 0 <= left <= left + width <= picture.width
            crop = F.resized_crop(picture, top, left, height, width, size, InterpolationMode.BICUBIC)
            made, straight = np.asarray(shown[row]), np.asarray(crop)
            assert (made == straight).all() or (made == straight[:, ::-1]).all(), (path, view)
            mirrored += not (made == straight).all()
    assert 0 < mirrored < 3 * len(split)


def test_a_model_of_another_size_sees_the_same_crop(photos: Path) -> None:
    """Shrunk to the same few pixels, the views of two sizes are alike, and those of two numbers are not."""
    split = load_split(f"imagefolder:{photos}")
    views = Views(transform="rrc", num_views=2)
    rows = np.array([row for row, path in enumerate(files_of(split)) if min(as_libraries_read(path).size) > 50])

    def coarse(fit: ResizeCrop, view: int) -> np.ndarray:
        shown = views.samples(split, rows, view, fit)
        side = fit.crop[0] // 8
        return np.asarray(shown.reshape(len(rows), 8, side, 8, side, 3).mean(axis=(2, 4)))

    small, large, other = coarse(SMALL, 0), coarse(LARGE, 0), coarse(LARGE, 1)
    assert np.abs(small - large).max() < 8
    assert np.abs(small - other).mean() > 10


@pytest.mark.parametrize("transform", ["none", "rrc", "rrc+randaugment", "flip-crop", "randaugment", "rrc+mixup"])
def test_views_of_originals_depend_on_seed_key_and_number(photos: Path, transform: str) -> None:
    split = load_split(f"imagefolder:{photos}")
    views = Views(transform=transform, num_views=2, seed=3)
    whole = views.samples(split, slice(None), 1, SMALL)
    assert whole.shape == (len(split), 32, 32, 3)
    order = np.random.default_rng(0).permutation(len(split))
    assert (views.samples(split, order[:5], 1, SMALL) == whole[order[:5]]).all()
    turned = load_split(f"imagefolder:{photos}?shuffle=1")
    place = {key: row for row, key in enumerate(split.keys.tolist())}
    assert (views.samples(turned, slice(None), 1, SMALL) == whole[[place[key] for key in turned.keys.tolist()]]).all()


def test_crops_come_before_everything_else(photos: Path) -> None:
    with pytest.raises(ValueError, match="rrc cuts its crops from the originals; write it first"):
        Views(transform="randaugment+rrc").check(load_split(f"imagefolder:{photos}"))


def test_keys_are_of_the_file_and_size_is_another_key(photos: Path, tmp_path: Path) -> None:
    split = load_split(f"imagefolder:{photos}")
    assert split.key_space == "file"
    assert load_split(f"imagefolder:{photos}?size=64").key_space == "file 64"
    before = split.keys.tolist()
    (tmp_path / "train" / "cat" / "cmyk.jpg").rename(tmp_path / "train" / "cat" / "zzz.jpg")
    moved = load_split(f"imagefolder:{photos}")
    assert sorted(moved.keys.tolist()) == sorted(before)
    assert moved.keys.tolist() != before
    assert not set(load_split(f"imagefolder:{photos}?size=64").keys.tolist()) & set(before)


def test_probes_find_another_decoder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever decodes other pixels learns it from the first picture; a model's own size takes no part."""
    split = load_split(f"imagefolder:{photos}")
    for transform in ("none", "rrc"):
        views = Views(transform=transform)
        probes = probe(split, views)
        check_probes(split, views, probes, num_views=1)
        assert split.originals is not None
        read = type(split.originals.source).original

        def darker(source: object, row: int, read: object = read) -> Image.Image:
            return read(source, row).point(lambda value: max(value - 1, 0))  # type: ignore[operator, no-any-return]

        with monkeypatch.context() as patch:
            patch.setattr(type(split.originals.source), "original", darker)
            with pytest.raises(ValueError, match="view 0 of example 0 replays to other pixels"):
                check_probes(split, views, probes, num_views=1)


def test_turned_pictures_lie_as_in_the_file_unless_asked(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[274] = 6
    halves = photograph(80, 60, 9)
    halves.paste((0, 0, 0), (0, 0, 80, 30))  # black above
    halves.save(tmp_path / "train" / "cat" / "aa.jpg", exif=exif, quality=95)
    caplog.set_level(logging.WARNING)
    plain = load_split(f"imagefolder:{photos}")
    assert "1 files ask to be turned (EXIF), and are read as they lie" in caplog.text
    assert plain.originals is not None
    assert (np.asarray(plain.originals.source.original(1)) == as_libraries_read(files_of(plain)[1])).all()
    upright = load_split(f"imagefolder:{photos}?upright=1")
    assert upright.originals is not None
    row = files_of(plain).index(tmp_path / "train" / "cat" / "aa.jpg")
    assert plain.originals.source.original(row).size == (80, 60)
    shown = np.asarray(upright.originals.source.original(row))
    assert shown.shape == (80, 60, 3)
    assert shown[:, 40:].max() < 40 < shown[:, :20].mean()
    assert upright.fingerprint != plain.fingerprint
    with pytest.raises(ValueError, match="size always turns pictures"):
        load_split(f"imagefolder:{photos}?upright=1&size=64")


def test_near_duplicates_are_found_in_originals(photos: Path, tmp_path: Path) -> None:
    photograph(500, 375, 0).save(tmp_path / "train" / "dog" / "again.jpg", quality=60)
    split = load_split(f"imagefolder:{photos}")
    names, groups = [path.name for path in files_of(split)], group_ids(split)
    assert groups[names.index("again.jpg")] == groups[names.index("00.jpg")]
    assert len(np.unique(groups)) > len(SHAPES)


def test_a_store_of_thumbnails_names_their_size(photos: Path, tmp_path: Path) -> None:
    """Data specs without size= meant size=224 once."""
    from logitbank.pipeline.files.versions import library_versions
    from logitbank.stores import create_store, open_store

    split = load_split(f"imagefolder:{photos}?size=24")
    views = Views()
    create_store(
        tmp_path / "s.zarr",
        dataset=split.describe(),
        views={**views.attributes(), "versions": library_versions()},
        keys=split.keys,
        labels=split.labels,
        probes=probe(split, views),
    )
    store = open_store(tmp_path / "s.zarr", allow_incomplete=True)
    check_data(store, split)
    with pytest.raises(ValueError, match=r"with its size= where pictures were shrunk \(once 224 by default\)"):
        check_data(store, load_split(f"imagefolder:{photos}"))


def test_ones_own_loop_sees_what_the_student_reads(photos: Path, tmp_path: Path) -> None:
    """A preprocessing that says how to resize originals is asked; any other callable is shown the standard."""
    import torch

    from logitbank.pipeline.answers.dataset import DistillationDataset
    from logitbank.pipeline.files.versions import library_versions
    from logitbank.pipeline.models import Preprocessing
    from logitbank.stores import create_store, open_store

    split = load_split(f"imagefolder:{photos}")
    views = Views(transform="rrc", num_views=2)
    create_store(
        tmp_path / "s.zarr",
        dataset=split.describe(),
        views={**views.attributes(), "versions": library_versions()},
        keys=split.keys,
        labels=split.labels,
        probes=probe(split, views),
    )
    store = open_store(tmp_path / "s.zarr", allow_incomplete=True)
    reads = Preprocessing(mean=(0.0,), std=(1.0,), fit=SMALL)
    example = DistillationDataset(store, split, reads)[3]
    expected = reads(torch.from_numpy(views.samples(split, np.array([3]), 0, SMALL)))[0]
    assert torch.equal(example.sample, expected)
    assert DistillationDataset(store, split)[3].sample.shape == (224, 224, 3)


def test_the_box_is_that_of_the_vectorised_draw(photos: Path) -> None:
    """One picture's first draw in plain numbers, and all draws of a batch in arrays, are the same function."""
    seeds = view_seeds(0, np.arange(3000, dtype=np.uint64), 0)
    firsts = np.stack(_attempt(seeds, 0, 0.08), axis=1).tolist()
    for height, width in ((375, 500), (500, 333), (9, 7), (1, 1)):
        boxes = _boxes(height, width, seeds, 0.08).tolist()
        found = [_first_box(height, width, *first) for first in firsts]
        assert all(one is None or list(one) == other for one, other in zip(found, boxes, strict=True))
        assert sum(one is not None for one in found) > (1500 if width > 9 else 300)


def test_randaugment_of_cuts_is_torchvisions_on_pictures(photos: Path) -> None:
    """The operations of pictures and of tensors are the same in all but rounding, row by row of their own draws."""
    split = load_split(f"imagefolder:{photos}")
    seeds = view_seeds(0, split.keys, 0)
    crops = Views(transform="rrc").samples(split, slice(None), 0, LARGE)
    shown = Views(transform="rrc+randaugment").samples(split, slice(None), 0, LARGE)
    assert (shown == randaugment_pictures(crops, seeds)).all()
    apart = np.abs(shown.astype(int) - randaugment(crops, seeds)).reshape(len(split), -1)
    assert (np.median(apart, axis=1) <= 3).mean() > 0.8
    assert (shown != crops).any(axis=(1, 2, 3)).mean() > 0.7


def test_bad_pictures_are_named_or_masked(photos: Path, tmp_path: Path) -> None:
    """Cut off, too large, no picture; and grey of 16 bits, which Pillow's own conversion would make white."""
    cat = tmp_path / "train" / "cat"
    whole = (cat / "00.jpg").read_bytes()
    (cat / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (10_000, 10_000)).save(cat / "bomb.png")
    (cat / "none.jpg").write_bytes(b"none")
    Image.fromarray(np.full((40, 50), 20_000, np.uint16)).save(cat / "deep.png")
    with pytest.raises(ValueError, match=r"2 files cannot be decoded: .*bomb.png .*none.jpg") as caught:
        load_split(f"imagefolder:{photos}")
    assert "\n" not in str(caught.value)
    split = load_split(f"imagefolder:{photos}?on_error=skip")
    assert split.readable is not None
    names = [path.name for path in files_of(split)]
    assert sorted(np.array(names)[~split.readable]) == ["bomb.png", "cut.jpg", "none.jpg"]
    for transform in ("none", "rrc"):
        shown = Views(transform=transform).samples(split, slice(None), 0, SMALL)
        assert shown[~split.readable].max() == 0
        assert np.unique(shown[names.index("deep.png")]).tolist() == [78]
    (cat / "bomb.png").unlink()
    (cat / "none.jpg").unlink()
    stopped = load_split(f"imagefolder:{photos}")  # the header of the other is sound
    with pytest.raises(
        ValueError, match=r"cat/cut.jpg: cannot be decoded \(.*; mend or remove it, or pass on_error=skip"
    ):
        _ = stopped.samples[:]
