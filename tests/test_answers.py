"""What an answer says of itself: where it says that the classes above the label are known, they are the teacher's."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.cache_teacher.answers import ArrayAnswers
from pipeline.cache_teacher.run import cache_teacher
from pipeline.datasets import Split
from pipeline.encoding import Encoding
from pipeline.train_student.ensemble import open_signal
from pipeline.views import Views
from stores import Store, open_store

TEMPERATURE = 4.0


@pytest.fixture(scope="module")
def logits(digits: Split) -> dict[str, Tensor]:
    """Two teachers that see most labels among their best five and agree on about half of the classes."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(len(digits), 10, generator=generator)
    shared[torch.arange(len(digits)), torch.from_numpy(digits.labels)] += 1
    return {name: 2 * (shared + torch.randn(len(digits), 10, generator=generator)) for name in "ab"}


@pytest.fixture(scope="module")
def store(digits: Split, logits: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("order")
    for name, of_teacher in logits.items():
        np.save(folder / f"{name}.npy", of_teacher.numpy())
        answers = ArrayAnswers(folder / f"{name}.npy", digits, Views())
        cache_teacher(
            answers, folder / "s.zarr", name=name, encoding=Encoding(kind="topk", num_classes=10, top_k=5, bits=16)
        )
    return open_store(folder / "s.zarr")


@pytest.mark.parametrize("tail", ["predicted", "bucket", "uniform", "renormalise"])
@pytest.mark.parametrize("teacher", ["a", "a,b"])
@pytest.mark.parametrize("combine", ["mean-prob", "mean-logit"])
def test_a_known_order_is_the_teachers(
    store: Store, digits: Split, logits: dict[str, Tensor], tail: str, teacher: str, combine: str
) -> None:
    """Of a bucket tail, which rises where the student's does, and of teachers that store different classes."""
    rows, labels_N1 = torch.arange(len(digits)), torch.from_numpy(digits.labels)[:, None]
    student = 3 * torch.randn(len(digits), 10, generator=torch.Generator().manual_seed(1))
    answer = open_signal(store, teacher=teacher, tail=tail, combine=combine).answer(rows, 0)
    truth = torch.stack([logits[name] for name in teacher.split(",")])
    truth = truth.mean(dim=0) if combine == "mean-logit" else truth.softmax(dim=2).mean(dim=0).log()
    decoded = answer.logits(student, TEMPERATURE)
    above, expected = (values >= values.gather(1, labels_N1) for values in (decoded, truth))
    known = answer.order_known(student, TEMPERATURE)
    assert known is not None
    assert (above[known] == expected[known]).all()
    exact = teacher == "a" or combine == "mean-logit" or tail in ("predicted", "uniform")
    assert known.float().mean() > 0.2 if exact else not known.any()
    in_heads = torch.stack([logits[name].topk(5).indices.eq(labels_N1).any(dim=1) for name in teacher.split(",")])
    if tail == "bucket" or teacher == "a,b":  # the label's place in the head is not enough
        assert (above != expected).any(dim=1)[in_heads.all(dim=0)].any()
    else:
        assert torch.equal(known, in_heads[0])
