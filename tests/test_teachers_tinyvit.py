"""TinyViT's folders of saved logits, made here byte by byte from what is known of their records."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.build import build_teacher
from logitbank.pipeline.cache_teacher.teachers.tinyvit import TinyVitTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.datasets.image_files import paths_of
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.exchange import export_store
from logitbank.pipeline.train_student.losses import parse_objective
from logitbank.pipeline.train_student.needs import check_needs
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.exchange import C, N, make_data, make_logits

K = 4
TOPK16 = Encoding(kind="topk", num_classes=C, top_k=K, bits=16)
POSITIONS = "?keys=positions&pixels=augmented"


def softmax(logits: np.ndarray) -> np.ndarray:
    prob = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(prob / prob.sum(1, keepdims=True))


def write_epoch(
    folder: Path, logits: np.ndarray, keys: list[str], *, epoch: int = 0, ranks: int = 2, offset: int = 0
) -> Path:
    """One epoch as ``ranks`` processes would write it: a record is a seed (int32), K ids (int16), K halves."""
    out = folder / f"logits_top{K}_epoch{epoch}"
    out.mkdir(parents=True)
    order = np.random.default_rng(epoch).permutation(len(keys))  # a sampler's order
    for rank in range(ranks):
        records, names = b"", ""
        for row in order[rank::ranks]:
            prob = softmax(logits[row : row + 1])[0]
            best = sorted(range(len(prob)), key=lambda c: -prob[c])[:K]
            seed = (row * 7919 + epoch) % 2**31
            ids = [(c + offset + 2**15) % 2**16 - 2**15 for c in best]  # wraps as int16 does
            records += struct.pack(f"<i{K}h{K}e", seed, *ids, *(prob[c] for c in best))
            names += f"{keys[row]}\n"
        (out / f"rank{rank}-values.bin").write_bytes(records)
        (out / f"rank{rank}-keys.txt").write_text(names)
    assert sum((out / f"rank{rank}-values.bin").stat().st_size for rank in range(ranks)) == len(keys) * (4 + 4 * K)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_data(tmp_path_factory.mktemp("data") / "d.npz")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Three epochs, keys are positions."""
    for epoch, logits in enumerate(make_logits(3)):
        write_epoch(tmp_path / "cache", logits, [str(row) for row in range(N)], epoch=epoch)
    return tmp_path / "cache"


def test_epochs_become_views(data: Split, cache: Path, tmp_path: Path) -> None:
    answers = build_teacher(data, f"tinyvit:{cache}{POSITIONS}", "", Views(num_views=3))
    cache_teacher(answers, tmp_path / "s.zarr", encoding=TOPK16, predictor_rows=0)
    store = open_store(tmp_path / "s.zarr")
    for view, logits in enumerate(make_logits(3)):
        prob = softmax(logits.astype(np.float64))
        slab = store.teacher().slab(view)
        best = np.argsort(-prob, axis=1)[:, :K]
        assert (np.sort(slab["index"], axis=1) == np.sort(best, axis=1)).mean() > 0.99  # ties of float16
        head = np.take_along_axis(prob, slab["index"].astype(int), 1)
        np.testing.assert_allclose(np.exp(slab["log_prob"].astype(float)), head, rtol=5e-3, atol=1e-6)
        tail = 1 - np.take_along_axis(prob, best, 1).sum(1)
        np.testing.assert_allclose(np.exp(slab["log_tail_mass"].astype(float)), tail, atol=3e-3)


def test_the_store_says_what_was_not_proved(data: Split, cache: Path, tmp_path: Path) -> None:
    answers = build_teacher(data, f"tinyvit:{cache}{POSITIONS}", "", Views(num_views=2))
    identity = answers.identity()
    assert identity["architecture"] == "tinyvit:cache (saw augmented pixels)"
    assert len(identity["weights_sha256"][0]) == 64
    said = identity["imported"]
    assert "not proved" in said["keys"]
    assert "not what it saw" in said["pixels"]
    assert said["labels"].startswith("best class of 0.")
    assert said["epochs"] == [f"logits_top{K}_epoch0", f"logits_top{K}_epoch1"]
    assert any("evenly" in line for line in said["assumed"])
    other = build_teacher(data, f"tinyvit:{cache}{POSITIONS}", "", Views(num_views=1)).identity()
    assert other["weights_sha256"] != identity["weights_sha256"]


def test_labels_that_no_record_names_are_counted(data: Split, cache: Path, tmp_path: Path) -> None:
    """Their probability is a guess, in every store that is made of these answers, and losses that need it are told."""
    answers = build_teacher(data, f"tinyvit:{cache}{POSITIONS}", "", Views(num_views=2))
    cache_teacher(answers, tmp_path / "s.zarr", encoding=TOPK16, predictor_rows=0)
    best = np.argsort(-make_logits(3)[:2], axis=2)[:, :, :K]
    labelled = data.labels >= 0
    named = (best == data.labels[:, None]).any(2)[:, labelled]
    store = open_store(tmp_path / "s.zarr")
    said = store.teacher().identity["imported"]["label_log_prob"]
    assert said == {"known": int(named.sum()), "labelled": named.size}
    assert said["known"] < said["labelled"]
    assert any("rows do not name their label" in line for line in store.teacher().summary["warnings"])
    for dense in (False, True):
        export_store(store.path, tmp_path / f"{dense}.npz", dense=dense)
        again = build_teacher(data, f"export:{tmp_path}/{dense}.npz", "", Views(num_views=2))
        cache_teacher(again, tmp_path / f"{dense}.zarr", encoding=TOPK16, predictor_rows=0)
        store = open_store(tmp_path / f"{dense}.zarr")
        assert "label_prob" not in StoredAnswers(store).offers
        with pytest.raises(ValueError, match="dkd.*needs the teacher's own probability of every label"):
            check_needs(parse_objective("dkd", {}), store, StoredAnswers(store))


def test_a_store_without_the_count_is_not_believed(data: Split, cache: Path, tmp_path: Path) -> None:
    """Made before it was recorded."""
    teacher = TinyVitTeacher(f"tinyvit:{cache}{POSITIONS}", data, Views())
    identity = teacher.identity()
    del identity["imported"]["label_log_prob"]
    teacher.identity = lambda: identity  # type: ignore[method-assign]
    cache_teacher(teacher, tmp_path / "s.zarr", encoding=TOPK16, predictor_rows=0)
    store = open_store(tmp_path / "s.zarr")
    assert "label_prob" not in StoredAnswers(store).offers
    assert any("an unknown number of rows" in line for line in store.teacher().summary["warnings"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "pass keys=paths when"),
        ("?keys=positions", "pass pixels=plain when"),
        ("?keys=rows&pixels=plain", "pass keys=paths when"),
        ("?key=positions&pixels=plain", "did you mean 'keys'"),
        ("?keys=paths&pixels=plain", "has none; pass keys=positions"),
        ("?keys=positions&pixels=plain", "were not plain; pass pixels=augmented"),
    ],
)
def test_what_the_files_do_not_say_must_be_said(data: Split, cache: Path, options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_teacher(data, f"tinyvit:{cache}{options}", "", Views())


def test_plain_pixels_have_one_view(data: Split, tmp_path: Path) -> None:
    logits = make_logits(1)[0]
    for epoch in range(2):  # the second differs as far as a GPU's rounding does
        write_epoch(tmp_path / "c", logits + epoch * 1e-3, [str(row) for row in range(N)], epoch=epoch)
    spec = f"tinyvit:{tmp_path}/c?keys=positions&pixels=plain"
    assert build_teacher(data, spec, "", Views()).identity()["architecture"] == "tinyvit:c"
    with pytest.raises(ValueError, match="--views is 2"):
        build_teacher(data, spec, "", Views(num_views=2))


def test_views_that_cannot_be_replayed_are_refused(data: Split, cache: Path) -> None:
    with pytest.raises(ValueError, match="cannot be replayed"):
        build_teacher(data, f"tinyvit:{cache}{POSITIONS}", "", Views(transform="flip-crop", num_views=3))
    with pytest.raises(ValueError, match="--views is 4"):
        build_teacher(data, f"tinyvit:{cache}{POSITIONS}", "", Views(num_views=4))


def test_every_epoch_must_know_the_labels(data: Split, cache: Path) -> None:
    """The last one was written for another order."""
    spec, views = f"tinyvit:{cache}{POSITIONS}", Views(num_views=3)
    keys = cache / f"logits_top{K}_epoch2" / "rank0-keys.txt"
    lines = keys.read_text().splitlines()
    other = cache / f"logits_top{K}_epoch2" / "rank1-keys.txt"
    rest = other.read_text().splitlines()
    keys.write_text("\n".join(np.random.default_rng(0).permutation(rest)) + "\n")
    other.write_text("\n".join(np.random.default_rng(0).permutation(lines)) + "\n")
    answers = build_teacher(data, spec, "", views)
    answers(np.arange(N), 1)
    with pytest.raises(ValueError, match="epoch2: its best class is the label of"):
        answers(np.arange(N), 2)


@pytest.mark.parametrize("change", ["order", "classes"])
def test_rows_that_do_not_know_their_labels_are_refused(data: Split, cache: Path, tmp_path: Path, change: str) -> None:
    """Positions of another order, or numbers of other classes: nothing in the files would tell."""
    order = np.random.default_rng(5).permutation(N)
    other = make_data(tmp_path / "other.npz", order if change == "order" else None)
    if change == "classes":
        other = replace(other, labels=np.where(other.labels < 0, -1, (other.labels + 3) % C))
    with pytest.raises(ValueError, match="if they were shuffled"):
        build_teacher(other, f"tinyvit:{cache}{POSITIONS}", "", Views(num_views=3))


@pytest.fixture
def images(tmp_path: Path) -> Split:
    """A folder of images; two classes have a file of the same name."""
    rng = np.random.default_rng(0)
    for row in range(60):
        path = tmp_path / "images" / "train" / f"class{row % 5}" / f"{row // 5}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return load_split(f"imagefolder:{tmp_path}/images?size=8")


def test_file_names_find_their_images(images: Split, tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    logits[np.arange(60), images.labels] += 3
    paths = paths_of(images)
    assert paths is not None
    keys = [f"{path.parent.name}/{path.name}" for path in paths]
    write_epoch(tmp_path / "c", logits, keys, ranks=3)
    extra = tmp_path / "c" / f"logits_top{K}_epoch0"
    with (extra / "rank0-keys.txt").open("a") as file:
        file.write("class9/another.png\n")  # an example that this data does not have
    with (extra / "rank0-values.bin").open("ab") as file:
        file.write(bytes(4 + 4 * K))
    answers = build_teacher(images, f"tinyvit:{tmp_path}/c?keys=paths&pixels=plain", "", Views())
    found = answers(np.arange(60), 0).softmax(1).numpy()
    np.testing.assert_allclose(found, softmax(logits), atol=2e-3)
    write_epoch(tmp_path / "bare", logits, [path.name for path in paths])
    with pytest.raises(ValueError, match="lacks 60 of the 60"):  # names that several images share are no names
        build_teacher(images, f"tinyvit:{tmp_path}/bare?keys=paths&pixels=plain", "", Views())


def test_ids_above_32767_are_unwrapped(tmp_path: Path) -> None:
    num_classes, offset = 40_000, 33_000
    labels = np.arange(N) % C + offset
    x = np.random.default_rng(0).integers(0, 256, (N, 4, 4, 1), dtype=np.uint8)
    split = Split(name="t", split="train", spec="t", samples=x, labels=labels, num_classes=num_classes)
    logits = make_logits(1)[0] * 4
    write_epoch(tmp_path / "c", logits, [str(row) for row in range(N)], offset=offset)
    answers = TinyVitTeacher(f"tinyvit:{tmp_path}/c{POSITIONS}", split, Views())
    best = answers(np.arange(N), 0).argmax(1).numpy()
    assert (best == logits.argmax(1) + offset).mean() > 0.98
    with pytest.raises(ValueError, match="ids of 16 bits"):
        TinyVitTeacher(f"tinyvit:{tmp_path}/c{POSITIONS}", replace(split, num_classes=70_000), Views())


def test_unreadable_images_need_no_record(data: Split, cache: Path, tmp_path: Path) -> None:
    readable = np.arange(N) != 30
    folder = tmp_path / "few"
    logits = make_logits(1)[0]
    write_epoch(folder, logits[readable], [str(row) for row in np.flatnonzero(readable)])
    answers = build_teacher(replace(data, readable=readable), f"tinyvit:{folder}{POSITIONS}", "", Views())
    cache_teacher(answers, tmp_path / "s.zarr", encoding=TOPK16, predictor_rows=0)
    assert (open_store(tmp_path / "s.zarr").teacher().slab(0)["mask"] == readable).all()
    with pytest.raises(ValueError, match="lacks at least 1 of the 120"):
        build_teacher(data, f"tinyvit:{folder}{POSITIONS}", "", Views())


def damage(folder: Path, how: str) -> None:
    epoch = folder / f"logits_top{K}_epoch0"
    values, keys = epoch / "rank1-values.bin", epoch / "rank1-keys.txt"
    content = bytearray(values.read_bytes())
    if how == "truncated":
        values.write_bytes(content[:-3])
    elif how == "cut at a record":
        values.write_bytes(content[: -4 - 4 * K])
    elif how == "a key too many":
        keys.write_text(keys.read_text() + "0\n")
    elif how == "no keys":
        keys.unlink()
    elif how == "long key":
        keys.write_bytes(b"1" * 10_000_000)
    elif how == "other key":
        keys.write_text(keys.read_text().replace("\n", "x\n", 1))
    elif how == "beyond":
        keys.write_text(keys.read_text().replace("\n", "000\n", 1))
    elif how == "id":
        content[4:6] = struct.pack("<h", C)
        values.write_bytes(content)
    elif how == "nan":
        content[4 + 2 * K : 6 + 2 * K] = struct.pack("<e", float("nan"))
        values.write_bytes(content)
    elif how == "no ranks":
        for path in epoch.iterdir():
            path.unlink()
    elif how == "two caches":
        (folder / "logits_top7_epoch0").mkdir()
    elif how == "no epochs":
        epoch.rename(folder / "epoch0")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "it was cut off"),
        ("cut at a record", "lacks at least 1 of the 120 examples"),
        ("a key too many", "for each of the 61 keys"),
        ("no keys", "belong together"),
        ("long key", "more than 4096 bytes"),
        ("other key", "is no row of 120"),
        ("beyond", "is no row of 120"),
        ("id", "class 10 of 10"),
        ("nan", "runs from nan"),
        ("no ranks", "no rank0-values.bin"),
        ("two caches", "folders of their own"),
        ("no epochs", "no folders logits_topK_epochE"),
    ],
)
def test_damage_is_one_line(data: Split, tmp_path: Path, how: str, message: str) -> None:
    write_epoch(tmp_path / "c", make_logits(1)[0], [str(row) for row in range(N)])
    damage(tmp_path / "c", how)

    def answer() -> Any:
        return build_teacher(data, f"tinyvit:{tmp_path}/c{POSITIONS}", "", Views())(np.arange(N), 0)

    with pytest.raises(ValueError, match=message) as caught:
        answer()
    assert "\n" not in str(caught.value)
