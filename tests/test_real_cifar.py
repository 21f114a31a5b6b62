"""A real trained teacher on the real CIFAR-10 images, through the store and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.realdata import cifar_root, needs_cifar, weights
from tests.students import train as train_on

pytestmark = needs_cifar(20)

SCALING = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
ENCODINGS = {
    "dense": Encoding(kind="dense", num_classes=10, bits=8),
    "topk": Encoding(kind="topk", num_classes=10, top_k=3),
}


@pytest.fixture(scope="module", autouse=True)
def two_threads() -> Iterator[None]:
    """Convolutions on real images are worth two threads."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published files, byte for byte."""
    return cifar_root(tmp_path_factory.mktemp("cifar"))


def stored_accuracy(split: Split, path: Path) -> float:
    """Accuracy of the answers in a store, in percent, from the store alone."""
    store = open_store(path)
    answers = StoredAnswers(store)
    rows = torch.arange(store.num_examples)
    return 100 * float((answers.logits(rows, 0).argmax(dim=1) == torch.from_numpy(split.labels)).double().mean())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_published_accuracy_comes_out_of_the_store(root: Path, tmp_path: Path, encoding: str) -> None:
    """ResNet-20: 91.73 % on the 10,000 test images."""
    split = load_split(f"torchvision:CIFAR10?root={root}&split=test")
    teachers = load_teachers(split, "resnet20", weights(20), preprocessing=SCALING)
    cache_teacher(NetworkTeacher(split, teachers, Views()), tmp_path / "s.zarr", encoding=ENCODINGS[encoding])
    assert stored_accuracy(split, tmp_path / "s.zarr") == pytest.approx(91.73, abs=0.1)


@pytest.mark.slow
@needs_cifar(32, 44, 56)
@pytest.mark.parametrize(("depth", "accuracy"), [(32, 92.63), (44, 93.10), (56, 93.39)])
def test_the_deeper_teachers_too(root: Path, tmp_path: Path, depth: int, accuracy: float) -> None:
    split = load_split(f"torchvision:CIFAR10?root={root}&split=test")
    teachers = load_teachers(split, f"resnet{depth}", weights(depth), preprocessing=SCALING)
    cache_teacher(NetworkTeacher(split, teachers, Views()), tmp_path / "s.zarr", encoding=ENCODINGS["dense"])
    assert stored_accuracy(split, tmp_path / "s.zarr") == pytest.approx(accuracy, abs=0.1)


def test_a_student_learns_from_the_real_teacher(root: Path, tmp_path: Path) -> None:
    """2,000 images, two views, a small convolutional student: far above chance, so rows and answers belong together."""
    train = load_split(f"torchvision:CIFAR10?root={root}&split=train")
    test = load_split(f"torchvision:CIFAR10?root={root}&split=test")
    np.savez(
        tmp_path / "few.npz",
        x=train.samples[:2000],
        y=train.labels[:2000],
        x_test=test.samples[:1000],
        y_test=test.labels[:1000],
    )
    split, held_out = load_split(f"npz:{tmp_path}/few.npz"), load_split(f"npz:{tmp_path}/few.npz?split=test")
    teachers = load_teachers(split, "resnet20", weights(20), preprocessing=SCALING)
    answers = NetworkTeacher(split, teachers, Views(transform="flip-crop", num_views=2))
    summary = cache_teacher(answers, tmp_path / "s.zarr", encoding=ENCODINGS["dense"])
    assert summary["accuracy"] > 0.97  # it was trained on these images
    result = train_on(open_store(tmp_path / "s.zarr"), split, held_out, tmp_path / "run", student="cnn", epochs=6)
    assert result["accuracy"] > 0.25
