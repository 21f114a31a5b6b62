"""Putting a store, whole and checked, into one zip file."""

import zipfile
from pathlib import Path

_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_zip(folder: Path, path: Path) -> None:
    """Write all files below `folder` into one zip file, not compressed again; equal stores give equal files."""
    with path.open("xb") as handle, zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.file_size = file.stat().st_size
            with file.open("rb") as data, archive.open(entry, "w") as out:
                while piece := data.read(1 << 20):
                    out.write(piece)
