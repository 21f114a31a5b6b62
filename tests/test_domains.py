"""Every option of every command has a domain; what lies outside, or changes nothing, is refused in one line."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from logitbank import cli
from logitbank.pipeline import domains
from logitbank.pipeline.answers.ensemble import COMBINE
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.commands.options import Checked, may_be_several
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.described import settings_of
from logitbank.pipeline.domains import Number, Numbers, Words
from logitbank.pipeline.encoding import KINDS, TAIL_RULES, Encoding
from logitbank.pipeline.exchange import FORMATS
from logitbank.pipeline.fit import SCHEDULES, Training
from logitbank.pipeline.fit.optimizers import PRECISIONS
from logitbank.pipeline.folds import STRATEGIES
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.views import Views

TRAINING = {setting.name: setting.option.domain for setting in settings_of(Training) if setting.kind is not bool}

# Texts that name something: what reads them refuses what it does not know.
READ_ELSEWHERE = {
    *(
        "data",
        "eval_data",
        "student",
        "init",
        "teacher",
        "teacher_name",
        "teachers",
        "weights",
        "name",
        "names",
        "loss",
    ),
    *("settings", "transform", "part", "rows", "device", "plot", "html", "baseline", "out"),
    *("source", "target", "stores", "store", "input_transform", "ray", "search", "logger", "run", "leave_out"),
    *("label_weight", "near", "golden", "embedding", "small", "large", "students"),
}


def parameters() -> Iterator[tuple[str, str, Any, Any]]:
    """Command, parameter, its Python type, and its domain or None."""
    for registered in cli.app.registered_commands:
        assert registered.callback is not None
        hints = get_type_hints(registered.callback, include_extras=True)
        for name, hint in hints.items():
            if name in ("return", "context"):
                continue
            kind, info = get_args(hint)
            checked = getattr(info.callback, "__self__", None)
            domain = checked.domain if isinstance(checked, Checked) else None
            yield registered.callback.__name__.replace("_", "-"), name, kind, domain


PARAMETERS = list(parameters())
NUMBERS = [(command, name, domain) for command, name, _, domain in PARAMETERS if isinstance(domain, Number | Numbers)]


def test_every_option_has_a_domain() -> None:
    several = {setting.name for setting in settings_of(Run) if may_be_several(setting)}
    for command, name, kind, domain in PARAMETERS:
        what = f"{command} {name}"
        if command == "sweep" and name in several:  # each of its values is judged by the run that it makes
            assert kind is str, what
        elif kind in (int, float, int | None):
            assert isinstance(domain, Number), what
            assert domain.whole == (kind is not float), what
        elif kind is not bool and kind is not Path:
            assert (domain is None) == (name in READ_ELSEWHERE), what
    assert len(NUMBERS) > 50


def outside(domain: Number | Numbers) -> list[str]:
    number = domain.each if isinstance(domain, Numbers) else domain
    found = [math.nan, math.inf, -math.inf]
    if number.among:
        found += [min(number.among) - 1, max(number.among) + 1]
    else:
        found += [number.low if number.open_low else number.low - 1, *number.without]
        found += [] if math.isinf(number.high) else [number.high if number.open_high else number.high + 1]
    texts = [f"{value:.0f}" if math.isfinite(value) and value == int(value) else repr(value) for value in found]
    return [*texts, "many", ""] if isinstance(domain, Number) else [*texts, "1,,2", *(f"1,{text}" for text in texts)]


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command says."""
    monkeypatch.setattr(sys, "argv", ["cli", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    said, error = capsys.readouterr()
    assert exited.value.code == 2
    assert said == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(("command", "name", "domain"), NUMBERS, ids=[f"{c}-{n}" for c, n, _ in NUMBERS])
def test_numbers_outside_are_refused_in_one_line(
    command: str,
    name: str,
    domain: Number | Numbers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    option = f"--{name.replace('_', '-')}"
    for text in outside(domain):
        assert option in call([command, f"{option}={text}"], monkeypatch, capsys), text
    assert list(tmp_path.iterdir()) == []


def test_words_are_those_of_the_tables() -> None:
    for words, table in (
        (TRAINING["schedule"], SCHEDULES),
        (domains.FOLD_STRATEGIES, STRATEGIES),
        (domains.ENCODINGS, ("auto", *KINDS)),
        (domains.PRECISIONS, PRECISIONS),
        (domains.TAIL_RULES, ("", *TAIL_RULES)),
        (domains.COMBINES, COMBINE),
        (domains.FORMATS, ("", *FORMATS.values())),
    ):
        assert isinstance(words, Words)
        assert sorted(words.words) == sorted(table)


@pytest.mark.parametrize("name", TRAINING)
def test_the_library_refuses_what_the_command_line_does(name: str) -> None:
    domain = TRAINING[name]
    wrong: list[Any] = ["?"] if isinstance(domain, Words) else [math.nan, math.inf, -1]
    for value in wrong:
        with pytest.raises(ValueError, match="expected|unknown"):
            replace(Training(), **{name: value})


STUDENT = "train-student --store s.zarr --out r"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train-teacher --out t --fold-seed 3", "--fold-seed does nothing here, because --folds is 0"),
        ("cache-teacher --out s --fold-strategy hash", "--fold-strategy does nothing"),
        ("cache-teacher --out s --view-seed 3", "--view-seed does nothing here, because --transform is none"),
        ("cache-teacher --out s --kl-budget 0.1 --bits 16", "--bits does nothing here, because --kl-budget"),
        ("cache-teacher --out s --top-k 5 --weights random-init", "--top-k does nothing here, because the encoding is"),
        ("cache-teacher --out s --encoding topk --tail-bits 2 --weights random-init", "--tail-bits does nothing"),
        ("cache-teacher --out s --encoding topk --tail-bytes 2 --weights random-init", "--tail-bytes does nothing"),
        ("cache-teacher --out s --encoding topk+tail --tail-bytes 2 --tail-bits 1", "--tail-bits does nothing"),
        ("cache-teacher --out s --teacher array:x.npy --compile", "--compile does nothing here, because array:x.npy"),
        ("cache-teacher --out s --teacher sklearn:logistic --batch-size 8", "--batch-size does nothing"),
        (f"{STUDENT} --optimizer adamw --momentum 0.5", "--momentum does nothing here, because adamw has none"),
        (f"{STUDENT} --optimizer adamw --momentum 0.9", "--momentum does nothing here"),  # given as by default
        ("sweep --store s.zarr --out r --optimizer adamw --momentum 0.9", "--momentum does nothing here"),
        (f"{STUDENT} --patience 0", "--patience does nothing here, because --select last"),
        (f"{STUDENT} --combine mean-prob --teacher-name a", "--combine does nothing here, because there is one"),
        ("train-teacher --out t --fold-seed 0", "--fold-seed does nothing here, because --folds is 0"),
        ("cache-teacher --out s --fold-strategy stratified", "--fold-strategy does nothing"),
        ("cache-teacher --out s --view-seed 0", "--view-seed does nothing here"),
        ("cache-teacher --out s --kl-budget 0.1 --bits 8", "--bits does nothing here, because --kl-budget"),
        ("cache-teacher --out s --top-k 10 --encoding dense", "--top-k does nothing here, because the encoding is"),
        ("cache-teacher --out s --predictor-rows 20000", "--predictor-rows does nothing here, because the encoding"),
        ("cache-teacher --out s --teacher sklearn:logistic --batch-size 256", "--batch-size does nothing"),
        (f"{STUDENT} --student a --student b", "--student is given 2 times; give it once"),
        ("sweep --store s.zarr --loss kd --out r --loss ce --loss mse", "--loss is given 3 times; give it once"),
        ("merge a.zarr b.zarr --out c --out d", "--out is given 2 times"),
        (f"{STUDENT} --weight-decay 0 --weight-decay-on weights", "--weight-decay-on does nothing here, because"),
        (
            f"{STUDENT} --loss mse --label-smoothing 0.1",
            "--label-smoothing does nothing here",
        ),
        (f"{STUDENT} --warmup-epochs 10 --epochs 2", "--warmup-epochs is 10 of 2 epochs"),
        (f"{STUDENT} --accumulate 40", "--accumulate is 40, but each of its passes needs 2 of the 64"),
        ("sweep --store s.zarr --out r --optimizer adamw --momentum 0.5", "--momentum does nothing"),
        ("sweep --store s.zarr --out r --select beset", "unknown select 'beset', did you mean 'best'"),
        ("verify s.zarr --seed 3", "--seed does nothing here, because no teacher runs without --recompute"),
        ("verify s.zarr --transform own.py:f", "--transform does nothing"),
        ("copy s.zarr t.zarr --folds-only --teacher-name a", "--teacher-name does nothing"),
        ("train-student --stor s.zarr --out r", "No such option: --stor"),
        ("train-student --pretrained w.pt", "; weights to start from are --init FILE"),
        ("train-student --out r", "Missing option '--store'"),
        ("nothing", "No such command 'nothing'"),
    ],
)
def test_what_would_do_nothing_is_refused(
    arguments: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in call(arguments.split(), monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def store(digits: Split, plain_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "s.zarr"
    answers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views())
    cache_teacher(answers, path, encoding=Encoding(kind="dense", num_classes=10, bits=8))
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--transform flip-crop", "--transform is flip-crop, but the store's views were made by none"),
        ("--tail bucket", "does nothing"),
        ("--combine mean-logit", "does nothing here, because there is one teacher"),
        ("--layer-decay 0.75", "--layer-decay needs a model that says what its layers are, which MLP does not"),
        ("--select best", "--select best needs validation rows"),
    ],
)
def test_what_would_do_nothing_with_this_store_is_refused(
    store: Path,
    arguments: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["train-student", "--store", str(store), "--out", "r", "--epochs", "1", *arguments.split()]
    monkeypatch.setattr(sys, "argv", ["cli", *command])
    with pytest.raises(SystemExit):
        cli.main()
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_does_not_list_the_word_of_an_option_left_out() -> None:
    with pytest.raises(ValueError, match="known: npz, parquet$"):
        Words(("", "parquet", "npz")).check("--format", "x.txt")
