"""A student that starts from weights of a network with another head: what is loaded, what is new, what is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from logitbank import cli
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.models.small import MLP, SmallCNN
from logitbank.pipeline.models.weights import load_weights, save_weights
from logitbank.pipeline.views import Views


def cnn(classes: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SmallCNN(in_channels=1, num_classes=classes)


def saved(model: nn.Module, path: Path, *, without: str = "?") -> Path:
    """The file of a network's weights, perhaps without some."""
    whole = model.state_dict

    def state_dict(*_: object, **__: object) -> dict[str, Tensor]:
        return {name: value for name, value in whole().items() if not name.startswith(without)}

    model.state_dict = state_dict  # type: ignore[method-assign, assignment]
    save_weights(path, model, {})
    return path


@pytest.mark.parametrize(
    ("classes", "without", "why"),
    [(7, "?", "the file's is for 7 classes"), (10, "classifier.2", "the file has none")],
)
def test_all_but_the_head_is_loaded_and_said(tmp_path: Path, classes: int, without: str, why: str) -> None:
    other, model = cnn(classes, seed=1), cnn(10)
    path = saved(other, tmp_path / "w.safetensors", without=without)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    taken = load_weights(model, path, architecture="cnn", new_head=10)
    head = "classifier.2.weight [10, 128], classifier.2.bias [10]"
    assert taken.said == f"{path}: loaded 14 tensors; the head is new, since {why}: {head}"
    source = cnn(classes, seed=1).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith("classifier.2") else source[name]), name
    assert not [name for name in taken.state if name.startswith("classifier.2")]


def test_a_head_that_fits_is_loaded(tmp_path: Path) -> None:
    path = saved(cnn(10, seed=1), tmp_path / "w.safetensors")
    model = cnn(10)
    assert load_weights(model, path, architecture="cnn", new_head=10).said == ""
    assert torch.equal(model.state_dict()["classifier.2.bias"], cnn(10, seed=1).state_dict()["classifier.2.bias"])


@pytest.mark.parametrize(
    ("other", "model", "new_head", "message"),
    [
        (cnn(7), cnn(10), None, "2 of another shape: classifier.2.weight.* answer 7 classes and the data has 10"),
        (
            MLP(input_shape=(4,), num_classes=3, width=0, depth=0),
            MLP(input_shape=(4,), num_classes=2, width=0, depth=0),
            *(2, "2 of another shape"),
        ),
        (
            MLP(input_shape=(4,), num_classes=3, width=8, depth=1),
            MLP(input_shape=(4,), num_classes=2, width=2, depth=1),
            *(2, "4 of another shape.*; name the right model"),
        ),
        (
            MLP(input_shape=(4,), num_classes=3, width=8, depth=1),
            MLP(input_shape=(4,), num_classes=2, width=9, depth=1),
            *(2, "4 of another shape.*; name the right model"),
        ),
    ],
    ids=["a teacher", "nothing but a head", "a width of the classes' number", "another width"],
)
def test_what_differs_in_more_than_the_head_is_refused(
    tmp_path: Path, other: nn.Module, model: nn.Module, new_head: int | None, message: str
) -> None:
    path = saved(other, tmp_path / "w.safetensors")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"weights do not fit net .*{message}"):
        load_weights(model, path, architecture="net", new_head=new_head)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_student_tells_what_it_took_and_its_result_keeps_it(
    digits: Split,
    plain_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views())
    cache_teacher(answers, tmp_path / "s.zarr", encoding=Encoding(kind="dense", num_classes=10, bits=8))
    saved(cnn(7, seed=1), tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    command = "train-student --store s.zarr --data digits --student cnn --init w.safetensors --epochs 1 --out r"
    monkeypatch.setattr(sys, "argv", ["cli", *command.split()])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    said = "w.safetensors: loaded 14 tensors; the head is new, since the file's is for 7 classes"
    assert f"warning: {said}" in capsys.readouterr().err
    assert said in " ".join(json.loads((tmp_path / "r" / "result.json").read_text())["warnings"])
