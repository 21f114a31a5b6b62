"""A run's folder: what stands in it while the run is incomplete, and who may write to it.

run.json                 identity: all that decides the result, from the start; the same run goes on, another is refused
history.csv              one line an epoch, rewritten whole
search.json              what is measured already of "auto" options
checkpoint.safetensors   state at the end of the last epoch, or between; removed when the run is complete
student.safetensors      at the end
signature.json           at the end: what the student reads and answers
classes.csv              of the test data: rows, accuracy (recall), precision, F1 and NLL of each class
confusion.csv            of the test data: rows of each class by the class that is predicted, without the zeros
result.json              last: where it is, the run is complete
loggers.json             under which ids the run goes on in its loggers, and how many epochs they have
error.json               of a sweep: why the run failed
"""

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from logitbank.pipeline.described import completed
from logitbank.pipeline.files.strict_json import to_json
from logitbank.pipeline.fit import COLUMNS, EpochRecord, Training
from logitbank.pipeline.models import spell_model
from logitbank.pipeline.models.signature import SIGNATURE
from logitbank.stores.files import whole_file
from logitbank.stores.locks import locked

SETTINGS, RESULT, HISTORY, WEIGHTS = "run.json", "result.json", "history.csv", "student.safetensors"
CHECKPOINT, SEARCH = "checkpoint.safetensors", "search.json"
ERROR, LOGGED = "error.json", "loggers.json"
CLASSES, CONFUSION = "classes.csv", "confusion.csv"


class InUse(ValueError):
    """Another process trains the run."""


class RunFolder:
    """The folder while a run writes to it, one process at a time; a second one waits, or is refused.

    A failed run that left nothing to go on from leaves no folder.

    Args:
        path: The folder; new, empty, or of the same run.
        settings: The run's identity: everything that decides the result, fit for JSON.
        wait: False raises ``InUse`` while another process writes to it.

    Attributes:
        result: Of a run that is complete already; None while there is something to do.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, wait: bool = True) -> None:
        self._wait = wait
        self.path, self.settings = path, json.loads(to_json(settings))
        self.checkpoint = path / CHECKPOINT
        self.result: dict[str, Any] | None = None
        self._existed = False
        self._held = ExitStack()

    def __enter__(self) -> "RunFolder":
        refuse_file(self.path)
        if not self._held.enter_context(locked(self.path, wait=self._wait)):
            raise InUse(f"{self.path} is being trained by another process")
        try:
            self._existed = self.path.exists()
            self.path.mkdir(exist_ok=True)
            self.result = finished_result(self.path, self.settings)
            if self.result is not None:
                return self
            found = self._read(SETTINGS)
            found_files = {file.name for file in self.path.iterdir() if not file.name.startswith(".")}
            if found is None and found_files - {ERROR}:
                raise ValueError(f"{self.path} exists already and is not a run; choose another --out or remove it")
            if found is not None and (difference := differences(found, self.settings)):
                raise ValueError(
                    f"{self.path} is a run with other settings ({difference});"
                    " give the same ones to go on, or choose another --out"
                )
            self.write(SETTINGS, self.settings)
            (self.path / ERROR).unlink(missing_ok=True)
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        with self._held:
            begun = self.checkpoint.exists() or (self.path / SEARCH).exists()
            if kind is not None and self.result is None and not begun:
                for name in (SETTINGS, HISTORY, WEIGHTS, SIGNATURE, LOGGED, CLASSES, CONFUSION):
                    (self.path / name).unlink(missing_ok=True)
                if not self._existed and not any(self.path.iterdir()):
                    self.path.rmdir()

    def read_search(self) -> list[dict[str, Any]]:
        return self._read(SEARCH) or []

    def write_search(self, tried: Sequence[Mapping[str, Any]]) -> None:
        self.write(SEARCH, list(tried))

    def write_history(self, history: Sequence[EpochRecord]) -> None:
        with whole_file(self.path / HISTORY) as beside, beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(asdict(record) for record in history)

    def finish(self, result: Mapping[str, Any], tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Makes the run complete; the weights and the history are there already.

        Args:
            result: The document.
            tables: Lines of further files, by name; every line has the names of the first.
        """
        for name, lines in tables.items():
            with whole_file(self.path / name) as beside, beside.open("w", newline="") as file:
                table = csv.DictWriter(file, list(lines[0]))
                table.writeheader()
                table.writerows(lines)
        self.write(RESULT, result)
        self.checkpoint.unlink(missing_ok=True)
        (self.path / SEARCH).unlink(missing_ok=True)

    def write(self, name: str, content: Any) -> None:
        write_json(self.path / name, content)

    def _read(self, name: str) -> Any:
        return read_json(self.path / name) if (self.path / name).exists() else None


def read_history(path: Path) -> list[EpochRecord]:
    """The epochs of a run's folder that history.csv has so far."""
    with (path / HISTORY).open(newline="") as file:
        lines = [
            {name: float(value) for name, value in line.items() if value and name in COLUMNS}
            for line in csv.DictReader(file)
        ]
    return [EpochRecord(**{**line, "epoch": int(line["epoch"])}) for line in lines]  # type: ignore[arg-type]


def finished_result(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a complete run with these settings; None when the folder holds no complete run.

    Raises:
        ValueError: A complete run with other settings.
    """
    if not (path / RESULT).exists():
        return None
    found = read_json(path / SETTINGS) if (path / SETTINGS).exists() else {}
    if difference := differences(found, settings):
        raise ValueError(
            f"{path} exists already and is a finished run with other settings ({difference});"
            " choose another --out or remove it"
        )
    result: dict[str, Any] = read_json(path / RESULT)
    return result


def refuse_file(path: Path) -> None:
    """Raises ValueError when there is a file where a run's folder should be."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} exists already and is a file; choose another --out")


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all, and durable; ValueError when a number is not finite."""
    text = to_json(content, indent=2) + "\n"
    with whole_file(path) as beside:
        beside.write_text(text)


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError names the file, also where a number in it is not finite."""

    def refuse(number: str) -> None:
        raise ValueError(f"a number in it is {number}")

    try:
        return json.loads(path.read_text(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable JSON ({error}); remove it") from error


def differences(found: Any, given: Mapping[str, Any]) -> str:
    """The first settings in which two identities differ, as ``training.lr 0.1, here 0.05``; empty for the same run.

    What earlier versions did not record is as by default, and what they recorded as it was typed is spelled as now.
    """
    now = json.loads(to_json(given))
    a, b = flat(_as_now(found, now)), flat(now)
    names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    shown = [f"{name} {a.get(name)}, here {b.get(name)}" for name in names[:3]]
    return "; ".join(shown) + (f"; {len(names) - 3} more" if len(names) > 3 else "")


def _as_now(found: Any, now: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        return {}
    student, objective = found.get("student"), found.get("objective")
    if isinstance(objective, Mapping) and objective.get("terms") == now.get("objective", {}).get("terms"):
        objective = now["objective"]  # whose text may have been typed otherwise
    training, names = completed(Training, found.get("training")), now.get("training", {})
    if isinstance(training, Mapping):  # a student without gradients has few settings of it
        training = {name: value for name, value in training.items() if name in names or name in found["training"]}
    return {
        **{name: value for name, value in found.items() if name != "processes"},  # a run goes on in any number
        "student": spell_model(student) if isinstance(student, str) else student,
        "objective": objective,
        "training": training,
    }


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names."""
    if isinstance(settings, Mapping):
        items = [(str(name), value) for name, value in settings.items()]
    elif isinstance(settings, list) and any(isinstance(value, Mapping) for value in settings):
        items = [(str(value.get("loss", number)), value) for number, value in enumerate(settings)]
    else:
        return {prefix: settings}
    return {
        name: leaf for key, value in items for name, leaf in flat(value, f"{prefix}.{key}" if prefix else key).items()
    }
