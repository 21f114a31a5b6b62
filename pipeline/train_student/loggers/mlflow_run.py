"""A run of MLflow, on the server or in the file that it is configured for, or that ``uri`` names."""

import time
from collections.abc import Mapping
from typing import Any

from logitbank.pipeline.fit import EpochRecord
from logitbank.pipeline.train_student.folder import flat
from logitbank.pipeline.train_student.loggers.numbers import of_epoch, of_result
from logitbank.pipeline.train_student.loggers.spec import LoggerSpec

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_MOST_PARAMS, _LONGEST = 100, 500


class MlflowRun:
    """Epochs are steps; a resumed run goes on under its id with the epochs that are new.

    Args:
        spec: Experiment, uri, name, group, parent.
        name: Of the run, unless the spec says it.
        settings: What decides the result: the run's parameters.
        state: What an earlier process kept: the run's id, and how many epochs it has.
    """

    def __init__(self, spec: LoggerSpec, name: str, settings: Mapping[str, Any], state: dict[str, Any]) -> None:
        self._state, self._client = state, client_of(spec)
        if "id" in state:
            self._client.update_run(state["id"], status="RUNNING")
            return
        group, parent = spec.get("group"), spec.get("parent")
        tags = {"sweep": group} if group else {}
        tags |= {"mlflow.parentRunId": parent} if parent else {}
        state["id"] = start(self._client, spec, spec.get("name", name), tags)
        self._log_params(flat(settings))

    def _log_params(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        shown = [Param(_allowed(name), str(value)[:_LONGEST]) for name, value in params.items()]
        for start_ in range(0, len(shown), _MOST_PARAMS):
            self._client.log_batch(self._state["id"], params=shown[start_ : start_ + _MOST_PARAMS])

    def on_epoch(self, record: EpochRecord) -> None:
        if record.epoch > self._state.get("epochs", 0):
            self._log(of_epoch(record), record.epoch)
            self._state["epochs"] = record.epoch

    def on_result(self, result: Mapping[str, Any]) -> None:
        self._log(of_result(result), self._state.get("epochs", 0))

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._state["id"], metrics=[Metric(name, v, now, step) for name, v in values.items()])

    def close(self, how: str) -> None:
        self._client.set_terminated(self._state["id"], _STATUS[how])


def client_of(spec: LoggerSpec) -> Any:
    """The client of the store that a logger names."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=spec.get("uri") or None)


def start(client: Any, spec: LoggerSpec, name: str, tags: Mapping[str, str]) -> str:
    """Begins a run in the logger's experiment, which is made where it is missing; its id."""
    from mlflow.exceptions import MlflowException

    wanted = spec.get("experiment", "Default")
    experiment = client.get_experiment_by_name(wanted)
    if experiment is None:
        try:
            return start_in(client, client.create_experiment(wanted), name, tags)
        except MlflowException:  # another process was first
            experiment = client.get_experiment_by_name(wanted)
    return start_in(client, experiment.experiment_id, name, tags)


def start_in(client: Any, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    return str(client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id)


def _allowed(name: str) -> str:
    """As MLflow names parameters."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)[:250]
