"""Files of pictures as samples: each is looked at once, and what is odd about them is said.

Shapes: N files.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.image_files import ImageFiles, Looked, Thumbnails
from logitbank.pipeline.datasets.originals import Originals
from logitbank.pipeline.datasets.spec import shown, tell

MAX_SIZE = 4096


def read_pictures(
    paths: Sequence[Path], spec: str, *, size: int = 0, upright: bool = False, skip: bool = False
) -> tuple[Originals | Thumbnails, npt.NDArray[np.bool_] | None]:
    """Samples of files, and which of them can be read, bool [N] (None: all).

    Args:
        paths: One file an example.
        spec: For messages.
        size: For small trials: all are upright squares of so many pixels; 0 leaves them as they are.
        upright: Turn them as their EXIF says.
        skip: Decode each once now, and mask the rows of those that fail; otherwise only headers are looked at, and a
            file that is no picture is refused.

    Raises:
        ValueError: Files that cannot be read.
    """
    files = ImageFiles(paths, upright=upright or bool(size), key_space=f"file {size}" if size else "", noted=True)
    looked = files.look(decode=skip)
    broken = np.array([bool(fault) for fault in looked.faults])
    if broken.any():
        message = _broken_message(spec, files.paths, looked.faults)
        if not skip or broken.all():
            raise ValueError(f"{message}; mend or remove them, or pass on_error=skip")
        tell(f"{message}; their rows are masked")
    _tell(spec, files, looked)
    files.broken = broken
    return Thumbnails(files, size) if size else Originals(files), ~broken if broken.any() else None


def _tell(spec: str, files: ImageFiles, looked: Looked) -> None:
    if any(looked.frames):
        several = [str(file) for file, frames in zip(files.paths, looked.frames, strict=True) if frames]
        tell(f"{spec}: {len(several)} files hold several frames, the first is read: {shown(several)}")
    if any(looked.turned) and not files.upright:
        turned = [str(file) for file, each in zip(files.paths, looked.turned, strict=True) if each]
        tell(
            f"{spec}: {len(turned)} files ask to be turned (EXIF), and are read as they lie, as torchvision and timm"
            f" read them; upright=1 turns them: {shown(turned)}"
        )


def _broken_message(spec: str, paths: list[Path], faults: list[str]) -> str:
    found = [f"{path} ({fault})" for path, fault in zip(paths, faults, strict=True) if fault]
    return f"{spec}: {len(found)} files cannot be decoded: {shown(found)}"
