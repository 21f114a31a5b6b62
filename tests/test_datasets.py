"""Data sources: real digits, torchvision's folders, .npz files, content keys and fingerprints."""

from pathlib import Path

import numpy as np
import pytest

from logitbank.pipeline.datasets import SOURCES, Split, load_split, shuffled_rows, with_split
from logitbank.pipeline.datasets.split import content_keys, order_fingerprint, set_fingerprint


def test_digits_are_split_once_and_for_all(digits: Split, digits_test: Split) -> None:
    assert digits.samples.shape == (1437, 8, 8, 1)
    assert digits_test.samples.shape == (360, 8, 8, 1)
    assert digits.samples.dtype == np.uint8
    assert digits.fingerprint == "b6f0fe73" + digits.fingerprint[8:]
    for split in (digits, digits_test):
        counts = np.bincount(split.labels)
        assert counts.max() - counts.min() <= 10


def test_digits_are_the_scans_of_scikit_learn(digits: Split, digits_test: Split) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    ours = np.concatenate([digits.samples, digits_test.samples])[..., 0] / 15
    assert sorted(map(bytes, ours.astype(np.uint8))) == sorted(map(bytes, bunch.images.astype(np.uint8)))


def test_keys_follow_the_example_not_its_place(digits: Split) -> None:
    order = np.random.default_rng(0).permutation(len(digits))
    assert (content_keys(digits.samples[order]) == digits.keys[order]).all()


def test_keys_depend_on_shape_and_dtype() -> None:
    rows = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    keys = {int(content_keys(x)[0]) for x in (rows, rows.reshape(1, 4, 16, 1), rows.view(np.int8))}
    assert len(keys) == 3


def test_fingerprints_see_order_and_labels(digits: Split) -> None:
    order = np.random.default_rng(0).permutation(len(digits))
    assert order_fingerprint(digits.keys[order], digits.labels[order]) != digits.fingerprint
    shuffled = set_fingerprint(digits.keys[order], digits.labels[order])
    assert shuffled == set_fingerprint(digits.keys, digits.labels)
    labels = digits.labels.copy()
    labels[7] = (labels[7] + 1) % 10
    assert order_fingerprint(digits.keys, labels) != digits.fingerprint
    assert set_fingerprint(digits.keys, labels) != shuffled


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 8, 8, 3)])
def test_npz_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(6), x_test=x[:2], y_test=np.array([7, -1]))
    train, test = load_split(f"npz:{tmp_path}/a.npz"), load_split(f"npz:{tmp_path}/a.npz?split=test")
    assert train.input_shape == (8, 8, 1 if len(shape) == 3 else 3)
    assert (train.num_classes, test.num_classes) == (8, 8)
    assert len(test) == 2


def test_npz_table(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 3))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(6) % 2)
    split = load_split(f"npz:{tmp_path}/a.npz?classes=4")
    assert split.samples.dtype == np.float32
    assert (split.num_classes, split.is_image) == (4, False)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 2))}, "array 'y' is missing"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(2, int)}, "3 examples but 2 labels"),
        ({"x": np.zeros((3, 2)), "y": np.full(3, 0.5)}, "0.5 is a measurement, not a class"),
        ({"x": np.full((3, 2), np.nan), "y": np.zeros(3, int)}, "3 rows hold NaN"),
        ({"x": np.zeros((3, 4, 4)), "y": np.zeros(3, int)}, "expected uint8 images"),
        ({"x": np.zeros((0, 4)), "y": np.zeros(0, int)}, "no examples"),
        ({"x": np.zeros((3, 4)), "y": np.array([0, 1, -2])}, "labels run from -2"),
    ],
)
def test_npz_faults_are_one_line(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", allow_pickle=False, **arrays)
    with pytest.raises(ValueError, match=message):
        load_split(f"npz:{tmp_path}/a.npz")


def test_npz_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", allow_pickle=True, x=np.array([{}, {}], dtype=object), y=np.zeros(2, int))
    with pytest.raises(ValueError, match="array 'x' holds Python objects, which are never unpickled"):
        load_split(f"npz:{tmp_path}/a.npz")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("digits?split=val", "no split 'val'"),
        ("digits?folder=x", "unknown option 'folder'"),
        ("digits:train", "not of the form"),
        ("npz", "not of the form"),
        ("npz:nowhere.npz", "no such file"),
        ("torchvision:CIFAR11", "did you mean 'CIFAR10'"),
        ("torchvision:CIFAR10?root=nowhere", "not found in .*nowhere"),
        ("torchvision:MNIST?root=nowhere&split=test", "not found in .*nowhere"),
    ],
)
def test_a_bad_spec_says_what_to_write(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_split(spec)
    assert "\n" not in str(caught.value)


def test_another_split_of_the_same_data() -> None:
    assert with_split("digits", "test") == "digits?split=test"
    assert with_split("npz:a.npz?split=train&classes=3", "test") == "npz:a.npz?split=test&classes=3"


def test_every_source_has_an_example_of_its_form() -> None:
    for kind, source in SOURCES.items():
        assert source.example.startswith(kind)
        assert (":" in source.example) == source.takes_name


def test_a_shuffled_order_is_the_same_everywhere(digits: Split) -> None:
    shuffled = load_split("digits?shuffle=3")
    assert sorted(shuffled.keys.tolist()) == sorted(digits.keys.tolist())
    assert (shuffled.keys != digits.keys).mean() > 0.9
    rows = shuffled_rows(len(digits), 3)
    assert (shuffled.labels == digits.labels[rows]).all()
    assert (shuffled.samples == digits.samples[rows]).all()
    assert shuffled_rows(6, 0).tolist() == [2, 0, 4, 3, 1, 5]  # frozen: stores are written in this order
    assert load_split(shuffled.spec).fingerprint == shuffled.fingerprint
    few = load_split("digits?shuffle=3&limit=10")
    assert len(few) == 10
    assert load_split(few.spec).fingerprint == few.fingerprint
    with pytest.raises(ValueError, match="shuffle is 'x'; expected a seed"):
        load_split("digits?shuffle=x")


def test_npz_labels_at_positions(tmp_path: Path) -> None:
    y = np.random.default_rng(0).integers(0, 5, (6, 7))
    x = np.arange(12.0).reshape(6, 2)
    length = np.array([7, 3, 0, 1, 6, 7])
    np.savez(tmp_path / "a.npz", x=x, y=y, x_test=x, y_test=y, length_test=length)
    whole = load_split(f"npz:{tmp_path}/a.npz?positions=7")
    assert whole.positions == 7
    assert len(whole) == 6
    assert whole.readable is None
    assert (whole.labels == y).all()
    assert whole.describe()["num_positions"] == 7
    few = load_split(f"npz:{tmp_path}/a.npz?positions=7&limit=2")
    assert (few.labels == y[[0, 3]]).all()
    ragged = load_split(f"npz:{tmp_path}/a.npz?split=test&positions=7")
    assert ragged.readable is not None
    assert (ragged.readable.sum(axis=1) == length).all()
    assert (ragged.labels == np.where(ragged.readable, y, -1)).all()
    assert "num_positions" not in load_split("digits").describe()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros((6, 8), np.int64)}, r"expected whole numbers \[N, 7\]"),
        ({"y": np.zeros((6, 7))}, r"expected whole numbers \[N, 7\]"),
        ({"y": np.zeros(6, np.int64)}, r"expected whole numbers \[N, 7\]"),
        ({"length": np.full(6, 8)}, "expected 0 to 7 a row"),
        ({"length": np.zeros(5, np.int64)}, "expected 0 to 7 a row"),
    ],
)
def test_labels_that_are_not_of_positions_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "a.npz", **{"x": np.zeros((6, 2)), "y": np.eye(6, 7, dtype=np.int64), **arrays})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        load_split(f"npz:{tmp_path}/a.npz?positions=7")


def test_fingerprints_of_labels_at_positions_see_order_and_labels() -> None:
    keys, labels = np.array([3, 1, 3, 2], np.uint64), np.array([[0, 1], [2, 3], [1, 0], [0, 0]])
    order = np.array([2, 0, 3, 1])
    assert set_fingerprint(keys[order], labels[order]) == set_fingerprint(keys, labels)
    assert order_fingerprint(keys[order], labels[order]) != order_fingerprint(keys, labels)
    assert set_fingerprint(keys, labels[:, ::-1]) != set_fingerprint(keys, labels)


def test_few_labels_are_the_same_everywhere_and_even_over_the_classes(digits: Split) -> None:
    few = load_split("digits?labelled=203")
    shown = few.labels >= 0
    assert shown.sum() == 203
    assert (few.labels[shown] == digits.labels[shown]).all()
    assert np.ptp(np.bincount(few.labels[shown])) == 1
    assert (few.keys == digits.keys).all()
    assert load_split(few.spec).fingerprint == few.fingerprint
    more = load_split("digits?labelled=300")
    assert (more.labels[shown] == few.labels[shown]).all()  # fewer are part of more
    frozen = [15, 170, 196, 207, 565, 697, 1047]
    assert np.flatnonzero(load_split("digits?labelled=7").labels >= 0).tolist() == frozen


@pytest.mark.parametrize("options", ["labelled=203&limit=100", "limit=100&labelled=203", "shuffle=3&labelled=203"])
def test_labels_are_hidden_of_the_whole_split_before_rows_are_chosen(options: str, digits: Split) -> None:
    chosen = load_split(f"digits?{options}")
    label = dict(zip(digits.keys.tolist(), load_split("digits?labelled=203").labels.tolist(), strict=True))
    assert [label[key] for key in chosen.keys.tolist()] == chosen.labels.tolist()
    assert load_split(chosen.spec).fingerprint == chosen.fingerprint


def test_more_labels_than_there_are(digits: Split) -> None:
    with pytest.raises(ValueError, match=r"labelled=2000, but only 1437 examples have a label; ask for fewer"):
        load_split("digits?labelled=2000")
    with pytest.raises(ValueError, match="labelled is '0'; expected a number of examples"):
        load_split("digits?labelled=0")
    assert (load_split(with_split("digits?labelled=9", "test")).labels >= 0).all()
