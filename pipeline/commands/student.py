"""Stage two: one student, many students, their comparison."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from logitbank.pipeline.commands.options import (
    Data,
    Device,
    InputTransform,
    Mean,
    OwnTransform,
    Std,
    Threads,
    option,
    read_names,
    read_settings,
    run_spec,
    takes,
    wrote,
)
from logitbank.pipeline.described import from_values
from logitbank.pipeline.domains import (
    AT_LEAST_ONE,
    COMBINES,
    COMPARED,
    COUNT,
    NOT_NEGATIVE,
    SHARE,
    TAIL_RULES,
)
from logitbank.pipeline.fit import EpochRecord, Training

# sweep takes every option of train-student beside its own
_STUDENT = typer.Typer()


@_STUDENT.command()
@takes(Training, "training")
def train_student(
    context: typer.Context,
    training: Training,
    store: Annotated[Path, typer.Option(help="A store that cache-teacher wrote")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on with a stopped one")],
    data: Data = "digits",
    eval_data: Annotated[str, typer.Option(help="Evaluated once, at the end; default: the data's split=test")] = "",
    student: Annotated[str, typer.Option(help="Architecture, see `cli models`")] = "mlp:32",
    init: Annotated[str, typer.Option(help="Weights that the student starts from")] = "",
    loss: Annotated[
        str, typer.Option(help="A name of `cli losses`, your own file.py:function, or a sum such as 'kd:0.9 + ce:0.1'")
    ] = "kd",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the loss, option=value; may be repeated")
    ] = None,
    label_smoothing: Annotated[float, option(SHARE, help="Of the loss's hard-label part, 0 to 1")] = 0.0,
    teacher: Annotated[str, typer.Option(help="Which teacher of the store, or several: a,b or a:2,b:1")] = "",
    combine: Annotated[
        str, option(COMBINES, help="How several teachers become one: mean-prob or mean-logit")
    ] = "mean-prob",
    tail: Annotated[str, option(TAIL_RULES, help="Tail rule: predicted, bucket, uniform or renormalise")] = "predicted",
    transform: OwnTransform = "",
    val_share: Annotated[float, option(SHARE, help="Share of the training rows held out for validation")] = 0.0,
    memory_budget: Annotated[
        float,
        option(
            NOT_NEGATIVE,
            help="GB for the teacher's slabs, larger ones are read block by block; 0: half of the machine's memory",
        ),
    ] = 0.0,
    workers: Annotated[int, option(COUNT, help="Threads that read and transform the next batches meanwhile")] = 1,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Curves for TensorBoard in OUT/tensorboard")
    ] = False,
    mean: Mean = "",
    std: Std = "",
    input_transform: InputTransform = "",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Stage two: train a student from a store, without the teacher. A stopped run goes on where it was.

    Under torchrun several processes train one student: each takes its share of every batch.
    """
    import torch
    from tqdm import tqdm

    from logitbank.pipeline.processes.together import Processes
    from logitbank.pipeline.train_student.folder import RESULT

    there = (out / RESULT).exists()
    processes = Processes.find()
    spec = run_spec(context, training, local=processes.local)
    silent = None if processes.first else True
    with tqdm(total=training.epochs, unit="epoch", disable=silent) as bar, processes.joined(torch.device(spec.device)):

        def report(record: EpochRecord) -> None:
            validation = {} if record.val_accuracy is None else {"val": f"{record.val_accuracy:.4f}"}
            bar.set_postfix(loss=f"{record.loss:.4f}", accuracy=f"{record.train_accuracy:.4f}", **validation)
            bar.update()

        def warn(warning: str) -> None:
            bar.write(f"warning: {warning}", file=sys.stderr)

        try:
            result = spec.run(out, spec.open(), report, processes, warn)
        except KeyboardInterrupt:
            bar.close()
            typer.echo(f"stopped; the same command goes on after the last whole epoch in {out}", err=True)
            raise typer.Exit(130) from None
    if not processes.first:
        return
    typer.echo(
        f"{wrote(not there)} {out}: test accuracy {result['accuracy']:.4f},"
        f" NLL {result['nll']:.4f}, ECE {result['ece']:.4f} ({result['seconds']:.1f} s)"
    )


def sweep(
    context: typer.Context,
    store: Annotated[Path, typer.Option(help="A store that cache-teacher wrote")],
    out: Annotated[Path, typer.Option(help="Folder of the sweep: one folder a run; the same command goes on")],
    loss: Annotated[str, typer.Option(help="Losses with commas between")] = "ce,kd",
    student: Annotated[str, typer.Option(help="Students with commas between")] = "mlp:32",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="option=value,value,...: every value; may be repeated")
    ] = None,
    seeds: Annotated[int, option(AT_LEAST_ONE, help="Runs of each, with seeds 0, 1, ...")] = 3,
    jobs: Annotated[int, option(AT_LEAST_ONE, help="Students trained at a time, each in a process of its own")] = 1,
    threads: Annotated[int, option(COUNT, help="CPU threads of each process; 0 shares the cores out")] = 0,
) -> None:
    """Train every loss x student x setting x seed. Takes all other options of train-student as well."""
    from tqdm import tqdm

    from logitbank.pipeline.train_student.sweep import Event, plan_runs, run_sweep, total_epochs

    grid = {option: values.split(",") for option, values in read_settings(settings or []).items()}
    base = ["--store", str(store), "--out", str(out), *context.args]
    parsed: Any = typer.main.get_command(_STUDENT).make_context("sweep", base)
    if "--seed" in context.args:
        raise ValueError("--seed is not an option of sweep; pass --seeds")
    spec = run_spec(parsed, from_values(Training, parsed.params))
    planned = plan_runs(
        spec, out, losses=read_names("--loss", loss), students=read_names("--student", student), grid=grid, seeds=seeds
    )
    failed: list[Event] = []
    warned: set[str] = set()
    with tqdm(total=total_epochs(planned), unit="epoch", disable=None) as bar:
        counts = {"done": 0, "skipped": 0, "failed": 0}

        def report(event: Event) -> None:
            if event.kind == "epoch":
                bar.update()
                return
            if event.kind == "warning":
                if event.text not in warned:  # other seeds have the same
                    warned.add(event.text)
                    bar.write(f"warning: {event.run}: {event.text}", file=sys.stderr)
                return
            counts[event.kind] += 1
            if event.kind == "skipped":
                bar.update(spec.training.epochs)
            if event.kind == "failed":
                failed.append(event)
                bar.write(f"failed: {event.run}: {event.text}", file=sys.stderr)
            bar.set_postfix(runs=len(planned), **counts)

        try:
            run_sweep(planned, out, jobs=jobs, threads=threads, on_event=report)
        except KeyboardInterrupt:
            bar.close()
            typer.echo(f"stopped; the same command goes on in {out}", err=True)
            raise typer.Exit(130) from None
    typer.echo(f"{out}: {counts['done']} runs trained, {counts['skipped']} were there, {counts['failed']} failed")
    if failed:
        raise ValueError(f"{len(failed)} of {len(planned)} runs failed, the first: {failed[0].run}: {failed[0].text}")
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
    plot: Annotated[str, typer.Option(help="Folder for PNG files: accuracy, learning curves, reliability")] = "",
    html: Annotated[str, typer.Option(help="File for a report page that needs nothing else")] = "",
) -> None:
    """Compare runs: mean and spread over seeds, paired differences with intervals, and what each costs."""
    from logitbank.pipeline.train_student.compare import compare, format_table
    from logitbank.pipeline.train_student.runs import choose_baselines, load_runs
    from logitbank.pipeline.train_student.sweep import errors_of

    methods = load_runs(folder)
    chosen = choose_baselines(methods, baseline)
    rows = compare({name: {s: run.result for s, run in runs.items()} for name, runs in methods.items()}, chosen, metric)
    typer.echo(format_table(rows))
    typer.echo("differences are paired by seed, with 95 % intervals over seeds; a star marks those beyond noise")
    failed = errors_of(folder)
    for name, error in failed.items():
        typer.echo(f"failed: {name}: {error}", err=True)
    if plot or html:
        from logitbank.pipeline.look.report import plot_runs, write_report

        if plot:
            paths, written = plot_runs(methods, rows, Path(plot))
            for path in paths:
                typer.echo(f"{wrote(written)} {path}")
        if html:
            written = write_report(methods, rows, Path(html), title=folder.resolve().name, failed=failed)
            typer.echo(f"{wrote(written)} {html}")


SETTINGS: dict[Callable[..., None], dict[str, Any]] = {
    sweep: {"allow_extra_args": True, "ignore_unknown_options": True}
}
