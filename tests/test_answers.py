"""What an answer says of itself: where it says that the classes above the label are known, they are the teacher's."""

import numpy as np
import pytest
import torch
from torch import Tensor

from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.train_student.losses import ExactAnswer, Step, parse_objective
from logitbank.pipeline.train_student.needs import check_needs
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store

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
        answers = ArrayTeacher(folder / f"{name}.npy", digits, Views())
        cache_teacher(
            answers, folder / "s.zarr", name=name, encoding=Encoding(kind="topk", num_classes=10, top_k=5, bits=16)
        )
    return open_store(folder / "s.zarr")


@pytest.mark.parametrize("tail", ["predicted", "bucket", "uniform", "renormalise"])
@pytest.mark.parametrize(("teacher", "combine"), [("a", "mean-prob"), ("a,b", "mean-prob"), ("a,b", "mean-logit")])
def test_a_known_order_is_the_teachers(
    store: Store, digits: Split, logits: dict[str, Tensor], tail: str, teacher: str, combine: str
) -> None:
    """Of a bucket tail, which rises where the student's does, and of teachers that store different classes."""
    rows, labels_N1 = torch.arange(len(digits)), torch.from_numpy(digits.labels)[:, None]
    student = 3 * torch.randn(len(digits), 10, generator=torch.Generator().manual_seed(1))
    answer = open_answers(store, teacher=teacher, tail=tail, combine=combine).of(rows, 0)
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


@pytest.mark.parametrize(
    ("loss", "settings", "tail", "message"),
    [
        ("mse", {}, "predicted", "every class's logit"),
        ("kd", {"row_weight": "label_noise"}, "predicted", "out-of-fold answers|did not see the row"),
        ("swap", {}, "bucket", "do not follow the student: any --tail but bucket"),
        ("lr", {}, "bucket", "every class's logit"),
        ("kd", {"temperature_rule": "difficulty"}, "bucket", "do not follow the student"),
        ("rld", {"same_t": "0", "alpha_temperature": "2"}, "bucket", "do not follow the student"),
    ],
)
def test_what_an_answer_lacks_is_refused_in_every_loop(
    store: Store, loss: str, settings: dict[str, str], tail: str, message: str
) -> None:
    """Before the first step of the program's own training, and at the first of another."""
    objective, answers = parse_objective(loss, settings), open_answers(store, teacher="a", tail=tail)
    with pytest.raises(ValueError, match=message):
        check_needs(objective, store, answers)
    rows, step = torch.arange(4), Step(step=0, steps_per_epoch=1, num_epochs=1)
    with pytest.raises(ValueError, match=message):
        objective(torch.zeros(4, 10), answers.of(rows, 0), rows, step)


def test_a_row_weight_reads_the_teacher_at_temperature_1(
    store: Store, digits: Split, logits: dict[str, Tensor]
) -> None:
    """The mass of a bucket tail is exact at one temperature, and weights are about probabilities."""
    rows, step = torch.arange(200), Step(step=0, steps_per_epoch=1, num_epochs=1)
    student, labels_B = torch.randn(200, 10, generator=torch.Generator().manual_seed(1)), torch.arange(200) % 10
    settings = {"temperature": "4", "row_weight": "confidence", "row_weight_mean_one": "0"}
    plain, weighted = (parse_objective("kd:1", chosen) for chosen in ({"temperature": "4"}, settings))
    answer = open_answers(store, teacher="a", tail="bucket").of(rows, 0)
    weights = weighted(student, answer, labels_B, step) / plain(student, answer, labels_B, step)
    torch.testing.assert_close(weights, logits["a"][rows].softmax(1).amax(1), rtol=2e-3, atol=1e-4)


def test_a_step_is_of_the_run_and_logits_are_no_answer(digits: Split) -> None:
    step = Step(step=7, steps_per_epoch=5, num_epochs=2)
    assert (step.epoch, step.num_steps, step.progress) == (2, 10, 7 / 9)
    assert Step(step=0, steps_per_epoch=1, num_epochs=1).progress == 0.0
    for wrong in (-1, 10):
        with pytest.raises(ValueError, match=f"step is {wrong}; expected 0 to 9, counted over the whole run"):
            Step(step=wrong, steps_per_epoch=5, num_epochs=2)
    flat = torch.zeros(2, 10)
    with pytest.raises(TypeError, match=r"found a tensor: pass answers.of\(rows, view\)"):
        parse_objective("kd")(flat, flat, torch.zeros(2).long(), step)  # type: ignore[arg-type]
    noise = parse_objective("kd", {"row_weight": "label_noise"})
    noise(flat, ExactAnswer(flat, out_of_fold=True), torch.zeros(2).long(), step)
