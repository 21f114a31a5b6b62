"""A store's folders and files, as they are: a small store is written and read back."""

import tempfile
from pathlib import Path

from docs.pictures import FOLDER, diagram

WHAT = {
    "zarr.json": "which data, which views; digests",
    "examples/": "of each example:",
    "examples/key/": "hash of the example's bytes",
    "examples/label/": "its label",
    "probes/": "prove that views replay",
    "teachers/": "one or more:",
    "teachers/mlp/": "",
    "teachers/mlp/zarr.json": "weights' sha256, encoding",
    "teachers/mlp/index/": "classes that are kept",
    "teachers/mlp/index/zarr.json": "shape, dtype, codecs",
    "teachers/mlp/index/c/0/0/0": "view 0, first block of rows",
    "teachers/mlp/index/c/0/1/0": "view 0, second block",
    "teachers/mlp/index/c/1/0/0": "view 1, first block",
    "teachers/mlp/index/c/1/1/0": "view 1, second block",
    "teachers/mlp/label_log_prob/": "how probable the label is",
    "teachers/mlp/label_rank/": "the label's place",
    "teachers/mlp/log_prob_code/": "how probable the kept are",
    "teachers/mlp/log_tail_mass/": "mass of all others",
    "teachers/mlp/logsumexp/": "makes raw logits again",
    "teachers/mlp/tail_bias/": "the predictor of the tail,",
    "teachers/mlp/tail_gauge/": "stored once a teacher",
    "teachers/mlp/tail_matrix/": "",
    "teachers/mlp/tail_shift/": "of each row's tail",
    "teachers/mlp/checksum/": "crc32c of every cell",
    "teachers/mlp/committed/": "written last",
}
"""What stands beside a line; a path of the store that is not here, or the other way round, is an error."""
SHOWN_WHOLE = "teachers/mlp/index/"
LINE = 16


def entries(store: Path) -> list[str]:
    """Paths below the store, folders with a slash: all files of one array, of the others the folder alone."""
    found = set()
    for file in store.rglob("*"):
        path = file.relative_to(store).as_posix()
        if file.is_file() and (
            path.count("/") == 0 or path.startswith(SHOWN_WHOLE) or path == "teachers/mlp/zarr.json"
        ):
            found.add(path)
        elif file.is_dir() and (file / "zarr.json").exists() and not path.startswith("probes/"):
            found.add(f"{path}/")
    return sorted(found, key=list(WHAT).index)


def small_store(folder: Path) -> Path:
    """Two views of 1,437 digits, the three best classes kept; answers of two numbers a row, so a tail is predicted."""
    import numpy as np

    from logitbank import Encoding, Views, build_teacher, cache_teacher, load_split

    split = load_split("digits")
    rng = np.random.default_rng(0)
    answers = rng.normal(size=(2, len(split), 2)) @ rng.normal(size=(2, split.num_classes))
    np.save(folder / "logits.npy", answers.astype(np.float32))
    teacher = build_teacher(split, f"array:{folder / 'logits.npy'}", "", Views(num_views=2))
    encoding = Encoding(kind="topk", num_classes=split.num_classes, top_k=3)
    cache_teacher(teacher, folder / "digits.zarr", encoding=encoding, name="mlp", block_rows=1024)
    return folder / "digits.zarr"


def draw() -> list[Path]:
    """`store-tree.svg`."""
    file = FOLDER / "store-tree.svg"
    with tempfile.TemporaryDirectory() as folder:
        file.write_text(drawn(entries(small_store(Path(folder)))))
    return [file]


def drawn(paths: list[str]) -> str:
    """The picture of these paths."""
    parts = ['<text class="code strong" x="8" y="20">digits.zarr/</text>']
    for number, path in enumerate(paths):
        y, inside = 20 + LINE * (number + 1), path.rstrip("/")
        depth, shown = inside.count("/") + 1, inside.rpartition("/")[2] + "/" * path.endswith("/")
        if path.startswith(f"{SHOWN_WHOLE}c/"):
            depth, shown = SHOWN_WHOLE.count("/") + 1, path.removeprefix(SHOWN_WHOLE)
        parts.append(f'<text class="code" x="{8 + 14 * depth}" y="{y}">{shown}</text>')
        if WHAT[path]:
            parts.append(f'<text class="small" x="188" y="{y}">{WHAT[path]}</text>')
    title = "The folders and files of a store: examples, probes, and under teachers an array of each kind of number."
    return diagram(parts, width=368, height=20 + LINE * len(paths) + 14, title=title)
