"""Top-k log-probabilities of other programs become stores: what they say is kept, what they do not say is said."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.answers.tail_warnings import tail_warnings
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.settings import Caching
from logitbank.pipeline.cache_teacher.teachers.build import build_teacher
from logitbank.pipeline.cache_teacher.teachers.topk import TopKTeacher
from logitbank.pipeline.cache_teacher.teachers.topk_rows import read_head
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.described import refuse_given
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.exchange import export_store
from logitbank.pipeline.look.card import store_card
from logitbank.pipeline.look.describe import describe_store, format_description
from logitbank.pipeline.train_student.losses import parse_objective
from logitbank.pipeline.train_student.needs import check_needs
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store, verify_store

N, C, K = 96, 40, 6
TOPK16 = Encoding(kind="topk", num_classes=C, top_k=K, bits=16)
Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Rows of C classes, one without a label."""
    path = tmp_path_factory.mktemp("data") / "d.npz"
    labels = np.arange(N) % C
    labels[11] = -1
    np.savez(path, x=np.random.default_rng(1).normal(size=(N, 3)).astype(np.float32), y=labels)
    return load_split(f"npz:{path}?classes={C}")


def log_prob(seed: int = 0) -> Array:
    """What the teacher would say of every class, float64 [N, C]."""
    logits = np.random.default_rng(seed).normal(size=(N, C)) * 2
    logits[np.arange(N), np.arange(N) % C] += 3
    return np.asarray(logits - np.log(np.exp(logits).sum(1, keepdims=True)))


def head(full: Array, top_k: int = K) -> tuple[Array, Array]:
    """The best, in no order."""
    index = np.argsort(-full, axis=1)[:, :top_k]
    index = np.random.default_rng(5).permuted(index, axis=1)
    return np.take_along_axis(full, index, 1), index


def with_label(full: Array, labels: Array) -> tuple[Array, Array]:
    """K + 1 entries as vLLM's arrays have them: the token that is there, and then the best, be it among them or not."""
    values, index = head(full)
    own = np.maximum(labels, 0)[:, None]
    return np.concatenate([np.take_along_axis(full, own, 1), values], 1), np.concatenate([own, index], 1)


def write(path: Path, values: Array | list[Any], index: Array | list[Any]) -> Path:
    """The two arrays in the form that the ending says."""
    if path.suffix == ".npz":
        np.savez(path, values=values, indices=index)
    elif path.suffix == ".safetensors":
        save_file({"values": torch.as_tensor(values).contiguous(), "indices": torch.as_tensor(index)}, path)
    else:
        rows = {name: [list(row) for row in array] for name, array in (("values", values), ("indices", index))}
        pyarrow.parquet.write_table(pyarrow.table(rows), path, row_group_size=17)
    return path


def cached(data: Split, file: Path, **options: Any) -> Store:
    """A store of the file."""
    answers = build_teacher(data, f"topk:{file}", "", Views())
    out = file.with_suffix(".zarr")
    cache_teacher(answers, out, **{"encoding": TOPK16, **options})
    return open_store(out)


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".parquet"])
def test_the_head_and_the_rest_of_the_mass_are_kept(data: Split, tmp_path: Path, ending: str) -> None:
    full = log_prob()
    values, index = head(full)
    store = cached(data, write(tmp_path / f"f{ending}", values, index))
    teacher = store.teacher()
    slab = teacher.slab(0)
    order = np.argsort(-full, axis=1)[:, :K]
    np.testing.assert_array_equal(slab["index"], order)
    np.testing.assert_allclose(slab["log_prob"], np.take_along_axis(full, order, 1), atol=3e-3)
    rest = np.log(1 - np.exp(values).sum(1))
    np.testing.assert_allclose(slab["log_tail_mass"].astype(float), rest, rtol=3e-3)
    np.testing.assert_allclose(slab["logsumexp"], 0, atol=1e-6)
    assert teacher.constants() == {}, "nothing can be fitted on a tail that nobody said"
    assert teacher.summary["asked"]["predictor_rows"] == 0
    assert not verify_store(store.path)
    decoded = StoredAnswers(store).logits(torch.arange(N), 0).double()
    outside = torch.ones(N, C, dtype=torch.bool).scatter_(1, torch.from_numpy(order), False)
    tail = decoded[outside].view(N, C - K)
    assert ((tail.amax(1) - tail.amin(1)) < 1e-2)[11], "even, where no label stands out"
    np.testing.assert_allclose(decoded.logsumexp(1), 0, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_float_width_gives_the_mass_that_its_rounding_allows(
    data: Split, tmp_path: Path, dtype: torch.dtype
) -> None:
    full = log_prob()
    values, index = head(full)
    save_file({"values": torch.tensor(values).to(dtype), "indices": torch.tensor(index)}, tmp_path / "f.safetensors")
    store = cached(data, tmp_path / "f.safetensors")
    rest = np.exp(store.teacher().slab(0)["log_tail_mass"].astype(float))
    atol = {torch.bfloat16: 2e-2, torch.float16: 3e-3}.get(dtype, 1e-3)
    np.testing.assert_allclose(rest, 1 - np.exp(values).sum(1), atol=atol)
    assert store.teacher().identity["precision"] == str(dtype).removeprefix("torch.")


def test_a_confident_row_keeps_a_mass_that_1_minus_the_sum_would_lose() -> None:
    """float32 has no number between 1 - 6e-8 and 1, and log-probabilities near 0 have all they need."""
    tail = 3e-12
    values = np.array([[math.log1p(-tail - 1e-9), math.log(1e-9)]], np.float64)
    found = read_head(values, np.array([[4, 2]]), np.array([-1]), 10, epsilon=2.0**-52)
    assert float(np.exp(found.log_even_B[0]) * 8) == pytest.approx(tail, rel=1e-3)
    one = np.array([[0.0, -30.0]])  # what float32 makes of it
    found = read_head(one, np.array([[4, 2]]), np.array([-1]), 10, epsilon=2.0**-23)
    even = float(found.log_even_B[0])
    assert math.isfinite(even)
    assert even < -30, "no other class is above the least of the head"


def test_the_token_that_is_there_is_known_outside_the_head_too(data: Split, tmp_path: Path) -> None:
    """vLLM names it besides the best: label_log_prob is then a fact, and losses that need it are served."""
    full = log_prob()
    store = cached(data, write(tmp_path / "f.npz", *with_label(full, data.labels)))
    labelled = np.flatnonzero(data.labels >= 0)
    own = full[labelled, data.labels[labelled]]
    np.testing.assert_allclose(store.teacher().slab(0)["label_log_prob"][labelled], own, rtol=0.02, atol=2e-2)
    order = np.argsort(-full, axis=1)[:, :K]
    assert (np.sort(store.teacher().slab(0)["index"][labelled]) == np.sort(order[labelled])).all()
    assert "label_prob" in StoredAnswers(store).offers
    said = store.teacher().identity["imported"]["label_log_prob"]
    assert said == {"known": len(labelled), "labelled": len(labelled)}
    assert not [line for line in store.teacher().summary["warnings"] if "do not name their label" in line]


def test_losses_that_need_a_label_that_nobody_spoke_of_are_refused(data: Split, tmp_path: Path) -> None:
    full = log_prob()
    values, index = head(full)
    store = cached(data, write(tmp_path / "f.npz", values, index))
    unknown = int((~(index == data.labels[:, None]).any(1) & (data.labels >= 0)).sum())
    assert unknown > 0
    warnings = store.teacher().summary["warnings"]
    assert any(f"{unknown} rows do not name their label" in line for line in warnings)
    answers = StoredAnswers(store)
    assert "label_prob" not in answers.offers
    check_needs(parse_objective("kd", {"temperature": 1}), store, answers)
    with pytest.raises(ValueError, match="dkd.*needs the teacher's own probability of every label"):
        check_needs(parse_objective("dkd", {"temperature": 1}), store, answers)


def test_nobody_claims_to_have_measured_what_was_never_saved(data: Split, tmp_path: Path) -> None:
    """The file is all that fidelity was measured against; the tail's true distance is unknown."""
    store = cached(data, write(tmp_path / "f.npz", *with_label(log_prob(), data.labels)))
    export_store(store.path, tmp_path / "x.npz")
    cache_teacher(build_teacher(data, f"export:{tmp_path}/x.npz", "", Views()), tmp_path / "x.zarr", encoding=TOPK16)
    for path in (store.path, tmp_path / "x.zarr"):
        (line,) = tail_warnings(StoredAnswers(open_store(path)), 9.0)
        assert "never saved, and they share that mass evenly" in line
        assert "measured" not in line
        assert line.endswith(
            "; --set temperature=1, more classes a row or the teacher's own logits would be closer to the teacher"
        )
        assert "not against the teacher" in format_description(describe_store(path))
        assert "not against the teacher" in store_card(path)
        assert "label_prob" in StoredAnswers(open_store(path)).offers


@pytest.mark.parametrize("padding", [(-math.inf, 3), (-1e4, -1), (-2.0, -1)])
def test_padding_is_no_entry(data: Split, tmp_path: Path, padding: tuple[float, int]) -> None:
    """-inf, Megatron's -10,000 and an id of -1; the classes that fill up K have the even share."""
    full = log_prob()
    order = np.argsort(-full, axis=1)
    values, index = np.take_along_axis(full, order[:, :K], 1), order[:, :K].copy()
    values[5, 4:], index[5, 4:] = padding
    slab = cached(data, write(tmp_path / "f.npz", values, index)).teacher().slab(0)
    np.testing.assert_array_equal(slab["index"][5, :4], order[5, :4])
    left = 1 - np.exp(full[5, order[5, :4]]).sum()
    np.testing.assert_allclose(np.exp(slab["log_prob"][5, 4:].astype(float)), left / (C - 4), rtol=1e-2)
    np.testing.assert_allclose(np.exp(float(slab["log_tail_mass"][5])), left * (C - 6) / (C - 4), rtol=1e-2)


def test_lists_of_other_lengths_are_padded(data: Split, tmp_path: Path) -> None:
    """vLLM gives k entries where the token is among the best, and k + 1 where it is not."""
    full = log_prob()
    values, index = with_label(full, data.labels)
    twice = (index[:, 1:] == index[:, :1]).any(1)
    short = [row[1:] if again else row for row, again in zip(values.tolist(), twice, strict=True)]
    ids = [row[1:] if again else row for row, again in zip(index.tolist(), twice, strict=True)]
    assert {len(row) for row in ids} == {K, K + 1}
    ragged = cached(data, write(tmp_path / "ragged.parquet", short, ids)).teacher().slab(0)
    whole = cached(data, write(tmp_path / "whole.npz", values, index)).teacher().slab(0)
    for name in ("index", "log_prob", "log_tail_mass", "label_log_prob"):
        np.testing.assert_array_equal(ragged[name], whole[name], err_msg=name)


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".parquet"])
def test_answers_at_positions(tmp_path: Path, ending: str) -> None:
    """[N, L, K]: as if each position were an example; positions that an example lacks are not read."""
    length, full = 8, log_prob()
    labels = (np.arange(N) % C).reshape(-1, length)
    x, lengths = np.zeros((N // length, 3), np.float32), np.full(N // length, length)
    x[:, 0], lengths[3] = np.arange(len(x)), 5
    labels[3, 5:] = -1
    np.savez(tmp_path / "d.npz", x=x, y=labels, length=lengths)
    data = load_split(f"npz:{tmp_path}/d.npz?classes={C}&positions={length}")
    values, index = (array.reshape(-1, length, array.shape[-1]) for array in with_label(full, labels.reshape(-1)))
    values[3, 5:] = 9.0
    as_lists = ending == ".parquet"
    file = write(tmp_path / f"f{ending}", *((array.tolist() if as_lists else array) for array in (values, index)))
    teacher = cached(data, file).teacher()
    order = np.argsort(-full, axis=1)[:, :K].reshape(-1, length, K)
    served = np.arange(length) < lengths[:, None]
    np.testing.assert_array_equal(teacher.slab(0)["index"][served], order[served])
    assert teacher.identity["imported"]["label_log_prob"] == {"known": N - 3, "labelled": N - 3}
    for wrong in ("", "&positions=4"):
        if ending == ".npz":
            other = tmp_path / f"other{len(wrong)}.npz"
            y = labels[:, 0] if not wrong else labels[:, :4]
            np.savez(other, x=x, y=np.maximum(y, 0))
            with pytest.raises(ValueError, match="has 8 positions, .* has (no|4); expected the same"):
                build_teacher(load_split(f"npz:{other}?classes={C}{wrong}"), f"topk:{file}", "", Views())
    flat = write(tmp_path / f"flat{ending}", *(array.reshape(N, -1) for array in (values, index)))
    if ending != ".parquet":
        with pytest.raises(ValueError, match=rf"rows are positions, reshape\({N // length}, {length}, -1\)"):
            build_teacher(data, f"topk:{flat}", "", Views())
    if ending == ".npz":
        values[2, 6, 0] = math.nan
        with pytest.raises(ValueError, match="row 2 position 6 holds NaN"):
            build_teacher(data, f"topk:{write(tmp_path / 'nan.npz', values, index)}", "", Views())


def test_names_of_arrays_are_found_or_given(data: Split, tmp_path: Path) -> None:
    values, index = head(log_prob())
    np.savez(tmp_path / "trl.npz", logprobs=values, logprob_token_ids=index, input_ids=np.zeros(3))
    assert isinstance(build_teacher(data, f"topk:{tmp_path}/trl.npz", "", Views()), TopKTeacher)
    np.savez(tmp_path / "own.npz", a=values, b=index)
    build_teacher(data, f"topk:{tmp_path}/own.npz?values=a&indices=b", "", Views())
    for query, message in (
        ("", "holds a, b; expected values and indices, or say topk:FILE.values=NAME"),
        ("?values=a", "names one array"),
        ("?value=a", "unknown option 'value'"),
        ("?values=a&indices=c", "expected a and c"),
    ):
        with pytest.raises(ValueError, match=message):
            build_teacher(data, f"topk:{tmp_path}/own.npz{query}", "", Views())


def spoilt(change: Callable[[Array, Array], None]) -> tuple[Array, Array]:
    full = log_prob()
    order = np.argsort(-full, axis=1)[:, :K]
    values, index = np.take_along_axis(full, order, 1), order.copy()
    change(values, index)
    return values, index


def _set(array: int, value: float) -> Callable[[Array, Array], None]:
    def change(*arrays: Array) -> None:
        arrays[array][7, 2] = value

    return change


def _twice(values: Array, index: Array) -> None:
    index[7, 2] = index[7, 1]


def _nothing(values: Array, index: Array) -> None:
    values[7] = -math.inf


def _probabilities(values: Array, index: Array) -> None:
    values[:] = np.exp(values)


def _logits(values: Array, index: Array) -> None:
    values += 5


def _cooler(values: Array, index: Array) -> None:
    values /= 4


def _too_little(values: Array, index: Array) -> None:
    values[7] -= 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(0, math.nan), "row 7 holds NaN or infinity"),
        (_set(1, C), f"row 7 names a class outside 0 to {C - 1}, such as {C}; pass .* classes= how many"),
        (_set(1, -2), "row 7 names a class outside"),
        (_nothing, "row 7 names no class; .*vLLM's first entry .* entry i . 1 answers at position i"),
        (_twice, "row 7 names a class twice"),
        (_set(0, 0.5), "row 7 has probabilities that add to more than 1"),
        (_logits, "no row's probabilities add to 1 or less, so its numbers are raw logits.*log_softmax"),
        (_cooler, "add"),
        (_probabilities, "holds probabilities; expected their natural log"),
        (_too_little, f"row 7 leaves more to the {C} classes than they can have"),
    ],
)
def test_rows_that_are_no_log_probabilities_are_refused(
    data: Split, tmp_path: Path, change: Callable[[Array, Array], None], message: str
) -> None:
    file = write(tmp_path / "f.npz", *spoilt(change))
    with pytest.raises(ValueError, match=message) as caught:
        build_teacher(data, f"topk:{file}", "", Views())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_that_were_renormalised_over_the_best_are_told(
    data: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: type
) -> None:
    """As processed log-probabilities of a sampler are: nothing is left, though the K-th class is far from none."""
    values, index = head(log_prob())
    build_teacher(data, f"topk:{write(tmp_path / 'f.npz', values.astype(dtype), index)}", "", Views())
    confident = np.log(np.array([1 - 1e-4 * (K - 1) - 3e-4, *[1e-4] * (K - 1)]))[None].repeat(N, 0)
    build_teacher(data, f"topk:{write(tmp_path / 'sure.npz', confident.astype(dtype), index)}", "", Views())
    assert "renormalised" not in caplog.text
    values = values - np.log(np.exp(values).sum(1, keepdims=True))
    build_teacher(data, f"topk:{write(tmp_path / 'g.npz', values.astype(dtype), index)}", "", Views())
    assert f"g.npz: in {N} of {N} answers" in caplog.text
    assert "renormalised over them; expected log-probabilities over all classes" in caplog.text


def test_only_topk_with_no_more_classes_than_were_said_is_kept(data: Split, tmp_path: Path) -> None:
    file = write(tmp_path / "f.npz", *head(log_prob()))
    for encoding in (
        Encoding(kind="dense", num_classes=C),
        Encoding(kind="topk", num_classes=C, top_k=K + 1),
        Encoding(kind="topk+tail", num_classes=C, top_k=K, tail_bits=1),
    ):
        with pytest.raises(ValueError, match=f"has {K} classes a row.*--encoding topk --top-k {K} or fewer"):
            cached(data, file, encoding=encoding)
        assert not file.with_suffix(".zarr").exists()


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".parquet"])
def test_ids_that_cannot_name_every_class_have_wrapped_around(tmp_path: Path, ending: str) -> None:
    """As the low 16 bits of Megatron's ids do, alone: 65,536 + 3 would be class 3."""
    np.savez(tmp_path / "d.npz", x=np.arange(N, dtype=np.float32)[:, None], y=np.zeros(N, np.int64))
    data = load_split(f"npz:{tmp_path}/d.npz?classes=70000")
    index = np.arange(N * 2).reshape(N, 2) + 65_500
    values = np.full((N, 2), np.log(0.4))
    for dtype in (np.uint16, np.int32):
        ids = index.astype(dtype)
        if ending == ".parquet":
            table = pyarrow.table({"values": list(values), "indices": list(ids)})
            pyarrow.parquet.write_table(table, file := tmp_path / "f.parquet")
        else:
            file = write(tmp_path / f"f{ending}", values, ids)
        if dtype == np.int32:
            build_teacher(data, f"topk:{file}", "", Views())
            continue
        with pytest.raises(ValueError, match="of a type that ends at 65535, .* has 70000 classes.*save them as int32"):
            build_teacher(data, f"topk:{file}", "", Views())


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_hostile_files_are_refused_in_a_line(data: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pickle is loaded, and what a file declares is not allocated."""
    monkeypatch.chdir(tmp_path)
    values, index = head(log_prob())
    np.savez("pickle.npz", values=np.array([_Evil()] * N, dtype=object), indices=index)
    np.savez_compressed("compressed.npz", values=values, indices=index)
    np.savez("wide.npz", values=np.zeros((N, 5000), np.float16), indices=np.zeros((N, 5000), np.int32))
    np.savez("long.npz", values=values[:-1], indices=index[:-1])
    np.savez("kinds.npz", values=index, indices=index)
    header = {"values": {"dtype": "F32", "shape": [N, 2**40], "data_offsets": [0, N * 2**42]}}
    text = json.dumps(header).encode()
    Path("huge.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    Path("text.parquet").write_text("no table")
    null = [[None, *row[1:]] for row in values.tolist()]
    pyarrow.parquet.write_table(pyarrow.table({"values": null, "indices": index.tolist()}), "null.parquet")
    deep = pyarrow.table({"values": [[[r]] for r in values.tolist()], "indices": [[[r]] for r in index.tolist()]})
    pyarrow.parquet.write_table(deep, "deep.parquet")
    for name, message in (
        ("pickle.npz", "pickled objects"),
        ("compressed.npz", "is compressed; expected plain arrays, as np.savez writes them"),
        ("wide.npz", "K at most 4096"),
        ("long.npz", rf"found \[{N - 1}, {K}\], expected \[{N} examples, K\]"),
        ("kinds.npz", "expected floats and whole numbers"),
        ("huge.safetensors", "not a readable .safetensors"),
        ("text.parquet", "not a readable .parquet"),
        ("null.parquet", "null; expected numbers"),
        ("deep.parquet", "lists too deep"),
        ("nothing.npz", "no such file"),
        ("table.csv", "ending"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            build_teacher(data, f"topk:{name}", "", Views())
        assert "\n" not in str(caught.value)
    assert not Path("pwned").exists()


def test_settings_say_how_many_classes_are_the_best_and_nothing_idle() -> None:
    caching = Caching(teacher="topk:f.npz", top_k=K)
    assert caching.choose(C, ("teacher", "top_k")) == Encoding(kind="topk", num_classes=C, top_k=K)
    with pytest.raises(ValueError, match="say with --top-k how many"):
        caching.choose(C, ("teacher",))
    for name in ("predictor_rows", "kl_budget"):
        with pytest.raises(ValueError, match="f.npz says nothing of other classes"):
            refuse_given(caching, (name,))
