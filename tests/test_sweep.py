"""Sweeps and comparisons: what a grid means, that nothing is done twice, that one failure stays one."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.look.report import write_report
from logitbank.pipeline.train_student.compare import compare
from logitbank.pipeline.train_student.folder import CHECKPOINT, ERROR, RESULT
from logitbank.pipeline.train_student.planned import Event, OpenedOnce, Planned, run_planned
from logitbank.pipeline.train_student.runs import choose_baselines, load_runs
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.train_student.sweep import errors_of, plan_runs, run_sweep
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from logitbank.stores.locks import locked

ROOT = Path(__file__).parents[1]
BASE = Run(store="s.zarr", training=Training(epochs=2))


def plan(out: Path, base: Run = BASE, **changes: object) -> list[Planned]:
    grid = {"losses": ["ce", "kd"], "students": ["mlp:8"], "grid": {}, "seeds": 1, **changes}
    return plan_runs(base, out, **grid)  # type: ignore[arg-type]


def test_a_grid_is_every_combination_that_a_loss_knows(tmp_path: Path) -> None:
    planned = plan(tmp_path, grid={"temperature": ["1", "4"]}, students=["mlp:8", "cnn"], seeds=2)
    names = [run.folder.name for run in planned]
    assert len(names) == len(set(names)) == 2 * 2 * (1 + 2)
    assert "ce-mlp_8-seed0" in names
    assert "kd-cnn-temperature=4-seed1" in names
    with pytest.raises(ValueError, match="unknown setting 'temprature'.*temperature"):
        plan(tmp_path, losses=["kd", "rld"], grid={"temprature": ["1"]})
    with pytest.raises(ValueError, match="temperature is a number"):
        plan(tmp_path, losses=["kd", "rld"], grid={"temperature": ["1", "hot"]})
    with pytest.raises(ValueError, match="--seeds is 0"):
        plan(tmp_path, seeds=0)


numbers = st.floats(min_value=0.01, max_value=1000.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=4), st.sampled_from(["{:r}", "{:e}", "{:.3f}", "{:+g}"]))
def test_runs_share_a_folder_when_and_only_when_they_are_the_same(values: list[float], form: str) -> None:
    texts = [repr(value) for value in values]
    texts += [f"{value:{form[2:-1]}}" for value in values if form != "{:r}" and float(f"{value:{form[2:-1]}}") > 0]
    planned = plan(Path("out"), losses=["kd"], grid={"temperature": texts}, students=["mlp:8", "mlp_8"])
    folders = {run.folder: (run.run.student, float(run.run.settings["temperature"])) for run in planned}
    assert len(folders) == len(planned)
    assert sorted(folders.values()) == sorted({(s, float(text)) for s in ("mlp:8", "mlp_8") for text in texts})


def test_the_sign_of_an_exponent_is_part_of_a_name(tmp_path: Path) -> None:
    planned = plan(tmp_path, losses=["kd"], grid={"temperature": ["1e-1", "1e+1", "10", "1e1"]})
    assert [run.folder.name for run in planned] == ["kd-mlp_8-temperature=0.1-seed0", "kd-mlp_8-temperature=10-seed0"]


@pytest.fixture(scope="module")
def store(digits: Split, plain_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "s.zarr"
    answers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views())
    cache_teacher(answers, path, encoding=Encoding(kind="topk", num_classes=10, top_k=3))
    return path


def cli(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(ROOT / "cli.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def swept(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real sweep of two processes, in which one loss fails: the store keeps the top 3 only."""
    cwd = tmp_path_factory.mktemp("sweep")
    arguments = ["sweep", "--store", str(store), "--out", "s", "--loss", "ce,kd,sel_corrected", "--student", "mlp:8"]
    arguments += ["--seeds", "2", "--jobs", "2", "--threads", "1", "--epochs", "2", "--lr", "0.1"]
    done = cli(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert "s: 4 runs trained, 0 were there, 2 failed" in done.stdout
    assert done.stderr.count("failed: sel_corrected-mlp_8-seed") == 2
    assert done.stderr.splitlines()[-1].startswith("error: 2 of 6 runs failed")
    assert done.stderr.count("mass outside the stored top 3") == 1  # a warning of both seeds of kd
    before = {path: path.stat().st_mtime_ns for path in cwd.rglob(RESULT)}
    assert len(before) == 4
    again = cli(*arguments, cwd=cwd)
    assert "s: 0 runs trained, 4 were there, 2 failed" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in cwd.rglob(RESULT)} == before
    other = cli(*arguments[:-1], "0.2", cwd=cwd)
    assert "finished run with other settings (training.lr 0.1, here 0.2)" in other.stderr
    elsewhere = [*arguments, "--workers", "2", "--memory-budget", "1", "--data", "digits?split=train"]
    elsewhere[2] = os.path.relpath(store, cwd)
    same = cli(*elsewhere, cwd=cwd)  # what does not decide the result does not count
    assert "s: 0 runs trained, 4 were there, 2 failed" in same.stdout
    assert {path: path.stat().st_mtime_ns for path in cwd.rglob(RESULT)} == before
    return cwd / "s"


def test_a_failed_run_is_recorded_and_does_not_stop_the_rest(swept: Path) -> None:
    assert list(errors_of(swept)) == ["sel_corrected-mlp_8-seed0", "sel_corrected-mlp_8-seed1"]
    assert "needs every class's logit" in json.loads((swept / "sel_corrected-mlp_8-seed0" / ERROR).read_text())["error"]


def test_compare_prints_plots_and_reports(swept: Path, store: Path, tmp_path: Path) -> None:
    methods = load_runs(swept)
    assert {name: sorted(runs) for name, runs in methods.items()} == {"ce": [0, 1], "kd": [0, 1]}
    assert choose_baselines(methods, "") == {"ce": "ce", "kd": "ce"}
    done = cli("compare", str(swept), "--plot", "p", "--html", "report.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "against 'ce'" in done.stdout
    assert "failed: sel_corrected-mlp_8-seed0" in done.stderr
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "accuracy.png",
        "cost.png",
        "curves.png",
        "reliability.png",
    ]
    page = (tmp_path / "report.html").read_text()
    # one student: two panels of methods, of seconds and bytes, of its curves; and one of calibration a method
    assert page.count("data:image/svg+xml;base64,") == 2 + 2 + 2 + 2
    heard = {method: {run.result["answer_bytes"] for run in runs.values()} for method, runs in methods.items()}
    assert heard == {"ce": {0}, "kd": {round(open_store(store).teacher().bytes_per_row(), 2)}}
    assert "http" not in page.replace("http-equiv", "")
    assert "sel_corrected-mlp_8-seed0" in page
    for said in (
        "digits?split=train",
        "digits?split=test",
        "mlp:8",
        "0.1, sgd, cosine",
        "top 3 of 10",
        "torch",
        "numpy",
    ):
        assert said in page
    assert page.count("<table") == page.count('<div class="wide"><table')  # none is wider than a narrow screen


def test_a_page_shows_names_as_they_are_written(swept: Path, tmp_path: Path) -> None:
    """Of folders, classes and errors, which may come from strangers."""
    methods = {f"<i>{name}</i> $x^2_": runs for name, runs in load_runs(swept).items()}
    results = {name: {seed: run.result for seed, run in runs.items()} for name, runs in methods.items()}
    rows = compare(results, choose_baselines(methods, next(iter(methods))))
    failed = {"<b>run</b>": "<script>alert(1)</script>"}
    assert write_report(methods, rows, tmp_path / "page.html", title="<u>&title", failed=failed)
    page = (tmp_path / "page.html").read_text()
    assert (page.count("<script"), page.count("<i>"), page.count("<u>"), page.count("<b>run")) == (1, 0, 0, 0)
    for shown in ("&lt;i&gt;", "&lt;u&gt;&amp;title", "&lt;b&gt;run", "&lt;script&gt;alert(1)"):
        assert shown in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "."), "holds no finished run"),
        (("compare", "{swept}", "--baseline", "kdd"), "did you mean 'kd'"),
        (("sweep", "--store", "none.zarr", "--out", "new", "--seed", "1"), "--seeds"),
        (("sweep", "--store", "none.zarr", "--out", "new", "--jobs", "0"), "--jobs is 0"),
        (("sweep", "--store", "none.zarr", "--out", "new", "--loss", "ce,,kd"), "names with commas"),
    ],
)
def test_mistakes(
    swept: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import cli as command_line

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cli", *(argument.replace("{swept}", str(swept)) for argument in arguments)])
    with pytest.raises(SystemExit) as exited:
        command_line.main()
    out, error = capsys.readouterr()
    assert exited.value.code == 2
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_is_killed_costs_its_run_only(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = replace(BASE, store=str(store), training=Training(epochs=200))
    planned = plan(tmp_path, base, losses=["kd"], students=["cnn"])
    short = replace(base, training=Training(epochs=1))
    planned += plan(tmp_path, short, losses=["ce"])
    events: list[Event] = []

    def kill(event: Event) -> None:
        events.append(event)
        if event.run.startswith("kd") and event.kind == "epoch" and event.epoch == 1:
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            for child in children:
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
                    time.sleep(0.2)

    run_sweep(planned, tmp_path, jobs=1, threads=1, on_event=kill)
    ended = {event.run: event for event in events if event.kind != "epoch"}
    assert ended["kd-cnn-seed0"].kind == "failed"
    assert "killed by signal 9" in ended["kd-cnn-seed0"].text
    assert ended["ce-mlp_8-seed0"].kind == "done"
    assert (tmp_path / "kd-cnn-seed0" / "checkpoint.safetensors").exists()


def test_a_run_that_another_process_trains_is_left_to_it(store: Path, tmp_path: Path) -> None:
    """As on two machines that share the folder."""
    planned = plan(tmp_path, replace(BASE, store=str(store), training=Training(epochs=1)), losses=["ce"], seeds=2)
    events: list[Event] = []
    with locked(planned[0].folder):
        run_sweep(planned, tmp_path, jobs=1, threads=1, on_event=events.append)
    assert {event.run: event.kind for event in events} == {"ce-mlp_8-seed0": "elsewhere", "ce-mlp_8-seed1": "done"}
    assert errors_of(tmp_path) == {}
    events.clear()
    run_sweep(planned, tmp_path, jobs=1, threads=1, on_event=events.append)
    assert {event.run: event.kind for event in events} == {"ce-mlp_8-seed0": "done", "ce-mlp_8-seed1": "skipped"}


def test_a_run_that_somebody_else_runs(store: Path, tmp_path: Path) -> None:
    """Every way in which one call ends; nothing is raised, and nothing is done twice."""
    base = replace(BASE, store=str(store), training=Training(epochs=1))
    runs = {each.run.loss: each for each in plan(tmp_path, base, losses=["ce", "kd", "sel_corrected"])}
    inputs, events = OpenedOnce(), list[Event]()

    def run(loss: str) -> str:
        return run_planned(runs[loss], inputs=inputs, on_event=events.append).kind

    with locked(runs["ce"].folder):
        assert run("ce") == "elsewhere"
    assert [run("ce"), run("ce"), run("kd")] == ["done", "skipped", "done"]
    assert inputs(runs["ce"].run) is inputs(runs["kd"].run)
    assert [(event.run, event.epoch) for event in events if event.kind == "epoch"] == [
        ("ce-mlp_8-seed0", 1),
        ("kd-mlp_8-seed0", 1),
    ]
    assert [run("sel_corrected"), run("sel_corrected")] == ["failed", "failed"]
    assert list(errors_of(tmp_path)) == ["sel_corrected-mlp_8-seed0"]
    none = replace(runs["kd"], run=replace(runs["kd"].run, store="none.zarr"), folder=tmp_path / "none")
    assert "none.zarr" in run_planned(none).text
    (tmp_path / "file").write_text("")
    assert run_planned(replace(none, folder=tmp_path / "file")).kind == "failed"
    assert (tmp_path / "file").read_text() == ""


def anybody_in(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# What a shell starts in the background ignores Ctrl-C, and so does all that comes of it: the tests too, perhaps.
HEEDING = (
    "import signal; from logitbank import cli; signal.signal(signal.SIGINT, signal.default_int_handler); cli.main()"
)


def test_ctrl_c_stops_every_process_and_the_same_command_goes_on(store: Path, tmp_path: Path) -> None:
    """The signal reaches the whole process group, as from a terminal."""
    arguments = ["sweep", "--store", str(store), "--loss", "kd", "--student", "cnn", "--seeds", "2", "--jobs", "2"]
    arguments += ["--epochs", "15", "--threads", "1", "--out", "sw"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HEEDING, *arguments]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    histories = [tmp_path / "sw" / f"kd-cnn-seed{seed}" / "history.csv" for seed in (0, 1)]
    while not all(path.exists() for path in histories):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "stopped; the same command goes on in sw"
    deadline = time.monotonic() + 30
    while anybody_in(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    epochs = [len(path.read_text().splitlines()) - 1 for path in histories]
    assert all(1 <= number < 15 for number in epochs)
    stopped = [(path.parent / CHECKPOINT).exists() for path in histories]
    assert all(stopped)
    done = cli(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 runs trained, 0 were there, 0 failed" in done.stdout
    assert all(len(path.read_text().splitlines()) == 16 for path in histories)
