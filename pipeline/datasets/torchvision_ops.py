"""Makes torchvision importable beside a CPU-only torch: called before torchvision or timm is imported.

The default torchvision wheel is built against a CUDA torch. Beside a CPU-only torch its compiled
library cannot be loaded (libcudart is missing), so the operators ``torchvision::nms`` and ``qnms`` are
never declared, and importing torchvision fails when it registers their shape functions. Nothing here
uses those operators: declaring their schemas is enough for transforms, models and datasets to work.
Where the library loads, this module does nothing but load it.
"""

import importlib.util
from functools import cache
from pathlib import Path

import torch

_BOX_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _compiled_library() -> Path | None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ImportError("torchvision is not installed; run `pip install torchvision`")
    folder = Path(spec.origin).parent
    return next((path for suffix in ("so", "pyd") for path in sorted(folder.glob(f"_C*.{suffix}"))), None)


@cache
def prepare_torchvision() -> bool:
    """Loads torchvision's operators, or declares the two that its import needs; True when it declared them."""
    library = _compiled_library()
    if library is None:
        return False
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError:
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", _BOX_SCHEMA)
        return True
    return False
