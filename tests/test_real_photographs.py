"""A real ImageNet network on real photographs: through the store it predicts what the library's own loop predicts."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.settings import Compute
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import load_split
from logitbank.pipeline.datasets.image_files import paths_of
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.models import InputTransform
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.realdata import DATA, needs

pytestmark = needs("nips17/labels.tsv", "imagenet_archs.py", "weights/imagenet_mobilenetv2_qat.safetensors")

NETWORK = """
import importlib.util

spec = importlib.util.spec_from_file_location("imagenet_archs", {archs!r})
archs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(archs)

class Network(archs.MobileNetV2):
    def forward(self, x):
        return super().forward(x)[:, 1:]  # class 0 is the background

def network():
    return Network()
"""
NUM_CLASSES = 1000


def write_photographs(folder: Path, count: int) -> None:
    """Evenly chosen photographs, as they are, cut to two other shapes, or enlarged."""
    root = (DATA or Path()) / "nips17"
    with (root / "labels.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for number, row in enumerate(rows[:: len(rows) // count]):
        place = folder / "test" / row["class_index"]
        place.mkdir(parents=True, exist_ok=True)
        (folder / "train" / row["class_index"]).mkdir(parents=True, exist_ok=True)
        source = root / "images" / row["file"]
        with Image.open(source) as image:
            picture = image.convert("RGB")
        shape = number % 4
        if shape == 0:
            (place / source.name).write_bytes(source.read_bytes())
        elif shape == 3:
            picture.resize((500, 375), Image.Resampling.BICUBIC).save(place / source.name, quality=95)
        else:
            box = (30, 0, 226, 256) if shape == 1 else (0, 24, 256, 232)
            picture.crop(box).save(place / f"{source.stem}.png")
        Image.new("RGB", (8, 8)).save(folder / "train" / row["class_index"] / f"{number}.png")


def by_the_library(folder: Path, transform: Any, model: nn.Module, batch_size: int) -> dict[str, tuple[int, Tensor]]:
    """torchvision's folder, its loader and its transform: label and logits of every file."""
    prepare_torchvision()
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(folder), transform)
    found = {}
    with torch.inference_mode():
        done = 0
        for inputs, labels in torch.utils.data.DataLoader(data, batch_size):
            for logits, label in zip(model(inputs), labels.tolist(), strict=True):
                found[data.samples[done][0]] = int(data.classes[label]), logits
                done += 1
    return found


@pytest.mark.parametrize(
    ("count", "interpolation"), [(24, "bicubic"), pytest.param(1000, "bilinear", marks=pytest.mark.slow)]
)
def test_to_the_last_prediction(tmp_path: Path, count: int, interpolation: str) -> None:
    prepare_torchvision()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    root, half = DATA or Path(), (0.5, 0.5, 0.5)
    weights = root / "weights" / "imagenet_mobilenetv2_qat.safetensors"
    (tmp_path / "net.py").write_text(NETWORK.format(archs=str(root / "imagenet_archs.py")))
    write_photographs(tmp_path / "photos", count)
    split = load_split(f"imagefolder:{tmp_path}/photos?split=test&classes={NUM_CLASSES}")
    text = f"resize=256,crop=224,interpolation={interpolation},mean=0.5,0.5,0.5,std=0.5,0.5,0.5"
    name = f"{tmp_path}/net.py:network"
    teachers = load_teachers(split, name, str(weights), preprocessing=InputTransform.parse(text))
    store_path = tmp_path / "photos.zarr"
    encoding = Encoding(kind="dense", num_classes=NUM_CLASSES, bits=32)
    summary = cache_teacher(
        NetworkTeacher(split, teachers, Views(), compute=Compute(batch_size=20)), store_path, encoding=encoding
    )
    signal = StoredAnswers(open_store(store_path))
    rows = torch.arange(len(split))
    stored = signal.logits(rows, 0, student_BC=torch.zeros(len(split), NUM_CLASSES))

    preset = ImageClassification(
        crop_size=224, resize_size=256, mean=half, std=half, interpolation=InterpolationMode(interpolation)
    )
    found = by_the_library(tmp_path / "photos" / "test", preset, teachers.teachers[0].model, 50)
    paths = paths_of(split)
    assert paths is not None
    correct = 0
    for row, path in enumerate(paths):
        label, logits = found[str(path)]
        assert label == split.labels[row]
        assert int(stored[row].argmax()) == int(logits.argmax()), path
        torch.testing.assert_close(stored[row], logits, atol=1e-3, rtol=1e-4)
        correct += int(logits.argmax()) == label
    assert len(found) == len(split)
    assert summary["accuracy"] == pytest.approx(correct / len(split))
    assert summary["accuracy"] > 0.5
    print(json.dumps({"photographs": len(split), "interpolation": interpolation, "accuracy": correct / len(split)}))
    assert np.isfinite(stored.numpy()).all()
