"""Opens an export that becomes a store again."""

from pathlib import Path

from logitbank.pipeline.exchange.npz import NpzExport

_PICKLES = (".pt", ".pth", ".pkl", ".pickle")


def open_export(path: Path) -> NpzExport:
    """Opens an export of ending .npz; what has others is for other tools.

    Raises:
        ValueError: No export, damaged, or of another version; in one line.
    """
    if (path / "zarr.json").exists():
        raise ValueError(f"{path} is a store already, and needs no import; see copy, subset and merge")
    pickle = path.suffix in _PICKLES or path.name.endswith(".pth.tar")
    if path.is_dir() or (path.suffix in (".tar", ".parquet") and not pickle):
        raise ValueError(
            f"{path}: tables and tar files are for other tools, and only an .npz export becomes a store again; run"
            " `cli export STORE --out NAME.npz`, or hand over the store itself: `cli copy STORE NAME.zarr.zip`"
        )
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected an export of ending .npz")
    with path.open("rb") as file:
        start = file.read(1)
    if pickle or start == b"\x80":
        raise ValueError(
            f"{path}: looks like a pickle, and nothing is unpickled here: it could run any code on opening"
        )
    if path.suffix != ".npz":
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; expected an export of ending .npz")
    return NpzExport(path)
