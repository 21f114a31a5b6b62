"""Stage two, top to bottom: inputs -> answers -> checks -> loss -> student -> measures. The teacher is never loaded."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from logitbank.pipeline.fit import EpochRecord
from logitbank.pipeline.fit.checkpoint import Checkpoint
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.decisions import plan_run
from logitbank.pipeline.train_student.folder import CHECKPOINT, RunFolder, finished_result, refuse_file
from logitbank.pipeline.train_student.golden import alarm
from logitbank.pipeline.train_student.inputs import Inputs, open_inputs
from logitbank.pipeline.train_student.label_share import choose_label_share
from logitbank.pipeline.train_student.loggers.all_of import Loggers
from logitbank.pipeline.train_student.plan import Plan
from logitbank.pipeline.train_student.result import measure_student, save_student, take_tables
from logitbank.pipeline.train_student.search import search_options
from logitbank.pipeline.train_student.spec import Run

OnEpoch = Callable[[EpochRecord], None]


def train_student(
    run: Run,
    out: Path,
    *,
    inputs: Inputs | None = None,
    processes: Processes | None = None,
    wait: bool = True,
    until: int = 0,
    on_epoch: OnEpoch | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Trains one student from a store; a run that was stopped goes on from where it was last saved.

    A run that is complete is not trained again.

    Args:
        run: Every setting.
        out: The run's folder: new, empty, or of the same run.
        inputs: Store and data that are open already, or objects of one's own; by default those that ``run`` names.
        processes: Those that train the student together, each calling this with the same arguments; process 0
            writes.
        wait: For another process that trains this very run, to return its result; False raises ``InUse``.
        until: Stop after this epoch, if the run is not at its end by then, and leave what a later call goes on from;
            learning rates are those of all epochs. 0 trains to the end.
        on_epoch: Called after every epoch, those of a resumed run first.
        on_warning: Called with what the user should know: before the first step, or measured after the last.

    Returns:
        What ``result.json`` holds; nothing in processes other than 0, or of a run that is not at its end.

    Raises:
        ValueError: The store does not belong to the data, or lacks what the loss needs; ``out`` holds another run.
    """
    refuse_file(out)
    if until and run.training.dp_sgd:
        raise ValueError(
            "--search halving stops runs to go on later, and private ones (--dp-sgd) do not; search random"
        )
    warn = on_warning or _nobody
    plan = plan_run(run, out, inputs or open_inputs(run), processes or Processes())
    with closing(plan):
        if not plan.processes.first:
            return _follow(plan, out, until)
        for warning in plan.warnings:
            warn(warning)
        with RunFolder(out, plan.identity(), wait=wait) as folder:
            if folder.result is not None:
                return folder.result
            with Loggers(run.logger, out, plan.identity(), warn) as loggers:
                history: list[EpochRecord] = []

                def record(epoch: EpochRecord) -> None:
                    history.append(epoch)
                    folder.write_history(history)
                    loggers.on_epoch(epoch)
                    if on_epoch is not None:
                        on_epoch(epoch)

                before = folder.read_search(), folder.write_search
                objective, shares = choose_label_share(
                    plan.objective, run.training, plan.answer_left, plan.folds, *before
                )
                objective, searched = search_options(objective, run.training, plan.attempt, plan.folds, *before)
                checkpoint = Checkpoint(folder.checkpoint, every=run.checkpoint_every)
                model, _, learned = plan.train(objective, run.training, plan.rows, checkpoint, record, until)
                if len(history) < run.num_epochs and not run.training.is_over(history):
                    return {}
                result = measure_student(plan, model, history, objective, shares + searched, checkpoint.counts, learned)
                save_student(out, plan, model, objective)
                tables = take_tables(result)
                loggers.on_result(result)
                folder.finish(result, tables)
                for warning in alarm(result["golden"]):
                    warn(warning)
    return result


def _nobody(text: str) -> None:
    """Told of a warning, does nothing."""


def _follow(plan: Plan, out: Path, until: int) -> dict[str, Any]:
    """A process other than the first takes its share of every batch, and writes nothing."""
    if finished_result(out, plan.identity()) is None:
        checkpoint = Checkpoint(out / CHECKPOINT, every=plan.run.checkpoint_every)
        plan.train(plan.objective, plan.run.training, plan.rows, checkpoint, until=until)
    return {}
