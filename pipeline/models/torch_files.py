"""Weights that ``torch.save`` wrote, from a stranger.

``torch.load(weights_only=True)`` runs no code, but makes whatever a file declares: buffers of any size, tensors that a
few compressed bytes unfold into. So what the file says is read first, without making anything: every entry of its
archive is stored as it is, and its program names nothing but plain tensors and plain containers.
"""

import io
import pickletools
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch

TORCH_SUFFIXES = (".pt", ".pth", ".th")
MAX_PROGRAM = 8 * 2**20  # bytes that say which tensors there are: enough for some 50,000
_LEGACY_PROGRAMS = 5  # magic number, protocol, system, the content, and the names of its storages
_NUMBERS = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
_PLAIN = {
    "collections OrderedDict",
    "collections Counter",
    "__builtin__ set",
    "_codecs encode",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"{module} {number}Storage" for module in ("torch", "torch.cuda") for number in _NUMBERS),
    *(f"torch {name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
}


def load_torch_file(path: Path) -> object:
    """What a ``.pt`` file holds; its tensors are read from the file when they are used.

    Raises:
        ValueError: Damaged, compressed, or anything but plain tensors in plain containers.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # as torch tells them apart
            file.seek(0)
            if zipped:
                _check_archive(path)
            else:
                _check_programs(file.read(MAX_PROGRAM), _LEGACY_PROGRAMS)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
    except _NotPlainError as error:
        raise ValueError(f"{path}: not plain weights, {error}; save model.state_dict()") from None
    except Exception as error:  # torch raises many kinds for a damaged file, and advises to trust it
        raise ValueError(
            f"{path}: not plain weights, torch cannot read it ({type(error).__name__}); save model.state_dict()"
        ) from error


class _NotPlainError(Exception):
    """Why a file is refused, as a phrase."""


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            if packed:
                raise _NotPlainError(f"{len(packed)} entries of its archive are compressed, and torch.save packs none")
            declared, there = sum(entry.file_size for entry in entries), path.stat().st_size
            if declared > there:
                raise _NotPlainError(f"its archive declares {declared} bytes, and the file has {there}")
            programs = [entry for entry in entries if entry.filename.endswith("data.pkl")]
            if not programs:
                raise _NotPlainError("its archive holds no data.pkl")
            for entry in programs:
                if entry.file_size > MAX_PROGRAM:
                    raise _NotPlainError(f"its data.pkl has {entry.file_size} bytes, more than {MAX_PROGRAM}")
                _check_programs(archive.read(entry), 1)
            damaged = archive.testzip()
            if damaged is not None:
                raise _NotPlainError(f"{ascii(damaged)[1:-1][:60]} in its archive does not match its checksum")
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        raise _NotPlainError(f"its archive is damaged ({' '.join(str(error).split())[:100]})") from error


def _check_programs(content: bytes, count: int) -> None:
    """Reads pickle programs without running them; refuses all that makes more than plain tensors."""
    file = io.BytesIO(content)
    for _ in range(count):
        try:
            found = sorted(set(_globals(file)) - _PLAIN)
        except (ValueError, UnicodeError, IndexError, OverflowError) as error:
            raise _NotPlainError("it is no file of torch.save, or a damaged one") from error
        if found:
            shown = ", ".join(ascii(name.replace(" ", "."))[1:-1][:60] for name in found[:3])
            raise _NotPlainError(f"it holds {shown}{' ...' if len(found) > 3 else ''} besides plain tensors")


def _globals(program: IO[bytes]) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name == "GLOBAL":
            yield str(argument)
        elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            yield f"opcode {opcode.name}"
