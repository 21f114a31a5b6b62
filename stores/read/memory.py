"""How much memory a process may still take: of its machine, and of every control group that it is in."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from logitbank.stores.format.schema import StoreError

_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_MEMORY_GROUP = re.compile(r"^(?:0::|\d+:(?:[^:]*,)?(memory)(?:,[^:]*)?:)(/.*)$", re.MULTILINE)
_NO_LIMIT = 2**62


class _Files(NamedTuple):
    """Names in one version of cgroups: the limit, what is in use, and how much of that are files nobody reads."""

    top: str
    limit: str
    used: str
    idle: str


_VERSIONS = (
    _Files("", "memory.max", "memory.current", "inactive_file"),
    _Files("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def check_memory(num_bytes: int, what: str) -> None:
    """Raise StoreError when `num_bytes` are more than this machine, or its container, has left."""
    available = available_memory()
    if num_bytes > available:
        raise StoreError(
            f"{what} needs {num_bytes / 2**30:.1f} GiB of memory, found {available / 2**30:.1f} GiB; read "
            "it block by block (--memory-budget) or use a larger machine"
        )


def available_memory() -> int:
    """Bytes of memory that can still be had, in a container of what is left of its own; very many where nobody says."""
    found = [machine_memory()]
    with suppress(OSError, StopIteration, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    for folder, files in _groups():
        with suppress(OSError, ValueError):
            used = int((folder / files.used).read_text())
            found.append(max(0, int((folder / files.limit).read_text()) - used + _idle(folder, files)))
    return min(found)


def machine_memory() -> int:
    """Bytes of memory that this machine or container has, however much of it is in use."""
    found = [_NO_LIMIT]
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for folder, files in _groups():
        with suppress(OSError, ValueError):  # without a limit it says "max"
            found.append(int((folder / files.limit).read_text()))
    return min(found)


def _groups() -> Iterator[tuple[Path, _Files]]:
    """The folders of this process's memory group and of all above it: each has a limit of its own."""
    own = {"": "/", "memory": "/"}
    with suppress(OSError):
        own |= {name or "": path for name, path in _MEMORY_GROUP.findall(_OWN_GROUPS.read_text())}
    for files in _VERSIONS:
        top = _CGROUP / files.top
        below = Path(own[files.top].lstrip("/"))
        if ".." not in below.parts:  # a container may be told of a group that it cannot see: then its top is its own
            yield from ((top / group, files) for group in (below, *below.parents) if group != Path())
        yield top, files


def _idle(folder: Path, files: _Files) -> int:
    """Pages of files that the system gives up before it refuses memory; 0 where that is not said."""
    with suppress(OSError, ValueError, StopIteration, IndexError):
        lines = (folder / "memory.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.split()[0] == files.idle)
    return 0
