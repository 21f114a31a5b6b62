"""`decode` writes what stage two would use, and reads no more blocks than its rows lie in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from logitbank.cli import app
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.encoding import decode_log_prob
from logitbank.pipeline.exchange.decode import decode_to_file
from logitbank.stores import RowArray, TeacherWriter, create_store, open_store
from tests.golden.make_decoded import N, write

BLOCK = 20


def in_blocks(path: Path, out: Path, *, masked: bool = False) -> Path:
    """The store in blocks of 20 rows, every seventh of which is perhaps not served."""
    there = open_store(path)
    teacher = there.teacher()
    create_store(out, dataset=there.dataset, views=there.views, keys=there.keys, labels=there.labels, folds=there.folds)
    writer = TeacherWriter(
        out,
        "t",
        identity={},
        encoding=teacher.encoding,
        arrays={**teacher.row_arrays, **({"mask": RowArray(dtype="bool")} if masked else {})},
        folds=teacher.folds,
        constants=teacher.constants(),
        block_rows=BLOCK,
    )
    rows = {**teacher.slab(0), **({"mask": np.arange(N) % 7 > 0} if masked else {})}
    for cell in writer.pending():
        writer.write(cell, {name: array[writer.rows(cell.block)] for name, array in rows.items()})
    writer.finish(fidelity={})
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["v2-topk", "v2-topk-tail", "v2-dense-8"])
def test_any_rows_are_those_of_stage_two(tmp_path: Path, kind: str, masked: bool) -> None:
    write(kind, tmp_path)
    store = open_store(in_blocks(tmp_path / f"{kind}.zarr", tmp_path / "s", masked=masked))
    answers, served = (
        StoredAnswers(store),
        torch.from_numpy(store.teacher().slab(0, ["mask"])["mask"] if masked else np.ones(N, bool)),
    )
    for number, (start, stop) in enumerate(((0, 1), (0, N), (19, 21), (25, 66), (N - 1, N))):
        out = tmp_path / f"{number}.npy"
        assert decode_to_file(store, out, temperature=2.0, rows=f"{start}:{stop}")[0] == (stop - start, 12)
        rows = torch.arange(start, stop)
        expected = decode_log_prob(answers.of(rows, 0).logits(torch.zeros(1), 1.0), 2.0)
        expected[~served[rows]] = torch.nan
        np.testing.assert_array_equal(np.load(out), expected.numpy())


def test_other_blocks_are_not_read(tmp_path: Path) -> None:
    write("v2-topk", tmp_path)
    path = in_blocks(tmp_path / "v2-topk.zarr", tmp_path / "s")
    for name in ("index", "logsumexp"):
        for block in (1, 3):
            position = f"c/0/{block}/0" if name == "index" else f"c/0/{block}"
            (path / "teachers" / "t" / name / position).unlink()
    store = open_store(path)
    assert decode_to_file(store, tmp_path / "a.npy", rows="0:20")[1]
    assert decode_to_file(store, tmp_path / "b.npy", rows="41:59")[1]
    with pytest.raises(ValueError, match="is missing"):
        decode_to_file(store, tmp_path / "c.npy", rows="19:21")
    assert not (tmp_path / "c.npy").exists()


def test_a_tail_rule_that_does_nothing_is_refused_whatever_it_says(tmp_path: Path) -> None:
    write("v2-dense-8", tmp_path)
    write("v2-topk", tmp_path)
    dense, topk, out = (str(tmp_path / name) for name in ("v2-dense-8.zarr", "v2-topk.zarr", "x.npy"))
    for rule in ("predicted", "uniform"):
        result = CliRunner().invoke(app, ["decode", dense, "--out", out, "--tail", rule])
        told = f"--tail {rule} does nothing here, because the store keeps every class; leave it out"
        assert str(result.exception) == told
    assert CliRunner().invoke(app, ["decode", dense, "--out", out]).exit_code == 0
    assert CliRunner().invoke(app, ["decode", topk, "--out", out + ".npy", "--tail", "predicted"]).exit_code == 0
