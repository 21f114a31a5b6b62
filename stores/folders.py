"""Folders of this user outside any store: the cache, and one on a disk of this machine."""

import functools
import logging
import os
import re
import stat
import tempfile
from pathlib import Path

from logitbank.stores.format.schema import StoreError

_MOUNTS = Path("/proc/mounts")
_LOCAL = "LOGITBANK_LOCAL"
# kinds of file systems, as the kernel calls them, that other machines hold
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p", "pvfs2"}
    | {"orangefs", "panfs", "wekafs", "ocfs2", "gfs2", "davfs", "dvs", "fhgfs"}
    | {f"fuse.{name}" for name in ("sshfs", "glusterfs", "ceph", "ceph-fuse", "s3fs", "gcsfuse", "goofys", "juicefs")}
    | {f"fuse.{name}" for name in ("mount-s3", "rclone", "mfs", "beegfs", "lustre", "blobfuse2", "davfs2", "dfuse")}
)
_log = logging.getLogger("logitbank")


def default_cache() -> Path:
    """Where copies of what is elsewhere are kept: LOGITBANK_CACHE, or the user's cache folder."""
    if "LOGITBANK_CACHE" in os.environ:
        return Path(os.environ["LOGITBANK_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "logitbank"


def local_folder(what: str) -> Path:
    """Where files lie that processes of this machine map, lock and throw away: never on a network file system.

    LOGITBANK_LOCAL names it; without it, it is the cache, or where that is on a network file system a folder of this
    user below the system's temporary folder, and a warning says so.

    Args:
        what: Name of the folder in it; made by whoever writes there.

    Raises:
        StoreError: The folder that was named is on a network file system, or so is the temporary one.
    """
    if os.environ.get(_LOCAL):
        named = Path(os.environ[_LOCAL])
        kind = network_kind(named)
        if kind:
            raise StoreError(
                f"{_LOCAL} is {named}, which is on a network file system ({kind}); name a folder on a disk of this"
                " machine"
            )
        return named / what
    cache = default_cache()
    return (_instead_of(cache) if network_kind(cache) else cache) / what


@functools.cache
def _instead_of(cache: Path) -> Path:
    """A folder of this user below the temporary one, with a sentence about it, once a process."""
    found = Path(tempfile.gettempdir()) / f"logitbank-{os.getuid()}"
    kinds = network_kind(cache), network_kind(found)
    if kinds[1]:
        raise StoreError(
            f"{cache} is on a network file system ({kinds[0]}), and so is {found.parent} ({kinds[1]}); set {_LOCAL} to"
            " a folder on a disk of this machine"
        )
    found.mkdir(mode=0o700, exist_ok=True)
    status = found.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise StoreError(f"{found} is another user's, or open to others; set {_LOCAL} to a folder of your own")
    _log.warning(
        "warning: %s is on a network file system (%s): files that processes map go to %s; %s names another folder",
        *(cache, kinds[0], found, _LOCAL),
    )
    return found


def network_kind(path: Path) -> str:
    """The kind of network file system that a path, which need not be there, is on; empty on a disk, or where unknown.

    Args:
        path: Any path.
    """
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:  # systems without it
        return ""
    place, best, kind = path.resolve(), -1, ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        top = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[1]))
        if len(top.parts) >= best and place.is_relative_to(top):  # of two at one place the later one is seen
            best, kind = len(top.parts), fields[2]
    return kind if kind in _NETWORK else ""
