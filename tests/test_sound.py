"""What stage one refuses or mends before a pass: no logits, probabilities for them, changing answers; and chance."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from logitbank.pipeline.answers.against_labels import suspicion
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.answers.tail_warnings import tail_warnings
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.sound import LARGEST, ZERO_FLOOR, ask_first, floored, stand_for_logits
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.cache_teacher.teachers.load import TeacherSet
from logitbank.pipeline.cache_teacher.teachers.networks import TeacherNetwork
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.look.card import store_card
from logitbank.pipeline.look.describe import describe_store, format_description
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.train_student.losses import parse_objective
from logitbank.pipeline.train_student.needs import check_needs
from logitbank.pipeline.views import Views
from logitbank.stores import open_store, verify_store
from tests.students import train

N, C = 300, 10
ENCODINGS = {
    "topk": Encoding(kind="topk", num_classes=C, top_k=3),
    "topk-16": Encoding(kind="topk", num_classes=C, top_k=3, bits=16),
    "topk+tail": Encoding(kind="topk+tail", num_classes=C, top_k=3, tail_bits=1),
    "dense-8": Encoding(kind="dense", num_classes=C, bits=8),
    "dense-16": Encoding(kind="dense", num_classes=C, bits=16),
    "dense-32": Encoding(kind="dense", num_classes=C, bits=32),
}


@pytest.fixture(scope="module")
def split() -> Split:
    return load_split(f"digits?limit={N}")


def right_logits(split: Split, seed: int = 0) -> np.ndarray:
    """Logits of a good teacher."""
    logits = np.random.default_rng(seed).normal(size=(len(split), C)).astype(np.float32)
    logits[np.arange(len(split)), split.labels] += 4
    return logits


def array(folder: Path, logits: np.ndarray, split: Split) -> ArrayTeacher:
    np.save(folder / "logits.npy", logits)
    return ArrayTeacher(folder / "logits.npy", split, Views())


class Net(nn.Module):
    def __init__(self, then: nn.Module) -> None:
        super().__init__()
        self.linear, self.then = nn.Linear(64, C), then

    def forward(self, inputs: Tensor) -> Tensor:
        answers: Tensor = self.then(self.linear(inputs.flatten(1)))
        return answers


class Always(nn.Module):
    """Dropout that does not heed eval mode."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(inputs, 0.3)


class Spoilt(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.where(inputs[:, :1] > inputs[:, :1].median(), self.value, inputs)


def network(split: Split, then: nn.Module) -> NetworkTeacher:
    torch.manual_seed(0)
    teacher = TeacherNetwork(
        model=Net(then).eval(),
        preprocessing=Preprocessing(mean=(0.3,), std=(0.3,)),
        identity={"architecture": "net", "weights_sha256": "0"},
    )
    return NetworkTeacher(split, TeacherSet(teachers=(teacher,), seen=np.zeros(N, np.int8)), Views())


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("masked", [-np.inf, -1e9, -2000.0])
def test_a_zero_probability_has_a_floor_that_is_said(
    encoding: Encoding, masked: float, split: Split, tmp_path: Path
) -> None:
    logits = right_logits(split)
    zero = np.random.default_rng(1).random(logits.shape) < 0.4
    zero[np.arange(N), np.where(np.arange(N) % 7, split.labels, (split.labels + 1) % C)] = False
    answers = array(tmp_path, np.where(zero, masked, logits), split)
    summary = cache_teacher(answers, tmp_path / "s.zarr", encoding=encoding)
    assert verify_store(tmp_path / "s.zarr") == []
    store = open_store(tmp_path / "s.zarr")
    fidelity = store.teacher().fidelity
    assert fidelity["zero_floor"] == ZERO_FLOOR
    assert 0.2 < fidelity["zero_share"] < 0.5
    assert "are kept as 1e-06" in summary["warnings"][0]
    assert 0 < summary["nll"] < 4
    stored = StoredAnswers(store)
    decoded = stored.logits(torch.arange(N), 0)
    prob = np.exp(logits - logits.max(1, keepdims=True)) * ~zero
    expected = prob / prob.sum(1, keepdims=True)
    if not encoding.has_tail:
        assert decoded.min() > -40
        np.testing.assert_allclose(decoded.softmax(1).numpy(), expected, atol=0.05)


def test_the_floor_keeps_the_order_of_classes() -> None:
    logits = torch.tensor([[0.0, -30.0, -torch.inf], [0.0, -1.0, -5e3], [1.0, 2.0, 3.0]])
    raised = floored(logits)
    assert raised[0].tolist() == [0.0, -30.0, -30.0]
    assert raised[1, :2].tolist() == [0.0, -1.0]
    assert raised[1, 2] == pytest.approx(float(logits[1, :2].logsumexp(0)) + np.log(ZERO_FLOOR))
    assert floored(logits[2:]) is not logits
    assert torch.equal(floored(logits[2:]), logits[2:])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 2 * LARGEST])
def test_what_is_no_logit_is_refused_before_the_pass(value: float, split: Split, tmp_path: Path) -> None:
    logits = right_logits(split)
    logits[N - 2, 3] = value  # a row that no sample need hold
    answers = array(tmp_path, logits, split)
    with pytest.raises(ValueError, match=f"row {N - 2} of view 0 with a best logit of"):
        cache_teacher(answers, tmp_path / "s.zarr", encoding=ENCODINGS["dense-8"])
    logits[N - 2] = -np.inf
    with pytest.raises(ValueError, match="with nothing but -inf"):
        ask_first(array(tmp_path, logits, split))
    with pytest.raises(ValueError, match="with a best logit of"):
        cache_teacher(network(split, Spoilt(value)), tmp_path / "s.zarr", encoding=ENCODINGS["dense-8"])
    assert not (tmp_path / "s.zarr").exists()


def test_constant_rows_and_large_logits_are_answers(split: Split, tmp_path: Path) -> None:
    for name, encoding in ((name, ENCODINGS[name]) for name in ("topk", "topk+tail", "dense-8")):
        for number, logits in enumerate((np.zeros((N, C)), 1e4 * right_logits(split), right_logits(split) - 9e4)):
            path = tmp_path / f"{name}{number}.zarr"
            cache_teacher(array(tmp_path, logits.astype(np.float32), split), path, encoding=encoding)
            assert verify_store(path) == []


@pytest.mark.parametrize(
    ("then", "reason"),
    [(nn.Softmax(1), "each row adds to 1"), (nn.Sigmoid(), "between 0 and 1")],
    ids=["softmax", "sigmoid"],
)
def test_networks_that_end_in_probabilities_are_refused(then: nn.Module, reason: str, split: Split) -> None:
    with pytest.raises(ValueError, match=f"look like probabilities, expected logits: .*{reason}"):
        ask_first(network(split, then))


def test_probabilities_in_other_clothes_are_noticed(split: Split) -> None:
    logits = torch.from_numpy(right_logits(split))
    prob = logits.softmax(1).numpy()
    top = np.where(prob >= np.sort(prob, 1)[:, -3:-2], prob, 0)
    for values in (prob, prob.astype(np.float16), 100 * prob, top, 100 * top, np.round(prob, 2)):
        assert stand_for_logits(values)
    for values in (
        logits.numpy(),
        logits.log_softmax(1).numpy(),
        np.abs(logits.numpy()),
        np.zeros((9, 9)),
        prob - 0.1,
        5 * np.eye(C)[split.labels],
        logits.numpy() + 500,
        logits.numpy() - logits.numpy().min(1, keepdims=True),
    ):
        assert stand_for_logits(values) == ""


@pytest.mark.parametrize(
    "then", [Always(), nn.BatchNorm1d(C, affine=False, track_running_stats=False)], ids=["dropout", "batch statistics"]
)
def test_answers_that_change_are_refused(then: nn.Module, split: Split) -> None:
    with pytest.raises(ValueError, match="rows differently when it is asked again in another batch"):
        ask_first(network(split, then))
    ask_first(network(split, nn.Identity()))


def test_losses_of_logits_refuse_a_store_of_masked_classes(tmp_path: Path) -> None:
    """Written before there was a floor, or by another program."""
    from tests.test_rows import ENCODINGS, answers, make

    for kind in ("dense-8", "dense-32"):
        for masked in (False, True):
            arrays, labels = answers(ENCODINGS[kind], masked=masked)
            store = open_store(make(tmp_path / f"{kind}{masked}.zarr", arrays, labels, ENCODINGS[kind]))
            stored = StoredAnswers(store)
            check_needs(parse_objective("kd"), store, stored)
            check_needs(parse_objective("sel_corrected", {"scale": "probability"}), store, stored)
            for loss in ("mse", "sel", "sel_corrected", "sel_ortho"):
                if not masked:
                    check_needs(parse_objective(loss), store, stored)
                    continue
                with pytest.raises(ValueError, match="compares logits, but some of those .* are -inf"):
                    check_needs(parse_objective(loss), store, stored)


def test_a_teacher_that_does_not_know_the_labels_is_named(split: Split, tmp_path: Path) -> None:
    logits = np.roll(right_logits(split), 1, axis=0)
    summary = cache_teacher(array(tmp_path, logits, split), tmp_path / "s.zarr", encoding=ENCODINGS["dense-8"])
    assert "no more than luck" in summary["warnings"][0]
    assert "no more than luck" in format_description(describe_store(tmp_path / "s.zarr"))
    assert "no more than luck" in store_card(tmp_path / "s.zarr")
    assert "rows are shifted" in summary["warnings"][0]
    told: list[str] = []
    asked = {"student": "mlp:2", "epochs": 1}
    train(open_store(tmp_path / "s.zarr"), split, None, tmp_path / "run", on_warning=told.append, asked=asked)
    assert any("rows are shifted" in line for line in told)


def test_a_network_that_repeats_its_input_is_named_at_positions() -> None:
    """An untrained one with tied embeddings does, and nobody has shifted anything."""
    tokens = np.random.default_rng(0).integers(0, 25, 3000)
    labels = np.roll(tokens, -1)
    said = suspicion(tokens, labels, 25, at_positions=True)
    assert said is not None
    assert "stood a position earlier: positions are shifted, or an untrained network repeats its input" in said


def test_likely_causes() -> None:
    """A good teacher, and what people do to its answers."""
    rng = np.random.default_rng(0)
    num_rows, num_classes = 3000, 25
    labels = rng.integers(0, num_classes, num_rows)
    best = np.where(rng.random(num_rows) < 0.7, labels, rng.integers(0, num_classes, num_rows))
    as_text = np.argsort(sorted(range(num_classes), key=str))
    swapped = np.arange(num_classes)
    swapped[[3, 7]] = 7, 3
    ranks = np.concatenate([np.arange(rank, num_rows, 4) for rank in range(4)])
    for odd, words in (
        (np.roll(best, 1), "rows are shifted"),
        (np.roll(best, -1), "rows are shifted;"),
        (best[::-1], "reverse order"),
        (best[ranks], "the rows of 4 processes are one after the other"),
        (as_text[best], "sorted as text"),
        ((best + 1) % num_classes, "class numbers were lower by one"),
        (rng.permutation(num_classes)[best], "class ids are permuted"),
        (swapped[best], "3 for 7, 7 for 3"),
        (rng.permutation(best), "rows that are shuffled"),
        (np.zeros_like(best), "no more than luck"),
    ):
        said = suspicion(odd, labels, num_classes)
        assert said is not None
        assert words in said, said
    weak = np.where(rng.random(num_rows) < 0.2, labels, rng.integers(0, num_classes, num_rows))
    confused = np.where((labels == 3) & (rng.random(num_rows) < 0.6), 7, best)
    for honest in (best, weak, confused, np.where(rng.random(num_rows) < 0.5, best, -1)):
        assert suspicion(honest, labels, num_classes) is None
    rare = (np.arange(100) < 2).astype(np.int64)
    few = rng.permutation(np.repeat([0, 1], 15))
    mostly = np.where(np.arange(30) % 5 == 0, 1 - few, few)
    for best_N, labels_N in ((rare, rare), (mostly, few), (rare, np.zeros(100, np.int64))):
        assert suspicion(best_N, labels_N, 2) is None  # few labels are no proof of luck
    assert suspicion(np.zeros(100, np.int64), rare, 2) is not None
    order = np.argsort(labels)
    assert suspicion(best[order], labels[order], num_classes) is None
    assert suspicion(best[:10], np.roll(labels, 1)[:10], num_classes) is None


def test_the_warning_about_the_tail_quotes_the_rule_in_use(tmp_path: Path) -> None:
    from tests.golden.make_decoded import teacher_logits

    logits = teacher_logits(2000, seed=3).numpy()
    np.savez(tmp_path / "d.npz", x=np.arange(2000 * 4, dtype=np.float32).reshape(-1, 4), y=logits.argmax(1))
    split = load_split(f"npz:{tmp_path}/d.npz?classes=12")
    np.save(tmp_path / "logits.npy", logits)
    answers = ArrayTeacher(tmp_path / "logits.npy", split, Views())
    cache_teacher(answers, tmp_path / "s.zarr", encoding=Encoding(kind="topk", num_classes=12, top_k=1))
    store = open_store(tmp_path / "s.zarr")
    fidelity = store.teacher().fidelity
    assert fidelity["uniform_4"] > 1.2 * fidelity["4"]
    for tail, words in (
        ("predicted", f"rule 'predicted' is {fidelity['4']:.2g};"),
        ("uniform", f"rule 'uniform' is {fidelity['uniform_4']:.2g};"),
        ("bucket", "has no KL of its own"),
    ):
        (line,) = tail_warnings(StoredAnswers(store, tail=tail), 4.0)
        assert words in line
    (line,) = tail_warnings(StoredAnswers(store), 7.0)
    assert "was not measured at this temperature" in line


def test_few_rows_and_many_classes_have_no_predictor(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60) * 500
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(60, 4)).astype(np.float32), y=labels)
    split = load_split(f"npz:{tmp_path}/d.npz?classes=1001")
    np.save(tmp_path / "l.npy", (2 * rng.normal(size=(60, 1001)) + 8 * np.eye(1001)[labels]).astype(np.float32))
    answers = ArrayTeacher(tmp_path / "l.npy", split, Views())
    cache_teacher(answers, tmp_path / "s.zarr", encoding=Encoding(kind="topk", num_classes=1001, top_k=10))
    assert open_store(tmp_path / "s.zarr").teacher().constant_names == ()
    assert verify_store(tmp_path / "s.zarr") == []
