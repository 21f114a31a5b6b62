"""The loggers of a run: none of them decides whether it is trained."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from logitbank.pipeline.fit import EpochRecord
from logitbank.pipeline.train_student.folder import LOGGED, read_json, write_json
from logitbank.pipeline.train_student.loggers.mlflow_run import MlflowRun
from logitbank.pipeline.train_student.loggers.spec import LoggerSpec, read_loggers
from logitbank.pipeline.train_student.loggers.tensorboard_files import TensorBoardFiles
from logitbank.pipeline.train_student.loggers.wandb_run import WandbRun


class Logger(Protocol):
    """What is told of a run. A resumed run tells its whole history again."""

    def on_epoch(self, record: EpochRecord) -> None:
        """After every epoch."""

    def on_result(self, result: Mapping[str, Any]) -> None:
        """At the end: what ``result.json`` holds."""

    def close(self, how: str) -> None:
        """finished, failed or stopped."""


class Loggers:
    """All loggers of a run, begun on entering.

    Args:
        texts: As ``--logger`` has them.
        out: The run's folder; ``loggers.json`` in it says under which ids the run goes on.
        settings: What decides the run's result.
        warn: Told, once, of a logger that fails while the run goes on.

    Raises:
        ValueError: A logger whose library is not installed, or that cannot begin.
    """

    def __init__(
        self, texts: Sequence[str], out: Path, settings: Mapping[str, Any], warn: Callable[[str], None]
    ) -> None:
        self._specs, self._out, self._settings, self._warn = read_loggers(texts), out, settings, warn
        self._open: dict[str, Logger] = {}
        self._state: dict[str, dict[str, Any]] = {}
        self._complete = False

    def __enter__(self) -> "Loggers":
        if not self._specs:
            return self
        self._state = _read_state(self._out / LOGGED)
        try:
            for spec in self._specs:
                self._open[str(spec)] = self._begin(spec)
            self._keep()
        except BaseException:
            self._close("failed")
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        failed = kind is not None and issubclass(kind, Exception)
        self._close("failed" if failed else "finished" if kind is None and self._complete else "stopped")

    def on_epoch(self, record: EpochRecord) -> None:
        self._tell(lambda logger: logger.on_epoch(record))

    def on_result(self, result: Mapping[str, Any]) -> None:
        self._tell(lambda logger: logger.on_result(result))
        self._complete = True

    def _begin(self, spec: LoggerSpec) -> Logger:
        state = self._state.setdefault(str(spec), {})
        try:
            if spec.kind == "tensorboard":
                return TensorBoardFiles(self._out)
            if spec.kind == "wandb":
                return WandbRun(spec, self._out.name, self._settings, state)
            return MlflowRun(spec, self._out.name, self._settings, state)
        except ImportError as error:
            raise ValueError(
                f"--logger {spec.kind} needs another package: pip install 'logitbank[{spec.kind}]' ({error})"
            ) from error
        except Exception as error:  # whatever a library raises
            raise ValueError(f"--logger {spec}: cannot begin, {_said(error)}; mend it, or leave it out") from error

    def _tell(self, tell: Callable[[Logger], None]) -> None:
        for text, logger in list(self._open.items()):
            try:
                tell(logger)
            except Exception as error:  # whatever a library raises: the run is worth more
                del self._open[text]
                self._warn(f"--logger {text} failed, {_said(error)}; training goes on without it")
        if self._open:
            self._keep()

    def _close(self, how: str) -> None:
        for text, logger in self._open.items():
            try:
                logger.close(how)
            except Exception as error:
                self._warn(f"--logger {text} failed at its end, {_said(error)}")
        self._open = {}

    def _keep(self) -> None:
        kept = {text: state for text, state in self._state.items() if state}
        if kept:
            write_json(self._out / LOGGED, kept)


def _read_state(file: Path) -> dict[str, dict[str, Any]]:
    """What earlier processes kept, by the logger's text."""
    found = read_json(file) if file.exists() else {}
    if not isinstance(found, dict) or not all(
        isinstance(each, dict) and isinstance(each.get("id"), str) and isinstance(each.get("epochs", 0), int)
        for each in found.values()
    ):
        raise ValueError(f"{file}: expected the ids under which loggers go on; remove it to begin new ones")
    return found


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
