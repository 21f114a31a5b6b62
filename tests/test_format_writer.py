"""docs/reference/format.md is enough to write a store: one of another writer is verified, decoded and learnt."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.datasets import load_split
from logitbank.pipeline.datasets.split import content_keys
from logitbank.pipeline.encoding.kinds import Encoding
from logitbank.pipeline.views.geometry import flip_crop, random_resized_crop, rrc_boxes
from logitbank.pipeline.views.mixing import cutmix, mixup, partners
from logitbank.pipeline.views.seeds import draw, view_seeds
from logitbank.stores import open_store
from tests import format_rows, format_views, format_writer
from tests.format_reader import Array, decode_row
from tests.pages import ROOT, run_command

PAGE = (ROOT / "docs" / "reference" / "format.md").read_text()
C, N, L, VIEWS = 12, 70, 3, 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """One store: what its data are, and what its rows hold."""

    encoding: dict[str, Any]
    data: str = "table"  # or images, positions, tokens
    predicted: bool = False
    rank: int = 0  # of the tail's matrix; 0: whole
    num_folds: int = 0
    features: bool = False


def topk(bits: int, tail_bits: int = 0) -> dict[str, Any]:
    return format_rows.encoding_of("topk+tail" if tail_bits else "topk", bits, C, 4, tail_bits)


CASES = {
    "dense-32": Case(encoding=format_rows.encoding_of("dense", 32, C), data="images"),
    "dense-16": Case(encoding=format_rows.encoding_of("dense", 16, C), features=True),
    "dense-8": Case(encoding=format_rows.encoding_of("dense", 8, C)),
    "topk-8": Case(encoding=topk(8), data="images", num_folds=3),
    "topk-16": Case(encoding=topk(16)),
    "topk-8-predicted": Case(encoding=topk(8), predicted=True, num_folds=3),
    "topk-16-predicted": Case(encoding=topk(16), predicted=True, rank=6),
    "topk+tail-8": Case(encoding=topk(8, 2), predicted=True, num_folds=2),
    "positions-topk-8": Case(encoding=topk(8), data="positions", predicted=True),
    "tokens-dense-8": Case(encoding=format_rows.encoding_of("dense", 8, C), data="tokens"),
}


def make_data(folder: Path, kind: str, rng: np.random.Generator) -> tuple[str, Array, Array, Array | None]:
    """A spec, and the samples, labels and mask that it means."""
    if kind == "tokens":
        ids = rng.integers(0, C, N * L + 1)
        np.save(folder / "ids.npy", ids.astype(np.uint16))
        samples, labels = ids[:-1].reshape(N, L), ids[1:].reshape(N, L)
        return f"tokens:{folder}/ids.npy?length={L}&classes={C}&test={folder}/ids.npy", samples, labels, None
    if kind == "images":
        samples = rng.integers(0, 256, (N, 16, 16, 3)).astype(np.uint8)
    else:
        samples = rng.normal(size=(N, 6)).astype(np.float32)
    labels = rng.integers(-1, C, (N, L) if kind == "positions" else N)
    arrays, mask = {"x": samples, "y": labels}, None
    if kind == "positions":
        arrays["length"] = rng.integers(1, L + 1, N)
        mask = np.arange(L) < arrays["length"][:, None]
        labels = np.where(mask, labels, -1)
    np.savez(folder / "data.npz", **arrays, **{f"{name}_test": array[:20] + 0 for name, array in arrays.items()})  # type: ignore[arg-type]
    return f"npz:{folder}/data.npz?classes={C}{f'&positions={L}' if mask is not None else ''}", samples, labels, mask


def write(folder: Path, case: Case) -> tuple[str, Array, Array]:
    """Writes STORE and its data; gives the data's spec, and the logits [V, N, C] or [V, N, L, C], and which count."""
    rng = np.random.default_rng(5)
    spec, samples, labels, mask = make_data(folder, case.data, rng)
    features = rng.normal(size=(VIEWS, *labels.shape, 4))
    head = rng.normal(size=(4, C)) * 3
    logits = features @ head + rng.normal(size=(VIEWS, *labels.shape, C)) / 2
    logits = logits.astype(np.float32)
    folds = np.arange(N) % max(1, case.num_folds)
    folds_P = np.broadcast_to(folds.reshape(N, *(1 for _ in labels.shape[1:])), labels.shape)
    constants = {}
    if case.predicted:
        flat = logits[0].reshape(-1, C), folds_P.reshape(-1)
        constants = format_rows.fit_constants(*flat, max(1, case.num_folds), case.encoding, case.rank)
    if case.features:
        constants |= {"head_weight": head.T[None].astype(np.float32), "head_bias": np.zeros((1, C), np.float32)}
    views = [
        format_rows.encode(each, labels, case.encoding, folds_P, constants if case.predicted else {}) for each in logits
    ]
    rows = {name: np.stack([view[name] for view in views]) for name in views[0]}
    if case.features:
        rows["embedding"] = features.astype(np.float16)
    if mask is not None:
        rows["mask"] = np.broadcast_to(mask, (VIEWS, *mask.shape)).copy()
    store = folder / "s.zarr"
    format_writer.write_examples(
        store,
        samples,
        labels,
        C,
        num_views=VIEWS,
        transform="flip-crop" if case.data == "images" else "none",
        seed=7,
        folds=folds if case.num_folds else None,
        tokens=case.data == "tokens",
    )
    dims = format_rows.DIMS["dense" if case.encoding["kind"] == "dense" else "topk"]
    format_writer.write_teacher(store, rows, case.encoding, dims=dims, constants=constants, num_folds=case.num_folds)
    place = list(np.ndindex(VIEWS, *labels.shape))
    decoded = np.stack(
        [
            decode_row(
                {name: values[at] for name, values in rows.items()},
                int(labels[at[1:]]),
                int(folds_P[at[1:]]),
                constants,
                C,
            )
            for at in place
        ]
    ).reshape(logits.shape)
    return spec, decoded, logits


@pytest.mark.parametrize("name", CASES)
def test_a_store_of_another_writer_is_sound(name: str, tmp_path: Path) -> None:
    """`verify` finds its bytes, rows, views and examples sound, and it decodes to the writer's own numbers."""
    case = CASES[name]
    spec, decoded, logits = write(tmp_path, case)
    code, said = run_command(["cli", "verify", f"{tmp_path}/s.zarr", "--data", spec])
    assert code == 0, said
    store, split = open_store(tmp_path / "s.zarr"), load_split(spec)
    answers = StoredAnswers(store)
    there = np.ones(store.labels.shape, bool) if split.readable is None else split.readable
    for view in range(VIEWS):
        found = answers.of(torch.arange(N), view).logits(torch.empty(0), 1.0).numpy().reshape(decoded[view].shape)
        if case.encoding["kind"] == "dense" and case.encoding["bits"] == 32:
            np.testing.assert_array_equal(found, logits[view])
        np.testing.assert_allclose(found[there], decoded[view][there], rtol=2**-10, atol=1e-2)  # float16 tails
        best = logits[view].argmax(-1)
        assert (found.argmax(-1) == best)[there].all()
    assert (store.teacher().row_folds is not None) == bool(case.num_folds)


def test_features_of_another_writer_give_its_logits(tmp_path: Path) -> None:
    _, _, logits = write(tmp_path, CASES["dense-16"])
    store = open_store(tmp_path / "s.zarr")
    features, _ = StoredAnswers(store, features=True).of(torch.arange(N), 1).features()
    constants = store.teacher().constants()
    by_head = features.numpy() @ constants["head_weight"][0].T + constants["head_bias"][0]
    assert np.abs(by_head - logits[1]).mean() < 0.5  # what was added to them as noise


@pytest.mark.parametrize("name", ["dense-32", "topk-8-predicted", "tokens-dense-8"])
def test_a_student_learns_from_it(name: str, tmp_path: Path) -> None:
    spec, _, _ = write(tmp_path, CASES[name])
    model = "gpt:8x1" if "tokens" in name else "linear"
    line = f"cli train-student --store {tmp_path}/s.zarr --student {model} --loss kd --epochs 2 --out {tmp_path}/run"
    code, said = run_command([*line.split(), "--data", spec])
    assert code == 0, said
    assert (tmp_path / "run" / "run.json").is_file()


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    spec, _, _ = write(tmp_path, CASES["topk-16"])
    file = tmp_path / "s.zarr/teachers/foreign/index/c/1/2/0"
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    code, said = run_command(["cli", "verify", f"{tmp_path}/s.zarr", "--data", spec])
    assert code == 2
    assert "index/c/1/2/0 is damaged" in said


def test_the_writer_knows_nothing_but_the_page() -> None:
    allowed = {"hashlib", "json", "struct", "math", "numpy", "numpy.typing", "pathlib", "typing", "collections.abc"}
    for name in ("format_reader", "format_rows", "format_views", "format_writer"):
        for node in ast.walk(ast.parse((ROOT / "tests" / f"{name}.py").read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom):
                assert node.module in {*allowed, "tests.format_reader", "tests.format_views"}


@pytest.fixture(scope="module")
def shown() -> tuple[Array, Array, Array]:
    """Images, their keys and the seeds of a view of them."""
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 20, 3)).astype(np.uint8)
    keys = content_keys(images)
    assert [format_writer.key(image) for image in images] == keys.tolist()
    seeds = view_seeds(3, keys, 4)
    assert [format_views.view_seed(3, int(key), 4) for key in keys] == seeds.tolist()
    return images, keys, seeds


def test_views_are_replayed_alike(shown: tuple[Array, Array, Array]) -> None:
    images, keys, seeds = shown
    assert [format_views.draw(int(seed), 100, 17) for seed in seeds] == draw(seeds, 100, 17).tolist()
    others = partners(seeds, np.argsort(keys, kind="stable"))
    assert [format_views.partner(int(seed), keys) for seed in seeds] == others.tolist()
    for image, other, seed, expected in zip(
        images, images[others], seeds.tolist(), flip_crop(images, seeds), strict=True
    ):
        np.testing.assert_array_equal(format_views.flip_crop(image, seed), expected)
        one = np.array([seed], np.uint64)
        for ours, theirs in ((format_views.mixup, mixup), (format_views.cutmix, cutmix)):
            np.testing.assert_array_equal(ours(image, other, seed), theirs(image[None], other[None], one)[0])


@pytest.mark.parametrize(("height", "width"), [(16, 20), (300, 200), (9, 300), (300, 9)])
def test_crops_of_photographs_are_replayed_alike(height: int, width: int, shown: tuple[Array, Array, Array]) -> None:
    seeds = shown[2]
    boxes = np.array([format_views.rrc_box(height, width, int(seed)) for seed in seeds])
    shares = np.stack([boxes[:, 0], boxes[:, 1], boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]], 1)
    np.testing.assert_allclose(rrc_boxes(height, width, seeds), shares / [height, width, height, width])
    image = np.random.default_rng(1).integers(0, 256, (1, 16, 20, 3)).astype(np.uint8)
    for seed in seeds[:8]:  # of their own size, so that nothing is resampled
        top, left, h, w = format_views.rrc_box(16, 20, int(seed), 1.0)
        crop = image[0, top : top + h, left : left + w]
        found = random_resized_crop(image, np.array([seed], np.uint64), scale=1.0)[0]
        if (h, w) == (16, 20):
            np.testing.assert_array_equal(found, crop[:, ::-1] if format_views.mirrored(int(seed)) else crop)


def test_the_pages_examples_are_true() -> None:
    words = " ".join(PAGE.split())
    pair = format_writer.key(np.array([1, 2], np.float32))
    assert f"two numbers 1.0 and 2.0 is {pair:#018x}" in words
    tokens = format_writer.token_key(np.array([1, 2, 3]))
    assert f"tokens 1, 2, 3 is {tokens:#018x}" in words
    assert f"whose sum is `{format_writer.document_sum({'b': [1, 2.5], 'a': 'é'})}`" in words
    assert f"it is {format_writer.crc32c(b'123456789'):#X}".replace("0X", "0x") in words
    seed = format_views.view_seed(0, 1, 0)
    assert f"s = {seed:#018x} and draw(s, 0, 1000) = {format_views.draw(seed, 0, 1000)}." in words


@pytest.mark.parametrize("kind", ["dense", "topk", "topk+tail"])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_the_page_has_the_arrays_of_every_encoding(kind: str, bits: int) -> None:
    line = next((line for line in PAGE.splitlines() if re.match(rf"\| `{re.escape(kind)}` \| .*\b{bits}\b", line)), "")
    if not line:
        assert (kind, bits) in {("topk", 32), ("topk+tail", 32)}
        return
    if "as `topk`" in line:
        arrays = {"tail_code": ("uint8", 1)}
    else:
        found = re.findall(r"`(\w+)`(?: (\w+\d+))?( \[[CK]\])?", line.split("|")[3])
        arrays = {name: (dtype or "uint8", 12 if "C" in dim else 4 if "K" in dim else 0) for name, dtype, dim in found}
    settings = {} if kind == "dense" else {"top_k": 4, "tail_bits": 0.5 if "+" in kind else 0}
    encoding = Encoding(kind=kind, num_classes=C, bits=bits, **settings)  # type: ignore[arg-type]
    written = {name: (row.dtype, *row.row_shape) for name, row in encoding.row_arrays().items()}
    if kind == "topk+tail":
        plain = Encoding(kind="topk", num_classes=C, bits=bits, top_k=4).row_arrays()
        written = {name: row for name, row in written.items() if name not in plain}
    for name in ("label_rank", "label_log_prob"):
        written.pop(name, None)
    assert written == {name: (dtype, size) if size else (dtype,) for name, (dtype, size) in arrays.items()}
