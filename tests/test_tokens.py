"""Packed tokens as data, the small causal transformer, and a teacher and measures over positions."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.build import build_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.datasets import Split, load_split, with_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.fit.predict import predict
from logitbank.pipeline.metrics import measure, measure_agreement
from logitbank.pipeline.models import build_model, settle_fresh, spell_model
from logitbank.pipeline.models.preprocessing import AS_THEY_ARE
from logitbank.pipeline.models.signature import Signature
from logitbank.pipeline.models.weights import load_weights, save_weights
from logitbank.pipeline.train_student import over_positions
from logitbank.pipeline.train_student.evaluate import cut_validation
from logitbank.pipeline.train_student.over_positions import MEASURES, measure_labelled
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.realdata import DATA, needs

LENGTH, VOCABULARY = 8, 12


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """40 sequences and a few tokens more of a language in which each token is the last but one plus one, mostly."""
    rng = np.random.default_rng(0)
    ids = [0, 5]
    for _ in range(40 * LENGTH + 3):
        ids.append((ids[-2] + 1) % VOCABULARY if rng.random() < 0.9 else int(rng.integers(VOCABULARY)))
    np.array(ids, "<u2").tofile(tmp_path / "train.bin")
    np.save(tmp_path / "test.npy", np.array(ids[100 : 100 + 10 * LENGTH], np.uint16))
    return f"tokens:{tmp_path}/train.bin?length={LENGTH}&test={tmp_path}/test.npy"


def test_a_label_is_the_token_that_follows(spec: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = np.fromfile(tmp_path / "train.bin", "<u2").astype(np.int64)
    split = load_split(spec)
    assert (split.positions, split.num_classes, len(split), split.holds) == (LENGTH, VOCABULARY, 40, "tokens")
    assert split.samples[:].ravel().tolist() == ids[: 40 * LENGTH].tolist()
    assert split.labels.ravel().tolist() == ids[1 : 40 * LENGTH + 1].tolist()
    assert "the last 4 of 325 tokens are no whole sequence" in caplog.text
    test = load_split(with_split(spec, "test"))
    assert test.labels[-1, -1] == -1  # the file ends
    assert (test.labels.ravel()[:-1] == test.samples[:].ravel()[1:]).all()
    assert (split.samples[3] == split.samples[:][3]).all()


def test_keys_are_of_the_ids_whatever_file_has_them(spec: str, tmp_path: Path) -> None:
    ids = np.fromfile(tmp_path / "train.bin", "<u2")
    ids.astype("<u4").tofile(tmp_path / "wide.bin")
    np.save(tmp_path / "wide.npy", ids.astype(">i8"))
    plain = load_split(spec)
    for other in (f"tokens:{tmp_path}/wide.bin?length=8&dtype=uint32", f"tokens:{tmp_path}/wide.npy?length=8"):
        split = load_split(other)
        assert (split.keys == plain.keys).all()
        assert split.fingerprint == plain.fingerprint
        assert split.key_space == plain.key_space
    few = load_split(f"{spec}&shuffle=3&limit=5")
    assert set(few.keys.tolist()) < set(plain.keys.tolist())
    assert load_split(f"tokens:{tmp_path}/wide.npy?length=4").key_space != plain.key_space


FAULTS: dict[str, tuple[Any, str]] = {
    "odd.bin": (b"\0" * 33, "33 bytes, which are no uint16 ids"),
    "empty.bin": (b"", "0 bytes"),
    "short.bin": (b"\0" * 6, "3 tokens are no sequence of 8"),
    "llm.bin": (np.array([20240520, *[0] * 300], "<i4").tobytes(), "header of llm.c"),
    "wide.bin": (np.arange(64, dtype="<u4").tobytes(), "every second id of .* uint16; .*: say dtype=uint32"),
    "flat.npy": (np.zeros((4, 8), np.int64), r"int64 \[4, 8\]; expected integers \[T\]"),
    "real.npy": (np.zeros(64), r"float64 \[64\]; expected integers"),
    "below.npy": (np.full(64, -1), "-1 is no token id"),
    "huge.npy": (np.full(64, 2**40), "1099511627776 is no token id"),
    "damaged.npy": (
        b"\x93NUMPY\x01\x00v\x00{'descr': '<u2', 'fortran_order': False, 'shape': (999999999999,), }",
        "no readable",
    ),
    "ids.txt": (b"1 2 3", "expected a .bin of raw ids or a .npy"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_files_that_are_no_tokens_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = FAULTS[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.save(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        load_split(f"tokens:{tmp_path}/{name}?length=8")
    assert "\n" not in str(caught.value)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}] * 64, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="no readable .npy file"):
        load_split(f"tokens:{tmp_path}/o.npy?length=8")


def test_a_vocabulary_is_that_of_both_files(spec: str, tmp_path: Path) -> None:
    np.full(64, 77, "<u2").tofile(tmp_path / "other.bin")
    with pytest.raises(ValueError, match="classes is '20'; expected .* the largest id is 77"):
        load_split(f"tokens:{tmp_path}/train.bin?length=8&test={tmp_path}/other.bin&classes=20")
    assert load_split(f"tokens:{tmp_path}/train.bin?length=8&test={tmp_path}/other.bin").num_classes == 78


def test_no_position_sees_what_follows(spec: str) -> None:
    split = load_split(spec)
    torch.manual_seed(0)
    model = build_model("gpt:24x2", split)
    tokens_BL = torch.from_numpy(split.samples[:4])
    changed_BL = tokens_BL.clone()
    changed_BL[:, 5:] = 0
    for trained in (True, False):
        with torch.set_grad_enabled(trained):
            before, after = model.train(trained)(tokens_BL), model.train(trained)(changed_BL)
        assert before.shape == (4, LENGTH, VOCABULARY)
        torch.testing.assert_close(before[:, :5], after[:, :5])
        assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3
        torch.testing.assert_close(model(tokens_BL[:, :3]), before[:, :3])
    assert spell_model("gpt:128x2") == "gpt"


def test_models_of_other_samples_are_refused(spec: str, digits: Split) -> None:
    with pytest.raises(ValueError, match="model 'mlp' needs images, but .* holds tokens; use gpt:WIDTHxDEPTH"):
        build_model("mlp", load_split(spec))
    with pytest.raises(ValueError, match="model 'gpt:8x1' needs tokens, but digits.* holds images; use cnn"):
        build_model("gpt:8x1", digits)
    with pytest.raises(ValueError, match="do nothing here, because .* holds tokens"):
        settle_fresh("gpt", load_split(spec), AS_THEY_ARE)


def test_a_teacher_learns_and_answers_at_every_position(spec: str, tmp_path: Path) -> None:
    split, test = load_split(spec), load_split(with_split(spec, "test"))
    training = Training(epochs=12, optimizer="adamw", lr=0.01, weight_decay=0.0, batch_size=8)
    train_teachers(split, "gpt:24x2", training, tmp_path / "teacher")
    (teacher,) = load_teachers(split, "gpt:24x2", str(tmp_path / "teacher")).teachers
    assert teacher.preprocessing == AS_THEY_ARE
    logits_NLC = predict(teacher.model, test, preprocessing=teacher.preprocessing)
    assert logits_NLC.shape == (10, LENGTH, VOCABULARY)
    labelled = test.labels >= 0
    accuracy = (logits_NLC.argmax(2).numpy() == test.labels)[labelled][8:].mean()
    assert accuracy > 0.6


def asked(logits_NLC: Tensor) -> Any:
    def ask(model: object, split: Split, *, rows: Any = None, views: object = None) -> Tensor:
        chosen = np.arange(len(split)) if rows is None else rows
        return logits_NLC[torch.from_numpy(chosen)]

    return ask


def test_measures_of_parts_are_those_of_the_whole(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    test = load_split(with_split(spec, "test"))
    logits_NLC = torch.randn(len(test), LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(over_positions, "HELD_BYTES", 3 * 4 * LENGTH * VOCABULARY)
    monkeypatch.setattr(over_positions, "_AT_ONCE", 5 * VOCABULARY)
    found, bins = measure_labelled(asked(logits_NLC), torch.nn.Identity(), test, None)
    labels_P = torch.from_numpy(test.labels).flatten()
    own = labels_P >= 0
    want = measure(logits_NLC.flatten(0, 1)[own], labels_P[own], MEASURES)
    assert found.pop("perplexity") == pytest.approx(math.exp(want["nll"]))
    assert found == pytest.approx(want)
    assert sum(each.count for each in bins) == int(own.sum())
    assert found["nll"] == pytest.approx(F.cross_entropy(logits_NLC.flatten(0, 1)[own], labels_P[own]).item(), rel=1e-5)


def test_agreement_of_parts_is_that_of_the_whole(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    test = load_split(with_split(spec, "test"))
    student, teacher = torch.randn(2, len(test), LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(0))
    served_P = torch.arange(len(test) * LENGTH) % 4 > 0

    class Some:
        def of(self, rows_B: Tensor, view: int) -> "Some":
            self.rows = rows_B
            return self

        def served(self) -> Tensor:
            return served_P.view(-1, LENGTH)[self.rows].flatten()

        def logits(self, student_PC: Tensor, temperature: float) -> Tensor:
            return torch.index_select(teacher, 0, self.rows).flatten(0, 1)

    monkeypatch.setattr(over_positions, "HELD_BYTES", 3 * 4 * LENGTH * VOCABULARY)
    answers: Any = Some()
    found = over_positions.measure_beside_teacher(
        asked(student),
        torch.nn.Identity(),
        test,
        answers,
        np.arange(len(test)),
        views=None,  # type: ignore[arg-type]
    )
    flat = [each.flatten(0, 1)[served_P] for each in (student, teacher, torch.from_numpy(test.labels)[..., None])]
    assert found == pytest.approx(measure_agreement(flat[0], flat[1], flat[2][:, 0]))


def test_validation_examples_are_whole_sequences(spec: str) -> None:
    split = load_split(spec)
    rows, validation = cut_validation(split, 0.2)
    assert len(validation) == 8
    assert sorted([*rows.tolist(), *validation.tolist()]) == list(range(40))


def test_a_signature_says_that_tokens_are_read(spec: str) -> None:
    split = load_split(spec)
    signature = Signature.of("gpt:8x1", split, AS_THEY_ARE)
    assert signature.attributes()["tokens"] is True
    example = signature.example()
    assert (example.holds, example.positions, example.input_shape) == ("tokens", LENGTH, (LENGTH,))
    with pytest.raises(ValueError, match="an image or columns"):
        Signature(
            architecture="gpt",
            input_shape=(8, 8, 1),
            num_classes=4,
            class_names=(),
            preprocessing=AS_THEY_ARE,
            is_tokens=True,
        )


class Tied(torch.nn.Module):
    """An embedding and a head that are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.w = torch.nn.Embedding(VOCABULARY, 4), torch.nn.Linear(4, VOCABULARY, bias=False)
        self.w.weight = self.e.weight

    def forward(self, tokens_BL: Tensor) -> Tensor:
        return self.w(self.e(tokens_BL))  # type: ignore[no-any-return]


@pytest.mark.parametrize("left_out", ["", "e.weight", "w.weight"])
def test_a_tensor_that_has_two_names_is_found_by_either(left_out: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = Tied(), Tied()
    save_weights(tmp_path / "t.safetensors", model, {})
    if left_out:
        state = {name: tensor for name, tensor in load_file(tmp_path / "t.safetensors").items() if name != left_out}
        save_file(state, tmp_path / "t.safetensors")
    load_weights(other, tmp_path / "t.safetensors", architecture="tied")
    assert torch.equal(other.e.weight, model.e.weight)
    assert other.w.weight is other.e.weight
    with pytest.raises(ValueError, match="1 missing: weight"):
        load_weights(torch.nn.Embedding(VOCABULARY, 4), _saved(tmp_path / "u.safetensors"), architecture="plain")


def _saved(path: Path) -> Path:
    save_file({"other": torch.zeros(VOCABULARY, 4)}, path)
    return path


@needs("text/text.py", "text/gpt.safetensors", "text/test_tokens.npy")
def test_a_language_model_of_ones_own_is_a_teacher(tmp_path: Path) -> None:
    """Its loss is about that of its own file (3.298 on 200 held-out sequences), and it keeps it through a store."""
    assert DATA is not None
    text = DATA / "text"
    split = load_split(f"tokens:{text}/test_tokens.npy?length=128&classes=1024&limit=16")
    teacher = build_teacher(split, f"{text}/text.py:model", str(text / "gpt.safetensors"), Views())
    cache_teacher(teacher, tmp_path / "s.zarr", encoding=Encoding(kind="dense", num_classes=1024, bits=8))
    logits = StoredAnswers(open_store(tmp_path / "s.zarr")).logits(torch.arange(16), 0)
    loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(split.labels).flatten(), ignore_index=-1)
    assert 3.0 < float(loss) < 3.6
