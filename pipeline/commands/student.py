"""Stage two: one student, many students, their comparison."""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from logitbank.pipeline.commands.options import (
    Ray,
    here,
    option,
    read_names,
    refuse_idle,
    takes,
    wrote,
)
from logitbank.pipeline.domains import AT_LEAST_ONE, COMPARED, COUNT, NOT_NEGATIVE
from logitbank.pipeline.files.strict_json import to_json
from logitbank.pipeline.fit import EpochRecord
from logitbank.pipeline.train_student.recipes import SETTINGS_OF
from logitbank.pipeline.train_student.spec import Run, read_settings


def _as_json(event: str, **facts: Any) -> None:
    """One line for machines."""
    typer.echo(to_json({"event": event, **facts}))


def _say_nothing(event: str, **facts: Any) -> None:
    """People are told otherwise."""


@takes(Run, recipes=SETTINGS_OF)
def train_student(
    context: typer.Context,
    *,
    out: Annotated[Path, typer.Option(help="Output folder of the run; the same command goes on with a stopped one")],
    run: Run,
    log_json: Annotated[bool, typer.Option("--log-json", help="One JSON object a line instead of a bar")] = False,
) -> None:
    """Stage two: train a student from a store, without the teacher. A stopped run goes on where it was.

    Under torchrun several processes train one student: each takes its share of every batch.
    """
    run.objective()  # a wrong loss is answered before anything is opened
    from logitbank.pipeline.processes.bar import progress_bar
    from logitbank.pipeline.processes.device import find_device
    from logitbank.pipeline.processes.together import Processes
    from logitbank.pipeline.train_student.folder import RESULT
    from logitbank.pipeline.train_student.run import train_student

    there, processes = (out / RESULT).exists(), Processes.find()
    device = find_device(run.device, run.threads, processes.local)
    say = _as_json if log_json and processes.first else _say_nothing
    silent = log_json or not processes.first
    with progress_bar(run.num_epochs, "epoch", silent=silent) as bar, processes.joined(device):

        def report(record: EpochRecord) -> None:
            say("epoch", **asdict(record))
            validation = {} if record.val_accuracy is None else {"val": f"{record.val_accuracy:.4f}"}
            bar.set_postfix(loss=f"{record.loss:.4f}", accuracy=f"{record.train_accuracy:.4f}", **validation)
            bar.update()

        def warn(warning: str) -> None:
            say("warning", text=warning)
            bar.write(f"warning: {warning}", file=sys.stderr)

        try:
            result = train_student(run, out, processes=processes, on_epoch=report, on_warning=warn)
        except KeyboardInterrupt:
            bar.close()
            if out.exists():
                typer.echo(f"stopped; the same command goes on from where the run was last saved in {out}", err=True)
            else:
                typer.echo(
                    "stopped before the first epoch was saved, so nothing is kept; --checkpoint-every saves sooner",
                    err=True,
                )
            raise typer.Exit(130) from None
    say("finished", out=str(out), already_there=there, result=result)
    if log_json or not processes.first:
        return
    typer.echo(
        f"{wrote(not there)} {out}: test accuracy {result['accuracy']:.4f},"
        f" NLL {result['nll']:.4f}, ECE {result['ece']:.4f} ({result['seconds']:.1f} s)"
    )


@takes(Run, leave_out=("loss", "student", "settings", "seed", "threads"), recipes=SETTINGS_OF, lists="several")
def sweep(
    *,
    context: typer.Context,
    out: Annotated[
        Path, typer.Option(help="Output folder, with one for each run; the same command goes on with stopped ones")
    ],
    loss: Annotated[str, typer.Option(help="Loss, or several with commas between")] = "ce,kd",
    student: Annotated[
        str, typer.Option(help="Architecture of the student, or several with commas between")
    ] = "mlp:32",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Option of the loss, option=value,value,...: every value; may be repeated"),
    ] = None,
    search: Annotated[
        str,
        typer.Option(
            help="random:N: N draws for each loss and student, from lists and ranges: --lr 1e-4..1e-1; halving:N: the"
            " same, of which the best third by --select goes on after a ninth and after a third of the epochs"
        ),
    ] = "",
    seeds: Annotated[int, option(AT_LEAST_ONE, help="Number of seeds: a run of each for 0, 1, ...")] = 3,
    jobs: Annotated[int, option(AT_LEAST_ONE, help="Students trained at a time, each in a process of its own")] = 1,
    threads: Annotated[int, option(COUNT, help="CPU threads of each process; 0 shares the cores out")] = 0,
    ray: Ray = "",
    gpus_per_run: Annotated[
        float, option(NOT_NEGATIVE, help="With --ray: GPUs of each run, such as 0.5; 0: one where there are any")
    ] = 0.0,
    log_json: Annotated[bool, typer.Option("--log-json", help="One JSON object a line instead of a bar")] = False,
    run: Run,
    several: Mapping[str, str],
) -> None:
    """Train every loss x student x setting x seed; all other options are those of train-student.

    Options that are numbers or one of some words take several values, --lr 0.1,0.01: every one with every other.
    """
    if ray:
        refuse_idle(context, ("jobs",), "with --ray the cluster's resources say how many train at a time")
    else:
        refuse_idle(context, ("gpus_per_run",), "--ray is not given")
    losses, students = read_names("--loss", loss), read_names("--student", student)
    grid = read_settings(settings or [])
    from logitbank.pipeline.processes.bar import progress_bar
    from logitbank.pipeline.train_student.halving import find_rungs
    from logitbank.pipeline.train_student.loggers.group import grouped
    from logitbank.pipeline.train_student.planned import Event
    from logitbank.pipeline.train_student.points import drawn_points, every_point, read_search
    from logitbank.pipeline.train_student.sweep import plan_runs, run_sweep, total_epochs

    if not ray:  # else each machine has a cache of its own
        run = replace(run, store=str(here(Path(run.store))))
    chosen = read_search(search) if search else None
    if ray and chosen is not None and chosen.halving:
        raise ValueError("--search halving does not go with --ray: it chooses on one machine; search with random:N")
    points = every_point(several) if chosen is None else drawn_points(chosen, several, grid)
    every = {} if search else {name: values.split(",") for name, values in grid.items()}
    planned = plan_runs(run, out, losses=losses, students=students, grid=every, seeds=seeds, points=points)
    rungs = find_rungs(planned) if chosen is not None and chosen.halving else []
    epochs = {each.folder.name: each.run.num_epochs for each in planned}
    failed: list[Event] = []
    warned: set[str] = set()
    trained: Counter[str] = Counter()  # epochs; a run that goes on in another process tells of all of them
    say = _as_json if log_json else _say_nothing
    with progress_bar(total_epochs(planned, rungs), "epoch", silent=log_json) as bar:
        counts = {"done": 0, "skipped": 0, "failed": 0, "elsewhere": 0} | ({"ended": 0} if rungs else {})

        def report(event: Event) -> None:
            facts = asdict(event)
            say(facts.pop("kind"), **facts)
            if event.kind == "epoch":
                bar.update(max(0, event.epoch - trained[event.run]))
                trained[event.run] = max(event.epoch, trained[event.run])
                return
            if event.kind == "warning":
                if event.text not in warned:  # other seeds have the same
                    warned.add(event.text)
                    bar.write(f"warning: {event.run}: {event.text}", file=sys.stderr)
                return
            if event.kind == "paused":  # at a rung, and may go on
                return
            counts[event.kind] += 1
            if event.kind in ("skipped", "elsewhere"):
                bar.update(epochs[event.run])
            if event.kind == "failed":
                failed.append(event)
                bar.write(f"failed: {event.run}: {event.text}", file=sys.stderr)
            bar.set_postfix(runs=len(planned), **counts)

        try:
            gpus = gpus_per_run or (0.0 if run.device == "cpu" else None)
            with grouped(run.logger, out) as loggers:
                planned = [replace(each, run=replace(each.run, logger=loggers)) for each in planned]
                run_sweep(
                    *(planned, out),
                    jobs=jobs,
                    threads=threads,
                    ray=ray,
                    gpus_per_run=gpus,
                    rungs=rungs,
                    on_event=report,
                )
        except KeyboardInterrupt:
            bar.close()
            typer.echo(f"stopped; the same command goes on in {out}", err=True)
            raise typer.Exit(130) from None
    elsewhere = f", {counts['elsewhere']} are being trained elsewhere" if counts["elsewhere"] else ""
    ended = f", {counts['ended']} ended early" if rungs else ""
    said = f"{counts['done']} runs trained, {counts['skipped']} were there, {counts['failed']} failed{ended}{elsewhere}"
    say("finished", out=str(out), **counts)
    if not log_json:
        typer.echo(f"{out}: {said}")
    if failed:
        raise ValueError(f"{len(failed)} of {len(planned)} runs failed, the first: {failed[0].run}: {failed[0].text}")
    if not log_json:
        typer.echo(f"compare them: cli compare {out}")


def compare(
    folder: Annotated[Path, typer.Argument(help="A sweep, or any folder with runs in it")],
    baseline: Annotated[
        str, typer.Option(help="Method that the others of its student are compared with; default: hard labels")
    ] = "",
    metric: Annotated[
        str,
        option(COMPARED, help=f"What is compared, of the test data or with the teacher: {', '.join(COMPARED.words)}"),
    ] = "accuracy",
    plot: Annotated[
        Path | None, typer.Option(help="Folder for PNG files: accuracy, its cost, learning curves, reliability")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="File for a report page that needs nothing else")] = None,
) -> None:
    """Compare runs: mean and spread over seeds, paired differences with intervals, and what each costs."""
    from logitbank.pipeline.train_student.compare import compare, format_table, unlike
    from logitbank.pipeline.train_student.runs import choose_baselines, load_runs
    from logitbank.pipeline.train_student.sweep import ended_early, errors_of

    methods = load_runs(folder)
    chosen = choose_baselines(methods, baseline)
    results = {name: {seed: run.result for seed, run in runs.items()} for name, runs in methods.items()}
    rows = compare(results, chosen, metric)
    typer.echo(format_table(rows))
    typer.echo("differences are paired by seed, with 95 % intervals over seeds; a star marks those beyond noise")
    for line in unlike(rows, results):
        typer.echo(f"warning: {line}", err=True)
    if early := ended_early(folder):
        after = ", ".join(f"{count} after {epoch} epoch{'s' * (epoch > 1)}" for epoch, count in early.items())
        typer.echo(f"ended early, as --search halving chose, and not compared: {after}")
    failed = errors_of(folder)
    for name, error in failed.items():
        typer.echo(f"failed: {name}: {error}", err=True)
    if plot or html:
        from logitbank.pipeline.look.report import plot_runs, write_report

        if plot:
            paths, written = plot_runs(methods, rows, plot)
            for path in paths:
                typer.echo(f"{wrote(written)} {path}")
        if html:
            written = write_report(methods, rows, html, title=folder.resolve().name, failed=failed)
            typer.echo(f"{wrote(written)} {html}")
