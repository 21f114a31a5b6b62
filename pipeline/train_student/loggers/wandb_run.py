"""A run of Weights & Biases. Files lie where the library puts them: ``wandb/`` here, or under ``WANDB_DIR``."""

import secrets
from collections.abc import Mapping
from typing import Any, cast

from logitbank.pipeline.fit import EpochRecord
from logitbank.pipeline.train_student.loggers.numbers import of_epoch, of_result
from logitbank.pipeline.train_student.loggers.spec import LoggerSpec


class WandbRun:
    """Epochs are steps; a resumed run goes on under its id with the epochs that are new.

    Args:
        spec: Project, entity, group, name, tags, mode.
        name: Of the run, unless the spec says it.
        settings: What decides the result, shown as the run's config.
        state: What an earlier process kept: the run's id, and how many epochs it has.
    """

    def __init__(self, spec: LoggerSpec, name: str, settings: Mapping[str, Any], state: dict[str, Any]) -> None:
        import wandb

        state.setdefault("id", secrets.token_hex(4))
        self._state = state
        tags, mode = spec.get("tags"), cast(Any, spec.get("mode") or None)
        self._run: Any = wandb.init(
            project=spec.get("project") or None,
            entity=spec.get("entity") or None,
            group=spec.get("group") or None,
            name=spec.get("name", name),
            tags=tags.split(",") if tags else None,
            mode=mode,
            id=state["id"],
            resume="allow",
            reinit="create_new",
            config=dict(settings),
            settings=wandb.Settings(console="off", silent=True),
        )

    def on_epoch(self, record: EpochRecord) -> None:
        if record.epoch > self._state.get("epochs", 0):
            self._run.log({"epoch": record.epoch, **of_epoch(record)}, step=record.epoch)
            self._state["epochs"] = record.epoch

    def on_result(self, result: Mapping[str, Any]) -> None:
        self._run.summary.update(of_result(result))

    def close(self, how: str) -> None:
        self._run.finish(exit_code=0 if how == "finished" else 1)
