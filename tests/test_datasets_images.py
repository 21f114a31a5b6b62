"""Folders of images: each file is a row, or is named with a number, or is refused; each mode of Pillow is read right or
refused by name; damaged files are one line."""

import io
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from logitbank.pipeline.datasets import load_split
from logitbank.pipeline.datasets.pictures import decode_whole, shrink

CLASSES = ("ant", "bee", "cow")


def decode_image(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    """What a row of ``imagefolder:DIR?size=`` shows of a file."""
    return shrink(decode_whole(data, upright=True), size)


def picture(level: int, number: int = 0) -> Image.Image:
    rng = np.random.default_rng(level + number)
    return Image.fromarray((rng.integers(0, 30, (12, 12, 3)) + level).astype(np.uint8))


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    """Three classes of four pictures for training and of two for testing."""
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "pics" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(80 * label, number).save(folder / f"{number}.png")
    return tmp_path / "pics"


def test_folders_behind_links_are_rows(pics: Path, tmp_path: Path) -> None:
    plain = load_split(f"imagefolder:{pics}?size=8")
    linked = tmp_path / "linked" / "train"
    linked.mkdir(parents=True)
    for name in CLASSES:
        (linked / name).symlink_to(pics / "train" / name)
    split = load_split(f"imagefolder:{tmp_path}/linked?size=8")
    assert split.fingerprint == plain.fingerprint
    assert split.class_names == CLASSES
    (pics / "train" / "ant" / "again").symlink_to(pics / "train")
    with pytest.raises(ValueError, match=r"ant/again is a link to a folder that it lies in"):
        load_split(f"imagefolder:{pics}?size=8")


def test_hidden_files_and_folders_are_never_read(pics: Path) -> None:
    before = load_split(f"imagefolder:{pics}?size=8")
    for hidden in (pics / "train" / ".ipynb_checkpoints", pics / "train" / "ant" / ".cache"):
        hidden.mkdir()
        picture(9).save(hidden / "0.png")
    (pics / "train" / "bee" / "._0.png").write_bytes(b"what another system leaves behind")
    after = load_split(f"imagefolder:{pics}?size=8")
    assert after.fingerprint == before.fingerprint
    assert after.class_names == CLASSES


def test_what_is_no_row_is_named_with_its_number(pics: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pics / "train" / "ant" / "notes.txt").write_text("ants")
    (pics / "train" / "labels.csv").write_text("1,2")
    (pics / "masks").mkdir()
    (pics / "train" / "dog").mkdir()
    picture(0).save(pics / "train" / "cow" / "4.gif", save_all=True, append_images=[picture(90)])
    assert len(load_split(f"imagefolder:{pics}?size=8")) == 13
    said = caplog.text
    assert "2 files are no images by their names: ant/notes.txt, labels.csv" in said
    assert "1 folders hold no images and are no classes: dog" in said
    assert "1 folders beside train are not read: masks" in said
    assert "1 files hold several frames, the first is read" in said
    (pics / "val").mkdir()
    load_split(f"imagefolder:{pics}?size=8")
    assert "2 folders beside train are not read: masks, val" in caplog.text


def _loose(pics: Path) -> None:
    picture(0).save(pics / "train" / "loose.png")


def _nowhere(pics: Path) -> None:
    (pics / "train" / "ant" / "gone.png").symlink_to(pics / "gone.png")


def _pipe(pics: Path) -> None:
    os.mkfifo(pics / "train" / "ant" / "pipe.png")


def _other_class(pics: Path) -> None:
    (pics / "test" / "dog").mkdir()
    picture(0).save(pics / "test" / "dog" / "0.png")


def _other_names(pics: Path) -> None:
    (pics / "train").rename(pics / "Training")


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        (_loose, "train", "1 images lie in .* outside the folders of classes: loose.png"),
        (_nowhere, "train", "gone.png is no file"),
        (_pipe, "train", "pipe.png is no file"),
        (_other_class, "test", "1 of 7 images are of 1 classes that the training folder lacks: dog"),
        (_other_names, "train", "no folder train, but Training, test, which would be read as classes"),
    ],
)
def test_what_can_be_no_row_is_refused(pics: Path, change: Callable[[Path], None], split: str, message: str) -> None:
    change(pics)
    with pytest.raises(ValueError, match=message) as caught:
        load_split(f"imagefolder:{pics}?size=8&split={split}")
    assert "\n" not in str(caught.value)


def test_some_of_the_teachers_classes_keep_its_ids(pics: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("zebu\nbee\ndog\ncow\nant\n")
    spec = f"imagefolder:{pics}?size=8&classes={names}"
    _other_class(pics)
    train, test = load_split(spec), load_split(f"{spec}&split=test")
    assert (train.num_classes, train.class_names) == (5, ("zebu", "bee", "dog", "cow", "ant"))
    assert np.unique(train.labels).tolist() == [1, 3, 4]
    assert np.unique(test.labels).tolist() == [1, 2, 3, 4]
    assert load_split(train.spec).fingerprint == train.fingerprint
    with pytest.raises(ValueError, match=r"classes=9 does not say which ids the 3 classes ant, bee, cow have"):
        load_split(f"imagefolder:{pics}?size=8&classes=9")
    names.write_text("ant\nbee\n")
    with pytest.raises(ValueError, match=r"names.txt lacks 1 classes of the data: cow"):
        load_split(spec)
    for id_, name in ((11, "ant"), (2, "bee"), (0, "cow")):
        (pics / "train" / name).rename(pics / "train" / str(id_))
    assert np.unique(load_split(f"imagefolder:{pics}?size=8&classes=12").labels).tolist() == [0, 2, 11]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_grey_of_16_bits_keeps_its_range(kind: str) -> None:
    ramp = np.array([[0, 257, 20000, 40000, 65278, 65535]], np.uint16).repeat(6, axis=0)
    grey = decode_image(encoded(Image.fromarray(ramp), kind), 6)
    assert np.abs(grey[0, :, 0].astype(int) - np.round(ramp[0] / 257)).max() <= 1
    assert grey[0, -1].tolist() == [255, 255, 255]


COLOUR = (200, 100, 50)
MODES = [
    ("RGB", "PNG", {}),
    ("RGB", "JPEG", {"quality": 95}),
    ("CMYK", "TIFF", {}),
    ("CMYK", "JPEG", {"quality": 95}),
    ("YCbCr", "TIFF", {}),
    ("RGBA", "PNG", {}),
    ("RGBA", "TIFF", {}),
    ("P", "PNG", {}),
    ("P", "PNG", {"transparency": bytes([0, 200])}),
    ("RGB", "WEBP", {"quality": 95}),
    ("RGB", "BMP", {}),
    ("RGB", "AVIF", {"quality": 95}),
]


@pytest.mark.parametrize(("mode", "kind", "options"), MODES)
def test_modes_of_colour(mode: str, kind: str, options: dict[str, object]) -> None:
    shown = decode_image(encoded(Image.new("RGB", (9, 9), COLOUR).convert(mode), kind, **options), 4)
    assert np.abs(shown.astype(int) - COLOUR).max() <= 5


@pytest.mark.parametrize(("mode", "level"), [("1", 255), ("L", 99), ("LA", 99)])
def test_modes_of_grey(mode: str, level: int) -> None:
    shown = decode_image(encoded(Image.new("L", (9, 9), level).convert(mode), "PNG"), 4)
    assert np.unique(shown).tolist() == [level]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.full((4, 4), 0.5, np.float32)), "mode 'F'"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), "mode 'I'"),
        (Image.new("LAB", (4, 4)), "mode 'LAB'"),
        (Image.new("1", (10_000, 10_000)), "10000 x 10000 pixels|exceeds limit"),
    ],
)
def test_pictures_without_a_meaning_are_refused_by_name(pics: Path, image: Image.Image, message: str) -> None:
    image.save(pics / "train" / "cow" / "odd.tiff", compression="tiff_deflate" if image.mode == "1" else None)
    with pytest.raises(ValueError, match=rf"1 files cannot be decoded: .*cow/odd.tiff \(.*({message})") as caught:
        load_split(f"imagefolder:{pics}?size=8")
    assert "\n" not in str(caught.value)
    split = load_split(f"imagefolder:{pics}?size=8&on_error=skip")
    assert split.readable is not None
    assert np.flatnonzero(~split.readable).tolist() == [12]


def test_small_turned_and_animated_pictures() -> None:
    assert decode_image(encoded(Image.new("RGB", (1, 1), COLOUR), "PNG"), 5).reshape(-1, 3).tolist() == [[*COLOUR]] * 25
    assert decode_image(encoded(Image.new("RGB", (1, 3000), COLOUR), "PNG"), 5).shape == (5, 5, 3)
    halves = Image.new("RGB", (8, 8), COLOUR)
    halves.paste((0, 0, 0), (0, 0, 8, 4))  # black above
    for mode in ("RGB", "I;16"):
        shown = halves if mode == "RGB" else Image.fromarray(np.asarray(halves.convert("L")).astype(np.uint16) * 257)
        exif = Image.Exif()
        exif[274] = 6  # to be turned by 90 degrees to the right: black comes to the right
        for kind in ("PNG", "TIFF"):
            turned = decode_image(encoded(shown, kind, exif=exif.tobytes()), 8)
            assert turned[:, 4:].max() == 0
            assert turned[:, :4].min() > 40
    frames = encoded(picture(40), "GIF", save_all=True, append_images=[picture(200)])
    assert decode_image(frames, 8).max() < 100


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_pictures_are_one_line() -> None:
    """A hundred pictures with bytes changed, cut off or put in: read, or refused in one line."""
    rng = random.Random(0)
    sources = [encoded(picture(60).convert(mode), kind) for mode, kind, _ in MODES if (mode, kind) != ("P", "PNG")]
    sources.append(encoded(picture(60), "GIF", save_all=True, append_images=[picture(90)]))
    sources.append(encoded(Image.fromarray(np.full((12, 12), 40000, np.uint16)), "TIFF"))
    for number in range(100):
        data = bytearray(sources[number % len(sources)])
        for _ in range(rng.randint(1, 12)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        cut = rng.randrange(len(data)) if rng.random() < 0.3 else len(data)
        try:
            assert decode_image(bytes(data[:cut]), 8).shape == (8, 8, 3)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either is right
            assert str(error)  # noqa: PT017
