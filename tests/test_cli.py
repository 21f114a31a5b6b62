"""The command line as a user types it: real processes, exit codes, one-line errors, frozen option names."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from docs import generate_cli
from logitbank import cli
from logitbank.pipeline.commands.renamed import RENAMED

ROOT = Path(__file__).parents[1]

OPTIONS = {
    "train-teacher": "out data teacher folds fold-strategy fold-seed transform epochs batch-size optimizer lr"
    " weight-decay weight-decay-on grad-clip seed mean std input-transform device threads",
    "cache-teacher": "out data teacher weights teacher-name folds fold-strategy fold-seed near near-share near-clusters"
    " encoding top-k tail-bits tail-bytes bits"
    " kl-budget temperature predictor-rows embedding embedding-dim label-map views transform view-seed"
    " batch-size precision channels-last compile workers part ray limit dry-run log-json mean std input-transform"
    " device threads",
    "extend": "out views data weights teacher transform top-k batch-size workers part mean std input-transform"
    " device threads",
    "assign-folds": "out folds data fold-strategy fold-seed",
    "train-student": "recipe store out data eval-data student init student-bits loss set label-smoothing teacher-name"
    " combine tail leave-out transform epochs batch-size accumulate optimizer lr momentum schedule warmup-epochs"
    " layer-decay weight-decay weight-decay-on grad-clip"
    " ema-decay drop-path random-erasing mixup precision channels-last compile val-share golden select patience seed"
    " dp-sgd dp-delta"
    " memory-budget eval-batch-size workers checkpoint-every logger log-json mean std input-transform device"
    " threads",
    "predict": "data out student batch-size workers device threads",
    "export-student": "out format data student",
    "compare": "plot html baseline metric",
    "inspect": "json",
    "verify": "data transform recompute weights teacher teacher-name seed mean std input-transform device threads",
    "copy": "views teacher-name folds-only transfers",
    "merge": "out teacher-name",
    "subset": "out slice data teacher-name",
    "diff": "teacher-name view temperature json",
    "card": "out",
    "nest": "small large teacher-name rows",
    "rank-students": "student data teacher-name seeds rows json",
    "export": "out format teacher-name views dense",
    "decode": "out teacher-name view temperature tail slice",
    "losses": "",
    "recipes": "",
    "models": "",
    "datasets": "",
    "demo": "out seeds",
}
OPTIONS["sweep"] = OPTIONS["train-student"].replace(" seed ", " ") + " seeds jobs ray gpus-per-run search"
OPTIONS["generations"] = (
    OPTIONS["train-student"].replace(" leave-out", "").replace(" logger log-json", "")
    + " rounds anchor label-weight stop-after"
)
# What an option means that several commands have: its help begins with these words in each of them. The help of all
# other options is the same wherever they stand.
MEANINGS = {
    "batch-size": "Examples of a",
    "data": "Data spec",
    "folds": "Number of cross-fitting folds",
    "format": "File format",
    "loss": "Loss",
    "out": "Output",
    "precision": "Arithmetic of the network",
    "rows": "Number of rows",
    "seed": "Seed of",
    "seeds": "Number of seeds",
    "set": "Option of the loss",
    "student": "Architecture of the student",
    "tail": "Tail rule",
    "teacher": "Architecture of the teacher",
    "teacher-name": "Name of a teacher of the store",
    "temperature": "T of the softmax",
    "threads": "CPU threads",
    "top-k": "Classes kept exactly",
    "transform": "How examples are shown",
    "views": "Number of views",
    "weights": "Weights of the teacher",
}
# Several values with commas between, where other commands take one: these, and options of a sweep.
LISTS = {("cache-teacher", "temperature")}
# A plural is a number of things, but for these; what says which thing is a singular: --views 4, --view 0.
NO_NUMBERS = {"loss", "weights"}


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(ROOT / "cli.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def fails(*arguments: str, cwd: Path) -> str:
    """Runs a command that must fail: exit code 2, nothing on stdout, one line on stderr."""
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 2, done
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert done.stdout == ""
    return lines[0]


def test_option_names_are_frozen() -> None:
    """Scripts of users depend on them: change this table only with an entry in CHANGELOG.md."""
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    found = {
        name: {option.removeprefix("--") for p in command.params for option in p.opts if option.startswith("--")}
        - {"help"}
        for name, command in group.commands.items()
    }
    assert found == {name: set(options.split()) for name, options in OPTIONS.items()}


def test_every_option_has_help() -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    for name, command in group.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.name == "help" or getattr(parameter, "help", None), f"{name} {parameter.name}"


def options() -> Iterator[tuple[str, str, Any, str]]:
    """Option without dashes, command, Python type and help."""
    types = generate_cli.kinds()
    for command, described in generate_cli.commands().items():
        for parameter in described.params:
            if parameter.opts[0].startswith("--") and parameter.name != "help":
                kind = generate_cli.given(types[command][parameter.name])
                yield parameter.opts[0].removeprefix("--"), command, kind, parameter.help


def test_a_name_means_one_thing_in_all_commands() -> None:
    """One word for one thing, and one thing for one word: another type or another meaning needs another name."""
    kinds, helps = defaultdict(set), defaultdict(set)
    for name, command, kind, text in options():
        helps[name].add(text)
        if command != "sweep" and (command, name) not in LISTS:
            kinds[name].add(kind)
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}
    assert set(MEANINGS) == {name for name, texts in helps.items() if len(texts) > 1}
    for name, meaning in MEANINGS.items():
        assert [text for text in helps[name] if not text.startswith(meaning)] == [], name


def test_a_plural_is_a_number_of_things() -> None:
    plurals = {(name, kind) for name, command, kind, _ in options() if name.endswith("s") and command != "sweep"}
    assert {name for name, kind in plurals if kind not in (int, float)} == NO_NUMBERS


def test_every_old_spelling_is_refused_somewhere_and_offered_nowhere_beside_the_new_one() -> None:
    offered = defaultdict(set)
    for name, command, _, _ in options():
        offered[command].add(f"--{name}")
    for old, now in RENAMED.items():
        assert [names for names in offered.values() if now.split()[0] in names and old not in names], old


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two commands of a newcomer: fold teachers and a store of their answers."""
    folder = tmp_path_factory.mktemp("work")
    trained = run("train-teacher", "--teacher", "mlp:32", "--folds", "3", "--epochs", "8", "--out", "t", cwd=folder)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.splitlines() == [f"wrote t/fold{fold}.safetensors" for fold in range(3)]
    cached = run("cache-teacher", "--teacher", "mlp:32", "--weights", "t", "--out", "s.zarr", cwd=folder)
    assert cached.returncode == 0, cached.stderr
    assert "(out-of-fold)" in cached.stdout
    return folder


def test_the_whole_job(work: Path) -> None:
    for seed in ("0", "1"):
        done = run(
            *("train-student", "--store", "s.zarr", "--student", "mlp:16", "--loss", "kd", "--set", "temperature=2"),
            *("--epochs", "3", "--seed", seed, "--out", f"r{seed}"),
            cwd=work,
        )
        assert done.returncode == 0, done.stderr
    result = json.loads((work / "r1" / "result.json").read_text())
    assert result["training"]["seed"] == 1
    assert result["accuracy"] > 0.8
    asked = run("predict", "r1", "--data", "digits?split=test", "--out", "p.csv", cwd=work)
    assert (asked.returncode, asked.stdout) == (0, "wrote p.csv: 360 rows, 10 classes\n"), asked.stderr
    sound = run("verify", "s.zarr", "--data", "digits", cwd=work)
    assert (sound.returncode, sound.stdout) == (0, "sound: 1437 rows x 1 views, teachers: teacher (out-of-fold)\n")


def test_inspect_tells_people_and_machines(work: Path) -> None:
    text = run("inspect", "s.zarr", cwd=work)
    assert text.returncode == 0
    assert re.search(r"accuracy 0\.9\d+, NLL .* \(out-of-fold\)", text.stdout)
    described = json.loads(run("inspect", "s.zarr", "--json", cwd=work).stdout)
    assert described["complete"] is True
    assert (described["num_examples"], described["num_views"], described["num_classes"]) == (1437, 1, 10)
    assert described["num_folds"] == 3
    assert set(described["fidelity"]) >= {"1", "4"}
    assert {"format_version", "encoding", "bytes_per_row", "teachers", "dataset"} <= described.keys()


def test_views_of_ones_own_reach_stage_two_only_when_named(work: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def factory():\n    return lambda images, seeds: images[:, ::-1].copy()\n")
    own = f"{tmp_path}/own.py:factory"
    store, out = str(tmp_path / "s.zarr"), str(tmp_path / "r")
    cached = run("cache-teacher", "--teacher", "mlp:32", "--weights", "t", "--transform", own, "--out", store, cwd=work)
    assert cached.returncode == 0, cached.stderr
    student = ("train-student", "--store", store, "--student", "mlp:8", "--epochs", "1", "--out", out)
    assert "own.py" in fails(*student, cwd=work)
    done = run(*student, "--transform", own, cwd=work)
    assert done.returncode == 0, done.stderr


def test_decode_writes_what_stage_two_hears(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "dense.npy"
    done = run("decode", "s.zarr", "--slice", "100:228", "--temperature", "2", "--out", str(out), cwd=work)
    assert done.returncode == 0, done.stderr
    log_prob = np.load(out)
    assert (log_prob.dtype, log_prob.shape) == (np.float32, (128, 10))
    np.testing.assert_allclose(np.exp(log_prob.astype(np.float64)).sum(axis=1), 1, rtol=1e-6)


def test_verify_finds_a_flipped_bit(work: Path, tmp_path: Path) -> None:
    done = run("cache-teacher", "--teacher", "mlp:32", "--weights", "t", "--out", str(tmp_path / "s.zarr"), cwd=work)
    assert done.returncode == 0, done.stderr
    chunk = tmp_path / "s.zarr" / "teachers" / "teacher" / "log_prob_code" / "c" / "0" / "1" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    damaged = run("verify", str(tmp_path / "s.zarr"))
    assert damaged.returncode == 2
    assert "log_prob" in damaged.stderr


def test_every_loss_model_and_dataset_is_listed() -> None:
    assert "redistill" in run("losses").stdout
    assert "Refined" in run("losses", "rld").stdout or "refined" in run("losses", "rld").stdout
    assert "resnet56" in run("models").stdout
    assert "torchvision:CIFAR10" in run("datasets").stdout


STUDENT = ("train-student", "--store", "s.zarr", "--out", "new")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train-teacher", "--data", "digit", "--out", "new"), "did you mean 'digits'"),
        (("train-teacher", "--teacher", "resnet21", "--out", "new"), "did you mean 'resnet"),
        (("train-teacher", "--folds", "1", "--out", "new"), "--folds is 1"),
        (("train-teacher", "--epochs", "0", "--out", "new"), "--epochs is 0"),
        (("train-teacher", "--data", "torchvision:CIFAR10?root=none", "--out", "new"), "not found in"),
        (("train-teacher", "--device", "quantum", "--out", "new"), "--device quantum"),
        (("cache-teacher", "--out", "new"), "--weights is missing"),
        (("cache-teacher", "--out", "new", "--teacher", "resnet57"), "unknown model 'resnet57', did you mean"),
        (
            ("cache-teacher", "--out", "new", "--teacher", "RandomForestClassifier"),
            "scikit-learn is sklearn:RandomForestClassifier",
        ),
        (("cache-teacher", "--teacher", "array:none.npy", "--out", "new"), "not a readable .npy"),
        (("decode", "s.zarr", "--view", "1", "--out", "new.npy"), "--view is 1; expected 0 to 0"),
        (("decode", "s.zarr", "--slice", "5", "--out", "new.npy"), "expected a:b"),
        (("decode", "s.zarr", "--out", "new.zarr.zip"), "a .npy file is written"),
        (("card", "s.zarr", "--out", "new.zarr.zip"), "a card is Markdown"),
        (("cache-teacher", "--weights", "none", "--out", "new"), "no weights at"),
        (("cache-teacher", "--weights", "t", "--out", "new"), "pass --teacher mlp:32"),
        (("cache-teacher", "--weights", "t", "--teacher", "mlp:32", "--out", "new", "--mean", "1"), "belong together"),
        (("cache-teacher", "--weights", "t", "--teacher", "mlp:32", "--out", "new", "--views", "2"), "one view only"),
        (
            (
                "cache-teacher",
                "--weights",
                "t",
                "--teacher",
                "mlp:32",
                "--out",
                "new",
                "--encoding",
                "topk",
                "--top-k",
                "11",
            ),
            "1 to 10",
        ),
        (
            ("cache-teacher", "--weights", "t", "--teacher", "mlp:32", "--out", "new", "--data", "digits?split=test"),
            "cross-fit",
        ),
        (
            ("cache-teacher", "--weights", "t/fold0.safetensors", "--teacher", "mlp:32", "--out", "new"),
            "left out fold 0",
        ),
        ((*STUDENT, "--loss", "kdd"), "kd"),
        ((*STUDENT, "--tensorboard"), "--tensorboard is now --logger tensorboard"),
        ((*STUDENT, "--teacher", "a"), "--teacher is now --teacher-name"),
        (("train-teacher", "--model", "mlp", "--out", "new"), "--model is now --teacher; write that"),
        (("cache-teacher", "--name=a", "--out", "new"), "--name is now --teacher-name"),
        (("extend", "s.zarr", "--teacher-arch", "mlp", "--out", "new"), "--teacher-arch is now --teacher; write that"),
        (
            ("verify", "s.zarr", "--data", "digits", "--recompute", "8", "--weights", "t", "--teacher", "teacher"),
            "'teacher', a teacher of the store and no architecture; write --teacher-name teacher",
        ),
        (("merge", "s.zarr", "s.zarr", "--names", "a,b", "--out", "new"), "--names is now --teacher-name"),
        (("diff", "s.zarr", "s.zarr", "--teachers", "a,b"), "--teachers is now --teacher-name"),
        (("rank-students", "s.zarr", "--students", "mlp:8"), "--students is now --student; write that"),
        (("cache-teacher", "--temperatures", "1,2", "--out", "new"), "--temperatures is now --temperature"),
        (("copy", "s.zarr", "new", "--folds"), "--folds is now --folds-only"),
        (("copy", "s.zarr", "new", "--threads", "4"), "--threads is now --transfers"),
        (("copy", "s.zarr", "new", "--views", "0-3"), "it is now a number of views: write --views 4"),
        (("cache-teacher", "--views", "0-3", "--out", "new"), "it is now a number of views: write --views 4"),
        (("export", "s.zarr", "--out", "new.npz", "--views=0"), "it is now a number of views: write --views 1"),
        (("export", "s.zarr", "--out", "new.npz", "--views", "2"), "--views asks for 2 views"),
        (("export", "s.zarr", "new.npz"), "'--out'"),
        (("export", "s.zarr", "--out", "new.npz", "--to", "npz"), "--to is now --format"),
        (("decode", "s.zarr", "--rows", "0:5", "--out", "new.npy"), "--rows is now --slice"),
        (("subset", "s.zarr", "--rows", "0:5", "--out", "new"), "--rows is now --slice"),
        ((*STUDENT, "--logger", "wandbb"), "did you mean 'wandb'"),
        ((*STUDENT, "--set", "temperature"), "expected option=value"),
        ((*STUDENT, "--set", "temprature=4"), "temperature"),
        ((*STUDENT, "--data", "digits?split=test"), "store was written for digits train"),
        ((*STUDENT, "--student", "resnt20"), "did you mean 'resnet20'"),
        ((*STUDENT, "--teacher-name", "nobody"), "nobody"),
        ((*STUDENT, "--tail", "long"), "long"),
        ((*STUDENT, "--lr", "0.1,0.01"), "--lr is '0.1,0.01'; expected one value; cli sweep takes several"),
        ((*STUDENT, "--epochs", "many"), "--epochs"),
        (("train-student", "--store", "none.zarr", "--out", "new"), "none.zarr"),
        (("inspect", "t"), "t"),
        (("verify", "none.zarr"), "none.zarr"),
        (("demo", "--seeds", "2"), "at least 3"),
        (("losses", "rldd"), "rld"),
    ],
)
def test_a_mistake_is_answered_in_one_line_and_leaves_nothing(
    work: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, through the entry point of the console script."""
    before = sorted(path.name for path in work.iterdir())
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "argv", ["cli", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    out, error = capsys.readouterr()
    assert exited.value.code == 2
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(path.name for path in work.iterdir()) == before


def test_debug_shows_the_traceback(work: Path) -> None:
    done = run("--debug", "train-teacher", "--data", "digit", "--out", "new", cwd=work)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_labels_that_differ_are_refused(work: Path, tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 4
    np.savez(tmp_path / "a.npz", x=x, y=y)
    y[3] = 1
    np.savez(tmp_path / "b.npz", x=x, y=y, x_test=x, y_test=y)
    for arguments in (
        ("train-teacher", "--data", "npz:a.npz", "--teacher", "linear", "--epochs", "1", "--out", "t"),
        ("cache-teacher", "--data", "npz:a.npz", "--teacher", "linear", "--weights", "t", "--out", "s.zarr"),
    ):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    message = fails("train-student", "--store", "s.zarr", "--data", "npz:b.npz", "--out", "r", cwd=tmp_path)
    assert "other labels on 1 examples" in message
