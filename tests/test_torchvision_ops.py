"""torchvision beside a CPU-only torch: importable, and untouched where its operators load."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

LOADABLE = """
import torch
from logitbank.pipeline.datasets.torchvision_ops import _compiled_library
library = _compiled_library()
try:
    torch.ops.load_library(str(library))
    print("loads")
except OSError:
    print("does not load")
"""

USE = """
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
print("declared" if prepare_torchvision() else "loaded")
prepare_torchvision()
import torch
from torchvision import datasets, models
from torchvision.transforms import v2
import timm
image = v2.functional.horizontal_flip(torch.arange(6).reshape(1, 2, 3))
assert image.tolist() == [[[2, 1, 0], [5, 4, 3]]]
assert models.get_model("squeezenet1_1").eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
assert timm.is_model("resnet18") and datasets.CIFAR10
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_operators_are_declared_only_where_they_do_not_load() -> None:
    assert run(USE) == ("loaded" if run(LOADABLE) == "loads" else "declared")
