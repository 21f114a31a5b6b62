"""A student that went to other programs answers there as it does here."""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from logitbank import Student, export_student, load_student
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from tests.test_use_student import trained

FORMATS = ("torch-export", "onnx", "safetensors")


@pytest.fixture(scope="module")
def small(digits: Split, digits_test: Split, tmp_path_factory: pytest.TempPathFactory) -> Student:
    return load_student(trained(digits, digits_test, tmp_path_factory.mktemp("small") / "run", "cnn"), device="cpu")


@pytest.fixture(scope="module")
def of_timm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Student, Path]:
    """A student of timm, and the folder of its photographs."""
    folder, rng = tmp_path_factory.mktemp("timm"), np.random.default_rng(2)
    for name in ("cat", "dog"):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (170, 200, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "train" / name / f"{number}.png")
    split = load_split(f"imagefolder:{folder}/train")
    run = trained(split, split, folder / "run", "timm:test_resnet.r160_in1k")
    return load_student(run, device="cpu"), folder / "train"


@pytest.mark.parametrize("to", FORMATS)
def test_each_format_answers_as_the_student(small: Student, digits_test: Split, tmp_path: Path, to: str) -> None:
    out = tmp_path / "out"
    done = export_student(small, out, to=to, data="digits?split=test")
    assert (done.written, done.checked) == (True, 1 + 2 + 5 + 16)
    assert done.difference < 1e-4
    assert export_student(small, out, to=to, data="digits?split=test") == type(done)(
        written=False, checked=24, difference=done.difference
    )
    said = json.loads((out / "export.json").read_text())
    assert said["class_names"] == [str(digit) for digit in range(10)]
    assert said["preprocessing"] == small.signature.preprocessing.attributes()
    card = (out / "README.md").read_text()
    assert all(text in card for text in ("digits", "array:run.npy", "kd", "accuracy", "licence", "0, 1, 2", "0.3"))
    expected = small.logits(digits_test.samples[:7])
    inputs = small.signature.preprocessing(torch.from_numpy(digits_test.samples[:7]))
    if to == "torch-export":
        found = torch.export.load(out / "model.pt2").module()(inputs)
    elif to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(["logits"], {"input": inputs.numpy()})[0])
        assert json.loads(session.get_modelmeta().custom_metadata_map["logitbank"])["num_classes"] == 10
    else:
        found = load_student(out).logits(digits_test.samples[:7])
    torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=1e-5)


def test_timm_loads_what_was_exported_with_its_input_transform(
    of_timm: tuple[Student, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, photographs = of_timm
    export_student(student, tmp_path / "out", to="safetensors", data=f"imagefolder:{photographs}")
    card = (tmp_path / "out" / "README.md").read_text()
    program = card.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "photo.jpg").write_bytes((photographs / "cat" / "0.png").read_bytes())
    prepare_torchvision()
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {"Image": Image}
    with torch.no_grad():
        exec(compile(program, "card", "exec"), found)
    assert found["model"].pretrained_cfg["label_names"] == ["cat", "dog"]
    expected = student.logits([tmp_path / "photo.jpg"])
    torch.testing.assert_close(found["logits"], expected, atol=1e-5, rtol=1e-4)


def test_weights_of_an_export_are_not_pickled(small: Student, tmp_path: Path) -> None:
    """Those of torch.export are plain bytes; of the example's inputs it keeps a pickle of tensors."""
    export_student(small, tmp_path / "out", to="torch-export")
    names = zipfile.ZipFile(tmp_path / "out" / "model.pt2").namelist()
    config = next(name for name in names if name.endswith("model_weights_config.json"))
    weights = json.loads(zipfile.ZipFile(tmp_path / "out" / "model.pt2").read(config))["config"]
    assert weights
    assert not any(entry["use_pickle"] for entry in weights.values())


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    small: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="unknown format 'onx', did you mean 'onnx'"):
        export_student(small, tmp_path / "out", to="onx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install 'logitbank\[onnx\]'"):
        export_student(small, tmp_path / "out", to="onnx")
    export_student(small, tmp_path / "out", to="safetensors")
    with pytest.raises(ValueError, match="is there and is something else"):
        export_student(small, tmp_path / "out", to="torch-export")
    with pytest.raises(ValueError, match="is no run, but an export"):
        export_student(load_student(tmp_path / "out", device="cpu"), tmp_path / "more", to="safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
