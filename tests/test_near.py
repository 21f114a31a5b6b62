"""Teachers that are asked near their own data alone, as the clients of EdgeFD, and a student of several of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.cache_teacher.near import is_near
from logitbank.pipeline.cache_teacher.opening import open_teacher
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.settings import Caching, Folding, Nearness
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.stores import open_store
from tests.students import train

DENSE = Encoding(kind="dense", num_classes=10, bits=32)


@pytest.fixture(scope="module")
def clients(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two clients with half of the classes each, and none of the examples that are shared."""
    folder = tmp_path_factory.mktemp("clients")
    samples, labels = np.asarray(digits.samples), digits.labels
    found = {"shared": f"npz:{folder / 'shared.npz'}"}
    np.savez(folder / "shared.npz", x=samples[::2], y=labels[::2])
    for name, own in (("low", labels[1::2] < 5), ("high", labels[1::2] >= 5)):
        np.savez(folder / f"{name}.npz", x=samples[1::2][own], y=labels[1::2][own])
        found[name] = f"npz:{folder / f'{name}.npz'}?classes=10"
    ends = np.stack([np.zeros_like(samples[0]), np.full_like(samples[0], 255)])  # nothing is farther from their mean
    np.savez(folder / "ends.npz", x=ends, y=np.zeros(2, np.int64))
    noise = np.random.default_rng(0).integers(0, 256, (40, *samples.shape[1:]), np.uint8)
    np.savez(folder / "noise.npz", x=noise, y=np.zeros(40, np.int64))
    np.savez(folder / "large.npz", x=np.zeros((2, 16, 16, 1), np.uint8), y=np.arange(2))
    return found | {name: f"npz:{folder / name}.npz" for name in ("ends", "large", "noise")}


def caching(clients: dict[str, str], client: str, *, folding: Folding | None = None, **nearness: float) -> Caching:
    return Caching(
        data=clients["shared"],
        teacher="linear",
        weights="random-init",
        name=client,
        nearness=Nearness(near=clients[client], **nearness),  # type: ignore[arg-type]
        folding=folding or Folding(),
    )


def test_what_is_near_is_what_a_loop_finds(digits: Split) -> None:
    """One centre a class is the mean of the class; the radius is a quantile of the own rows' distances."""
    own, few = (
        replace(digits, samples=np.asarray(digits.samples)[rows], labels=digits.labels[rows])
        for rows in (np.flatnonzero(digits.labels[:600] < 3), np.arange(600, 700))
    )
    pixels = np.asarray(own.samples, np.float64).reshape(len(own), -1) / 255
    mean, std = pixels.mean(), pixels.std()
    centres = [(pixels[own.labels == label].mean(0) - mean) / std for label in range(3)]

    def distance(image: np.ndarray) -> float:
        return float(min(np.linalg.norm((image.ravel() / 255 - mean) / std - centre) for centre in centres))

    radius = np.quantile([distance(image) for image in np.asarray(own.samples, np.float64)], 0.8)
    expected = [distance(image) <= radius for image in np.asarray(few.samples, np.float64)]
    assert is_near(few, own, share=0.8, clusters=1).tolist() == expected
    assert 0 < sum(expected) < 100
    assert is_near(own, own, share=0.8, clusters=1).mean() == pytest.approx(0.8, abs=0.01)


def test_a_student_hears_each_client_where_it_knows_something(
    clients: dict[str, str], digits_test: Split, tmp_path: Path
) -> None:
    for client in ("low", "high"):
        teacher, _ = open_teacher(caching(clients, client))
        cache_teacher(teacher, tmp_path / "s.zarr", encoding=DENSE, name=client)
        again, _ = open_teacher(caching(clients, client))
        before = open_store(tmp_path / "s.zarr").teacher(client).digest
        cache_teacher(again, tmp_path / "s.zarr", encoding=DENSE, name=client)  # it is there, and is the same
        assert open_store(tmp_path / "s.zarr").teacher(client).digest == before
    store = open_store(tmp_path / "s.zarr")
    low_N, high_N = (open_answers(store, teacher=client).served(0) for client in ("low", "high"))
    own_N = np.asarray(store.labels) < 5
    assert low_N[own_N].mean() > 0.7 > 0.4 > low_N[~own_N].mean()
    assert high_N[~own_N].mean() > 0.7 > 0.4 > high_N[own_N].mean()
    assert store.teacher("low").identity["near"]["share"] == 0.9
    together = open_answers(store, teacher="low,high", combine="mean-logit")
    assert (together.served(0) == (low_N | high_N)).all()
    result = train(store, teacher.split, digits_test, tmp_path / "r", teacher="low,high", loss="soft_ce", epochs=1)
    assert result["against_teacher"]["num_rows"] == (low_N | high_N).sum()


def test_rows_without_an_answer_are_told(clients: dict[str, str], tmp_path: Path) -> None:
    asked = caching(clients, "low")
    teacher, _ = open_teacher(asked)
    split, told = teacher.split, list[str]()
    summary = cache_teacher(teacher, tmp_path / "s.zarr", encoding=DENSE)
    store = open_store(tmp_path / "s.zarr")
    served_N = store.teacher().slab(0, ["mask"])["mask"]
    missing = int((~served_N).sum())
    assert 0 < missing < len(split)
    assert summary["warnings"][0].startswith(f"{missing} of the {len(split)} rows have no answer")
    train(store, split, None, tmp_path / "r", loss="soft_ce", epochs=1, on_warning=told.append)
    assert f"{missing} of the {len(split)} training rows have no answer: such a row gets no gradient" in told


def test_another_filter_is_another_teacher(clients: dict[str, str], tmp_path: Path) -> None:
    for share in (0.9, 0.5):
        teacher, _ = open_teacher(caching(clients, "low", near_share=share))
        if share == 0.9:
            cache_teacher(teacher, tmp_path / "s.zarr", encoding=DENSE)
    with pytest.raises(ValueError, match="identity"):
        cache_teacher(teacher, tmp_path / "s.zarr", encoding=DENSE)


def test_centres_of_a_class_are_at_most_its_rows(clients: dict[str, str]) -> None:
    """With a centre at each own row nothing else is near."""
    low, shared = load_split(clients["low"]), load_split(clients["shared"])
    assert not is_near(shared, low, share=0.9, clusters=10_000).any()
    few, more = (is_near(shared, low, share=0.9, clusters=number) for number in (1, 3))
    assert (few != more).sum() > 0


@pytest.mark.parametrize(
    ("near", "share", "message"),
    [
        ("{ends}", 0.9, "719 of the 719 examples are near these data, so it does nothing"),
        ("{noise}", 0.9, "0 of the 719 examples .* is it the data that the teacher was trained on"),
        ("{large}", 0.9, "has inputs"),
    ],
)
def test_a_filter_that_does_nothing_is_refused(clients: dict[str, str], near: str, share: float, message: str) -> None:
    asked = replace(caching(clients, "low"), nearness=Nearness(near=near.format(**clients), near_share=share))
    with pytest.raises(ValueError, match=message):
        open_teacher(asked)


def test_options_of_no_filter_are_refused() -> None:
    with pytest.raises(ValueError, match="--near-share does nothing here, because --near is not given"):
        Nearness(near_share=0.5)
