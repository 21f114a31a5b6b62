"""The public files that some tests and benches use, and the marks of tests that skip without them.

They lie in the folder LOGITBANK_DATA; docs/reference/benchmark-data.md says where they are published.
"""

import os
from pathlib import Path

import pytest

from bench._data import CIFAR_FOLDER, resnet_file
from bench._data import cifar_root as find_cifar


def _find() -> Path | None:
    named = os.environ.get("LOGITBANK_DATA")
    path = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    return path if path.is_dir() else None


DATA: Path | None = _find()


def needs(*parts: str) -> pytest.MarkDecorator:
    """Skips a test where one of these files or folders is missing; "a or b": where both are."""
    missing = [part for part in parts if not any(DATA and list(DATA.glob(each)) for each in part.split(" or "))]
    reason = f"LOGITBANK_DATA has no {', '.join(missing)}: see docs/reference/benchmark-data.md"
    return pytest.mark.skipif(bool(missing), reason=reason)


def weights(depth: int) -> str:
    """The published weights of a ResNet for CIFAR-10."""
    return str(resnet_file(DATA or Path(), depth))


def needs_cifar(*depths: int) -> pytest.MarkDecorator:
    """Skips a test without CIFAR-10 and these ResNets."""
    files = [f"weights/cifar10_resnet{depth}.safetensors or weights/resnet{depth}-*.th" for depth in depths]
    return needs(f"{CIFAR_FOLDER} or realdata.py", *files)


def cifar_root(folder: Path) -> Path:
    """Where the published files of CIFAR-10 are, rebuilt in ``folder`` if need be."""
    return find_cifar(DATA or Path(), folder)
