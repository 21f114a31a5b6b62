"""What a table of runs may say: which runs are one method, what each is compared with, and when there is a star."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from logitbank.pipeline.train_student.compare import Comparison, compare, format_table, unlike
from logitbank.pipeline.train_student.runs import choose_baselines, load_runs


def result(accuracy: float, seed: int = 0, store: str = "s.zarr") -> dict[str, Any]:
    return {
        **{"accuracy": accuracy, "nll": 1 - accuracy, "ece": 0.1, "seconds": 1.0},
        **{"training": {"seed": seed}, "store": {"path": store}},
    }


def run(folder: Path, accuracy: float, seed: int, *, store: str = "s.zarr", **changes: Any) -> None:
    """A finished run as it lies in its folder; ``changes`` to its identity."""
    identity: dict[str, Any] = {
        "student": changes.pop("student", "mlp:8"),
        "objective": {"objective": changes.pop("loss", "kd"), "terms": []},
        "training": {"epochs": changes.pop("epochs", 2), "seed": seed},
        "validation": {"share": changes.pop("val_share", 0.0), "keys_sha256": "0"},
        "store": {"digest": changes.pop("digest", "d0"), "teacher": changes.pop("teacher", "t")},
        "test": "t",
    }
    assert not changes
    path = folder / str(len(list(folder.glob("*"))))
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(identity))
    (path / "result.json").write_text(json.dumps(result(accuracy, seed, store)))


def table(folder: Path, baseline: str = "") -> dict[str, Comparison]:
    methods = load_runs(folder)
    chosen = choose_baselines(methods, baseline)
    rows = compare({name: {s: r.result for s, r in runs.items()} for name, runs in methods.items()}, chosen)
    assert len(format_table(rows).splitlines()) == len(rows) + 1
    return {row.name: row for row in rows}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"val_share": 0.5}, ["kd val_share=0.0", "kd val_share=0.5"]),
        ({"epochs": 3}, ["kd epochs=2", "kd epochs=3"]),
        ({"digest": "d1"}, ["kd store=s@d0", "kd store=s@d1"]),
        ({"digest": "d1", "store": "elsewhere/s2.zarr"}, ["kd store=s", "kd store=s2"]),
        ({"digest": "d1", "teacher": "u"}, ["kd teacher=t", "kd teacher=u"]),
        ({"student": "cnn"}, ["kd cnn", "kd mlp:8"]),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_not_one_method(
    tmp_path: Path, change: dict[str, Any], names: list[str]
) -> None:
    for seed in (0, 1):
        run(tmp_path, 0.5, seed)
    run(tmp_path, 0.9, 2, **change)
    assert sorted(table(tmp_path)) == names


def test_a_store_that_was_moved_is_the_same_store(tmp_path: Path) -> None:
    run(tmp_path, 0.5, 0)
    run(tmp_path, 0.6, 1, store="/elsewhere/copied.zarr")
    assert list(table(tmp_path)) == ["kd"]


def test_each_student_has_its_own_baseline(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        for student, loss, accuracy in (
            ("mlp:4", "ce", 0.5),
            ("mlp:4", "kd", 0.6),
            ("mlp:8", "ce", 0.8),
            ("mlp:8", "kd", 0.81),
            ("cnn", "kd", 0.95),
        ):
            run(tmp_path, accuracy + 0.01 * seed * (loss == "kd"), seed, student=student, loss=loss)
    rows = table(tmp_path)
    assert {name: row.baseline for name, row in rows.items()} == {
        **{"ce mlp:4": "ce mlp:4", "kd mlp:4": "ce mlp:4"},
        **{"ce mlp:8": "ce mlp:8", "kd mlp:8": "ce mlp:8", "kd cnn": None},
    }
    assert rows["kd mlp:4"].difference == pytest.approx(0.11)
    assert not rows["kd mlp:4"].within_noise
    assert rows["kd mlp:8"].within_noise
    assert rows["kd cnn"].within_noise
    assert "no baseline" in rows["kd cnn"].difference_text()
    named = table(tmp_path, "kd mlp:8")
    assert (named["ce mlp:8"].baseline, named["ce mlp:4"].baseline) == ("kd mlp:8", "kd mlp:4")


def test_a_baseline_is_the_nearest_run_of_its_loss(tmp_path: Path) -> None:
    for epochs in (2, 3):
        for loss in ("ce", "kd"):
            run(tmp_path, 0.5, 0, loss=loss, epochs=epochs)
    assert table(tmp_path)["kd epochs=3"].baseline == "ce epochs=3"
    assert table(tmp_path, "ce epochs=2")["kd epochs=3"].baseline == "ce epochs=2"


def compared(ours: dict[int, float], baseline: dict[int, float]) -> Comparison:
    runs = {name: {s: result(a) for s, a in of.items()} for name, of in (("ce", baseline), ("kd", ours))}
    return compare(runs, "ce")[1]


@pytest.mark.parametrize(
    ("ours", "pairs", "text"),
    [
        ({0: 0.61, 1: 0.72, 2: 0.83}, 3, "+12.00 +- 2.48*"),
        ({0: 0.51, 1: 0.59, 2: 0.71}, 3, "+0.33 +- 2.87"),
        ({0: 0.51, 1: 0.61, 2: 0.71}, 3, "+1.00 (identical)"),
        ({0: 0.5, 1: 0.6, 2: 0.7}, 3, "+0.00 (identical)"),
        ({1: 0.7, 7: 0.9}, 1, "+10.00 (one pair)"),
        ({7: 0.7, 8: 0.9}, 0, "no shared seed"),
        ({0: math.nan, 1: 0.7}, 2, "+nan +- nan"),
        ({0: math.inf, 1: math.inf}, 2, "+inf +- nan"),
    ],
)
def test_a_star_needs_an_interval_that_leaves_out_zero(ours: dict[int, float], pairs: int, text: str) -> None:
    row = compared(ours, {0: 0.5, 1: 0.6, 2: 0.7})
    assert row.num_pairs == pairs
    assert row.difference_text().strip() == text
    assert row.within_noise == (not text.endswith("*"))


def test_one_run_has_no_spread() -> None:
    assert "70.00 (-)" in format_table([compared({0: 0.7}, {0: 0.5})])


@pytest.mark.parametrize(
    ("metric", "heading", "text"),
    [("auc", "auc", "+0.1200 +- 0.0248*"), ("agreement", "agreement %", "+12.00 +- 2.48*"), ("f1", "f1", "")],
)
def test_any_measure_is_compared(metric: str, heading: str, text: str) -> None:
    """Of the test data, or with the teacher; one that a run lacks is named with the run."""
    values = {"ce": (0.5, 0.6, 0.7), "kd": (0.61, 0.72, 0.83)}
    runs = {
        name: {
            seed: {**result(0.5), "test": {"auc": value}, "against_teacher": {"agreement": value}}
            for seed, value in enumerate(of)
        }
        for name, of in values.items()
    }
    if not text:
        with pytest.raises(ValueError, match="--metric f1: a run of kd did not measure it"):
            compare({name: runs[name] for name in ("kd", "ce")}, "ce", metric)
        return
    rows = compare(runs, "ce", metric)
    assert rows[1].difference_text() == text
    assert f"{heading} (std)" in format_table(rows)


def test_a_result_that_is_not_finite_is_no_result(tmp_path: Path) -> None:
    run(tmp_path, math.nan, 0)
    with pytest.raises(ValueError, match="result.json: not readable JSON .*NaN"):
        load_runs(tmp_path)


def test_a_baseline_that_trained_longer_or_on_other_data_is_named(tmp_path: Path) -> None:
    """A method of 24 epochs beside labels of 6 has a difference that is not its loss's."""
    runs = {
        name: {0: {**result(0.9), "training": {"seed": 0, "epochs": epochs}, "data": data, "test": {"data": "test"}}}
        for name, epochs, data in (
            ("ce", 6, "digits"),
            ("kd", 24, "digits"),
            ("dkd", 6, "digits?limit=9"),
            ("rld", 6, "digits"),
        )
    }
    lines = unlike(compare(runs, "ce"), runs)
    assert lines == [
        "'kd' differs from its baseline 'ce' in more than the method: epochs 24 (baseline: 6)",
        "'dkd' differs from its baseline 'ce' in more than the method: data digits?limit=9 (baseline: digits)",
    ]
