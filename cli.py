"""The command line: one command per job. Parses, looks up, calls the pipeline, reports.

Heavy imports stay inside the commands, so that ``--help`` answers at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.domains import (
    AT_LEAST_ONE,
    BITS,
    COMBINES,
    COUNT,
    DECODE_RULES,
    ENCODINGS,
    FORMATS,
    NOT_NEGATIVE,
    PRECISIONS,
    SEED,
    SHARE,
    TAIL_BITS,
    TAIL_RULES,
    TEMPERATURE,
    TEMPERATURES,
    TRAINING,
    VIEWS,
    whole,
)
from pipeline.options import (
    IDLE_OF_ENCODING,
    BatchSize,
    Data,
    Device,
    Epochs,
    FirstViews,
    Folds,
    FoldSeed,
    FoldStrategy,
    GradClip,
    LearningRate,
    Mean,
    OneTeacher,
    Optimizer,
    OwnTransform,
    Seed,
    SomeTeachers,
    Std,
    Store,
    TeacherArch,
    Threads,
    ViewTransform,
    WeightDecay,
    choose_encoding,
    find_device,
    fold_plan,
    here,
    input_scaling,
    option,
    read_names,
    read_rows,
    read_settings,
    read_views,
    refuse_idle,
    run_spec,
)
from pipeline.strict_json import to_json
from pipeline.torchrun import find_rank

if TYPE_CHECKING:
    import click

UsageError: Any = typer.BadParameter.__base__  # Typer carries its own copy of click, or does not
TOGETHER = ("cache-teacher", "extend", "train-student")  # what processes that torchrun starts do together

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Offline teacher-logit cache for knowledge distillation: run the teacher once, train many students.",
)


@app.callback()
def main_options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")] = False,
) -> None:
    """Holds the options that stand before the command; ``main`` reads them."""
    rank = find_rank()
    if rank is not None and rank.count > 1 and context.invoked_subcommand not in TOGETHER:
        raise ValueError(
            f"{context.invoked_subcommand} runs in one process, torchrun started {rank.count}; call it without torchrun"
        )


@app.command()
def train_teacher(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for the weights")],
    data: Data = "digits",
    model: Annotated[str, typer.Option(help="Architecture, see `cli models`")] = "mlp",
    folds: Folds = 0,
    fold_strategy: FoldStrategy = "stratified",
    fold_seed: FoldSeed = 0,
    transform: Annotated[
        str, typer.Option(help="Augmentation, fresh each epoch: none, flip-crop, rrc+randaugment, file.py:factory")
    ] = "none",
    epochs: Epochs = 30,
    batch_size: BatchSize = 64,
    optimizer: Optimizer = "sgd",
    lr: LearningRate = 0.05,
    weight_decay: WeightDecay = 5e-4,
    grad_clip: GradClip = 5.0,
    seed: Seed = 0,
    mean: Mean = "",
    std: Std = "",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Train one teacher, or with --folds B one on the complement of each fold. A stopped run goes on where it was."""
    from tqdm import tqdm

    from pipeline.cache_teacher.train import train_teachers
    from pipeline.datasets import load_split
    from pipeline.fit import EpochRecord, Training
    from pipeline.views import allow_transform

    if not folds:
        refuse_idle(context, ("fold_strategy", "fold_seed"), "--folds is 0")
    split = load_split(data)
    training = Training(
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr,
        weight_decay=weight_decay,
        grad_clip=grad_clip,
        seed=seed,
    )
    with tqdm(total=max(folds, 1) * epochs, unit="epoch", disable=None) as bar:

        def report(fold: int, record: EpochRecord) -> None:
            bar.set_description(f"fold {fold}" if folds else "teacher")
            bar.set_postfix(loss=f"{record.loss:.4f}", accuracy=f"{record.train_accuracy:.4f}")
            bar.update()

        there: set[Path] = set()
        try:
            paths = train_teachers(
                split,
                model,
                training,
                out,
                plan=fold_plan(folds, fold_strategy, fold_seed),
                transform=allow_transform(transform),
                preprocessing=input_scaling(mean, std),
                device=find_device(device, threads),
                on_epoch=report,
                on_there=there.add,
            )
        except KeyboardInterrupt:
            bar.close()
            typer.echo(f"stopped; the same command goes on after the last whole epoch in {out}", err=True)
            raise typer.Exit(130) from None
    for path in paths:
        typer.echo(f"{_wrote(path not in there)} {path}")


@app.command()
def cache_teacher(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="The store to write, or to go on with after a kill")],
    data: Data = "digits",
    teacher: Annotated[
        str,
        typer.Option(
            help="A network of `cli models`, array:FILE.npy, export:FILE, tinyvit:DIR or sklearn:NAME?option=value"
        ),
    ] = "mlp",
    weights: Annotated[
        str, typer.Option(help="A file, a folder that train-teacher wrote, 'run/fold{fold}.pt', or random-init")
    ] = "",
    name: Annotated[str, typer.Option(help="The teacher's name in the store")] = "teacher",
    folds: Folds = 0,
    fold_strategy: FoldStrategy = "stratified",
    fold_seed: FoldSeed = 0,
    encoding: Annotated[
        str, option(ENCODINGS, help="topk, topk+tail, dense, or auto: dense up to 256 classes")
    ] = "auto",
    top_k: Annotated[int, option(AT_LEAST_ONE, help="Classes kept exactly by topk and topk+tail")] = 10,
    tail_bits: Annotated[float, option(TAIL_BITS, help="Bits a class for the tail of topk+tail, 0.1 to 4")] = 1.0,
    bits: Annotated[int, option(BITS, help="Bits a stored log-probability: 8, 16, or 32 (dense only, lossless)")] = 8,
    kl_budget: Annotated[
        float, option(NOT_NEGATIVE, help="Instead of --encoding: the smallest that keeps KL T^2 within this many nats")
    ] = 0.0,
    temperatures: Annotated[
        str, option(TEMPERATURES, help="Where fidelity is measured and --kl-budget holds")
    ] = "1,2,4",
    predictor_rows: Annotated[int, option(COUNT, help="Rows that fit the tail predictor; 0 fits none")] = 20_000,
    views: Annotated[int, option(VIEWS, help="Views of each example")] = 1,
    transform: ViewTransform = "none",
    view_seed: Annotated[int, option(SEED, help="Seed of the views")] = 0,
    batch_size: Annotated[int, option(AT_LEAST_ONE, help="Examples a forward pass")] = 256,
    precision: Annotated[str, option(PRECISIONS, help="fp32, bf16 or fp16; part of the teacher's identity")] = "fp32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Faster convolutions on many GPUs")] = False,
    compile_model: Annotated[bool, typer.Option("--compile", help="torch.compile the teacher")] = False,
    workers: Annotated[int, option(COUNT, help="Threads that read and transform ahead of the teacher")] = 1,
    part: Annotated[
        str, typer.Option(help="i/n, i from 0: write share i of n, beside other processes; torchrun sets it itself")
    ] = "",
    limit: Annotated[int, option(COUNT, help="A trial on n examples; stage two reads them with DATA?limit=n")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure a few batches, print time, size and fidelity, write nothing")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="One JSON object a line instead of a bar")] = False,
    mean: Mean = "",
    std: Std = "",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Stage one: run the teacher over every view once and write its answers to a Zarr store."""
    from pipeline.cache_teacher.build import LimitedAnswers, build_answers
    from pipeline.cache_teacher.compute import Compute
    from pipeline.cache_teacher.parts import find_part
    from pipeline.cache_teacher.report import Report
    from pipeline.cache_teacher.run import Budget, is_finished
    from pipeline.cache_teacher.run import cache_teacher as run
    from pipeline.cache_teacher.summary import leak_warning
    from pipeline.cache_teacher.trial import try_out
    from pipeline.datasets import load_split
    from pipeline.describe import describe_kind
    from pipeline.encoding import Encoding
    from pipeline.views import Views, allow_transform

    share = find_part(part)
    split = load_split(data)
    measured_at = TEMPERATURES.read("--temperatures", temperatures)
    _refuse_idle_caching(context)
    chosen = (
        Budget(kl=kl_budget, temperatures=measured_at)
        if kl_budget
        else choose_encoding(encoding, split.num_classes, top_k=top_k, tail_bits=tail_bits, bits=bits)
    )
    if isinstance(chosen, Encoding):
        refuse_idle(context, IDLE_OF_ENCODING[chosen.kind], f"the encoding is {chosen.kind}")
    if not split.is_image:
        refuse_idle(context, ("channels_last",), f"{split.spec} holds no images")
    answers = build_answers(
        split,
        teacher,
        weights,
        Views(transform=allow_transform(transform), num_views=views, seed=view_seed),
        plan=fold_plan(folds, fold_strategy, fold_seed),
        preprocessing=input_scaling(mean, std),
        batch_size=batch_size,
        device=find_device(device, threads, local=share.local),
        compute=Compute(precision=precision, channels_last=channels_last, compile=compile_model),
        workers=workers,
    )
    if limit:
        answers = LimitedAnswers(answers, limit)
    if dry_run:
        trial = try_out(answers, chosen, predictor_rows=predictor_rows, temperatures=measured_at)
        typer.echo(to_json({"event": "dry-run", **trial}) if log_json else _format_trial(trial, measured_at))
        return
    there = is_finished(out, name)
    total = len(answers.split) * views
    with Report(total, as_json=log_json, quiet=share.together and share.number > 0, say=typer.echo) as report:
        summary = run(
            answers,
            out,
            encoding=chosen,
            name=name,
            predictor_rows=predictor_rows,
            temperatures=measured_at,
            part=share,
            on_progress=report,
        )
    for warning in (*filter(None, [leak_warning(summary)]), *summary.get("warnings", ())):
        typer.echo(f"warning: {warning}", err=True)
    report.event("finished" if summary else "part-finished", out=str(out), summary=summary, already_there=there)
    if log_json:
        return
    if not summary:
        typer.echo(f"wrote part {share.number}/{share.num_parts} of {out}; other parts are still to be written")
        return
    accuracy = f", accuracy {summary['accuracy']:.4f} ({describe_kind(summary)})" if "accuracy" in summary else ""
    typer.echo(f"{_wrote(not there)} {out}: {len(answers.split)} rows x {views} views{accuracy}")


def _refuse_idle_caching(context: typer.Context) -> None:
    """Options of cache-teacher that do nothing beside the others."""
    from pipeline.cache_teacher.build import NO_WEIGHTS

    given = context.params
    if not given["folds"]:
        refuse_idle(context, ("fold_strategy", "fold_seed"), "--folds is 0")
    if given["transform"] == "none":
        refuse_idle(context, ("view_seed",), "--transform is none")
    if given["kl_budget"]:
        refuse_idle(context, ("encoding", "top_k", "tail_bits", "bits"), "--kl-budget chooses the encoding")
    if given["teacher"].startswith(NO_WEIGHTS):
        of_networks = ("batch_size", "precision", "channels_last", "compile_model", "workers", "mean", "std")
        refuse_idle(context, of_networks, f"{given['teacher']} is no network that runs here")


@app.command()
def extend(
    store: Store,
    views: Annotated[int, option(VIEWS, help="Views of the new store; those of the old one are its first")],
    out: Annotated[Path, typer.Option(help="The new store, or to go on with after a kill; the old one stays as it is")],
    data: Data = "digits",
    weights: Annotated[str, typer.Option(help="The teacher's, as in cache-teacher")] = "",
    teacher_arch: TeacherArch = "",
    transform: OwnTransform = "",
    top_k: Annotated[int, option(COUNT, help="Refused unless it is the store's: more classes need a new pass")] = 0,
    batch_size: Annotated[int, option(AT_LEAST_ONE, help="Examples a forward pass")] = 256,
    workers: Annotated[int, option(COUNT, help="Threads that read and transform ahead of the teacher")] = 1,
    part: Annotated[str, typer.Option(help="i/n, as in cache-teacher; torchrun sets it itself")] = "",
    mean: Mean = "",
    std: Std = "",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Write a store with more views of the same teacher; its seed, transform, folds and encoding are kept.

    One more teacher over the same examples: cli cache-teacher --out STORE --name NAME, with the store's own data and
    views. More classes (--top-k) or another encoding: a new pass of cli cache-teacher.
    """
    from pipeline.cache_teacher.again import answer_again
    from pipeline.cache_teacher.extend import extend_views
    from pipeline.cache_teacher.parts import find_part
    from pipeline.cache_teacher.report import Report
    from pipeline.cache_teacher.run import is_finished
    from pipeline.datasets import load_split
    from pipeline.train_student.signal import check_data
    from pipeline.views import allow_views
    from stores import open_store
    from stores.extend import extendable

    share = find_part(part)
    opened = open_store(here(store), allow_incomplete=True)
    chosen = extendable(opened, views)
    kept = chosen.encoding.get("top_k")
    if top_k and top_k != kept:
        raise ValueError(
            f"--top-k is {top_k}, the store keeps {kept or 'all'} classes a row; another number needs a new pass: cli"
            " cache-teacher"
        )
    allow_views(transform, opened.views)
    split = load_split(data)
    check_data(opened, split)
    answers = answer_again(
        opened,
        chosen,
        split,
        weights,
        architecture=teacher_arch,
        num_views=views,
        preprocessing=input_scaling(mean, std),
        batch_size=batch_size,
        device=find_device(device, threads, local=share.local),
        workers=workers,
    )
    there = is_finished(out, chosen.name)
    quiet = share.together and share.number > 0
    with Report(len(split) * views, as_json=False, quiet=quiet, say=typer.echo) as report:
        summary = extend_views(opened, answers, out, part=share, on_progress=report)
    for warning in summary.get("warnings", ()):
        typer.echo(f"warning: {warning}", err=True)
    if not summary:
        typer.echo(f"wrote part {share.number}/{share.num_parts} of {out}; other parts are still to be written")
        return
    typer.echo(f"{_wrote(not there)} {out}: {len(split)} rows x {views} views, {opened.num_views} of them taken over")


@app.command()
def assign_folds(
    out: Annotated[Path, typer.Option(help="New folder for folds.npz and folds.csv")],
    folds: Annotated[int, option(whole(2, 2**16), help="Cross-fitting folds B, at least 2")] = 5,
    data: Data = "digits",
    fold_strategy: FoldStrategy = "stratified",
    fold_seed: FoldSeed = 0,
) -> None:
    """Write which fold every example is in, for fold teachers that are trained elsewhere."""
    from pipeline.datasets import load_split
    from pipeline.folds import write_assignment

    plan = fold_plan(folds, fold_strategy, fold_seed)
    assert plan is not None
    assigned, written = write_assignment(load_split(data), plan, out)
    typer.echo(f"{_wrote(written)} {out}: {len(assigned)} rows in {folds} folds ({fold_strategy}, seed {fold_seed})")


@app.command()
def train_student(
    context: typer.Context,
    store: Annotated[Path, typer.Option(help="A store that cache-teacher wrote")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on with a stopped one")],
    data: Data = "digits",
    eval_data: Annotated[str, typer.Option(help="Evaluated once, at the end; default: the data's split=test")] = "",
    student: Annotated[str, typer.Option(help="Architecture, see `cli models`")] = "mlp:32",
    init: Annotated[str, typer.Option(help="Weights that the student starts from")] = "",
    student_bits: Annotated[
        int, option(TRAINING["weight_bits"], help="Train weights rounded to 8, 4 or 2 bits; 0: not rounded")
    ] = 0,
    loss: Annotated[str, typer.Option(help="A name of `cli losses`, or a sum such as 'kd:0.9 + ce:0.1'")] = "kd",
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
    epochs: Epochs = 30,
    batch_size: BatchSize = 64,
    accumulate: Annotated[
        int, option(TRAINING["accumulate"], help="Forward passes that share one step; --batch-size stays")
    ] = 1,
    optimizer: Optimizer = "sgd",
    lr: Annotated[float, option(TRAINING["lr"], help="Peak learning rate")] = 0.05,
    momentum: Annotated[float, option(TRAINING["momentum"], help="Nesterov momentum of sgd; 0 for none")] = 0.9,
    schedule: Annotated[str, option(TRAINING["schedule"], help="cosine, step, one-cycle or constant")] = "cosine",
    warmup_epochs: Annotated[
        float, option(TRAINING["warmup_epochs"], help="Epochs in which the learning rate rises from 0")
    ] = 0.0,
    weight_decay: WeightDecay = 5e-4,
    grad_clip: GradClip = 5.0,
    ema_decay: Annotated[
        float,
        option(TRAINING["ema_decay"], help="Keep a running average of the weights, such as 0.999; the decay warms up"),
    ] = 0.0,
    precision: Annotated[
        str, option(TRAINING["precision"], help="float32, bfloat16 or float16 (autocast)")
    ] = "float32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Memory format of images")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Run the student through torch.compile")] = False,
    val_share: Annotated[float, option(SHARE, help="Share of the training rows held out for validation")] = 0.0,
    select: Annotated[
        str, option(TRAINING["select"], help="Keep the last epoch, or the best by validation accuracy")
    ] = "last",
    seed: Seed = 0,
    memory_budget: Annotated[
        float,
        option(
            NOT_NEGATIVE,
            help="GB for the teacher's slabs, larger ones are read block by block; 0: half of what is free",
        ),
    ] = 0.0,
    workers: Annotated[int, option(COUNT, help="Threads that read and transform the next batches meanwhile")] = 1,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Curves for TensorBoard in OUT/tensorboard")
    ] = False,
    mean: Mean = "",
    std: Std = "",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Stage two: train a student from a store, without the teacher. A stopped run goes on where it was.

    Under torchrun several processes train one student: each takes its share of every batch.
    """
    import torch
    from tqdm import tqdm

    from pipeline.fit import EpochRecord, Processes
    from pipeline.train_student.folder import RESULT

    there = (out / RESULT).exists()
    processes = Processes.find()
    spec = run_spec(context, local=processes.local)
    silent = None if processes.first else True
    with tqdm(total=epochs, unit="epoch", disable=silent) as bar, processes.joined(torch.device(spec.device)):

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
        f"{'already there:' if there else 'wrote'} {out}: test accuracy {result['accuracy']:.4f},"
        f" NLL {result['nll']:.4f}, ECE {result['ece']:.4f} ({result['seconds']:.1f} s)"
    )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
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

    from pipeline.train_student.sweep import Event, plan_runs, run_sweep, total_epochs

    grid = {option: values.split(",") for option, values in read_settings(settings or []).items()}
    base = ["--store", str(store), "--out", str(out), *context.args]
    parsed: Any = _command("train-student").make_context("sweep", base)
    if "--seed" in context.args:
        raise ValueError("--seed is not an option of sweep; pass --seeds")
    spec = run_spec(parsed)
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


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(help="A sweep, or any folder with runs in it")],
    baseline: Annotated[
        str, typer.Option(help="Method that the others of its student are compared with; default: hard labels")
    ] = "",
    plot: Annotated[str, typer.Option(help="Folder for PNG files: accuracy, learning curves, reliability")] = "",
    html: Annotated[str, typer.Option(help="File for a report page that needs nothing else")] = "",
) -> None:
    """Compare runs: mean and spread over seeds, paired differences with intervals, and what each costs."""
    from pipeline.train_student.compare import compare, format_table
    from pipeline.train_student.runs import choose_baselines, load_runs
    from pipeline.train_student.sweep import errors_of

    methods = load_runs(folder)
    chosen = choose_baselines(methods, baseline)
    rows = compare({name: {s: run.result for s, run in runs.items()} for name, runs in methods.items()}, chosen)
    typer.echo(format_table(rows))
    typer.echo("differences are paired by seed, with 95 % intervals over seeds; a star marks those beyond noise")
    failed = errors_of(folder)
    for name, error in failed.items():
        typer.echo(f"failed: {name}: {error}", err=True)
    if plot or html:
        from pipeline.report import plot_runs, write_report

        if plot:
            paths, written = plot_runs(methods, rows, Path(plot))
            for path in paths:
                typer.echo(f"{_wrote(written)} {path}")
        if html:
            written = write_report(methods, rows, Path(html), title=folder.resolve().name, failed=failed)
            typer.echo(f"{_wrote(written)} {html}")


@app.command()
def inspect(
    store: Store,
    as_json: Annotated[bool, typer.Option("--json", help="For machines")] = False,
) -> None:
    """Show what a store holds: data, teachers, views, folds, encoding, fidelity, accuracy, versions."""
    from pipeline.describe import describe_store, format_description

    description = describe_store(here(store))
    typer.echo(to_json(description, indent=2) if as_json else format_description(description))


@app.command()
def verify(
    context: typer.Context,
    store: Store,
    data: Annotated[str, typer.Option(help="Also prove that the store belongs to this data")] = "",
    transform: OwnTransform = "",
    recompute: Annotated[
        int, option(COUNT, help="Also run the teacher on so many random rows and compare; needs --data and --weights")
    ] = 0,
    weights: Annotated[str, typer.Option(help="With --recompute: the teacher's, as in cache-teacher")] = "",
    teacher: Annotated[str, typer.Option(help="With --recompute: which teacher, when the store holds several")] = "",
    teacher_arch: TeacherArch = "",
    seed: Annotated[int, option(SEED, help="With --recompute: which rows")] = 0,
    mean: Mean = "",
    std: Std = "",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Check every byte and row of a store; with --data that they are the examples', with --recompute to the teacher."""
    from pipeline.describe import describe_teachers
    from stores import open_store, verify_store
    from stores.cache import fresh_store

    if recompute and not data:
        raise ValueError("--recompute needs the examples; pass --data")
    if weights and not recompute:
        raise ValueError("--weights is for --recompute; pass --recompute 64 as well")
    if not recompute:
        of_teacher = ("teacher", "teacher_arch", "seed", "mean", "std", "device", "threads")
        refuse_idle(context, of_teacher, "no teacher runs without --recompute")
    if not data:
        refuse_idle(context, ("transform",), "nothing is shown without --data")

    store = context.with_resource(fresh_store(store))
    problems = verify_store(store)
    if len(problems) == 1 and problems[0].array is None:  # no store at all
        raise ValueError(problems[0].message)
    for problem in problems:
        typer.echo(f"{problem.array or store}: {problem.message}", err=True)
    if problems:
        raise ValueError(f"{store}: {len(problems)} problems found; write the damaged blocks again or copy it anew")
    opened = open_store(store)
    if data:
        from pipeline.against_labels import label_warnings
        from pipeline.datasets import load_split
        from pipeline.train_student.signal import check_data
        from pipeline.views import allow_views

        allow_views(transform, opened.views)
        split = load_split(data)
        check_data(opened, split)
        for name in opened.teachers:
            for warning in label_warnings(opened, opened.teacher(name)):
                typer.echo(f"warning: {warning}", err=True)
        if recompute:
            from pipeline.cache_teacher.again import answer_again
            from pipeline.cache_teacher.recompute import recompute as run

            chosen = opened.teacher(teacher or None)
            answers = answer_again(
                opened,
                chosen,
                split,
                weights,
                architecture=teacher_arch,
                preprocessing=input_scaling(mean, std),
                device=find_device(device, threads),
            )
            found = run(opened, chosen, answers, recompute, seed)
            typer.echo(str(found))
            if found.problems:
                raise ValueError(
                    f"{store}: teacher {chosen.name!r} is not the one that runs here: {'; '.join(found.problems)};"
                    " get the weights and the input scaling that the store names, or do not use it"
                )
    teachers = ", ".join(describe_teachers(opened)) or "none"
    typer.echo(f"sound: {opened.num_examples} rows x {opened.num_views} views, teachers: {teachers}")


@app.command()
def copy(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A folder, .zarr.zip, s3://, gs://, hf:// or http(s)://")],
    target: Annotated[str, typer.Argument(help="A folder, .zarr.zip, s3://, gs:// or hf://")],
    views: FirstViews = "",
    teacher: SomeTeachers = "",
    folds: Annotated[
        bool, typer.Option("--folds", help="Only examples and their folds, for fold teachers of one's own; no answers")
    ] = False,
    threads: Annotated[int, option(whole(1, 1024), help="Files under way at a time")] = 16,
) -> None:
    """Copy a store, or some views and teachers of it; every checksum is compared, a stopped copy goes on."""
    from tqdm import tqdm

    from stores import copy_store
    from stores.address import shown
    from stores.fetch import CopyProgress

    if folds:
        refuse_idle(context, ("teacher",), "--folds copies no teacher")

    with tqdm(unit="file", disable=None) as bar:

        def report(progress: CopyProgress) -> None:
            bar.total = progress.num_files
            bar.set_postfix_str(f"{progress.num_bytes / 1e6:.1f} MB")
            bar.update(progress.files - bar.n)

        copied = copy_store(
            source,
            target,
            num_views=read_views(views),
            teachers=read_names("--teacher", teacher) if teacher else None,
            folds_only=folds,
            num_threads=threads,
            report=report,
        )
    for name in copied.unfinished:
        typer.echo(f"warning: teacher {name!r} is unfinished and stayed behind", err=True)
    teachers = ", ".join(copied.teachers)
    said = f"{copied.num_views} views, teachers: {teachers or 'none'}"
    typer.echo(f"{_wrote(not copied.already_there)} {shown(target)}: {said}")


@app.command()
def merge(
    stores: Annotated[list[Path], typer.Argument(help="Two stores or more, of the same views")],
    out: Annotated[Path, typer.Option(help="The store to write")],
    names: Annotated[str, typer.Option(help="New names of all teachers, store by store, with commas between")] = "",
) -> None:
    """Put the teachers of several stores into one; rows are matched by content key, never by position."""
    from pipeline.exchange import describe_examples
    from stores.merge import merge_stores

    paths = [here(store) for store in stores]
    merged = merge_stores(paths, out, describe=describe_examples, names=read_names("--names", names) if names else ())
    served = ", ".join(f"{name} ({rows} rows)" for name, rows in merged.served.items())
    typer.echo(f"{_wrote(not merged.already_there)} {out}: {merged.num_examples} examples, teachers: {served}")


@app.command()
def subset(
    store: Store,
    out: Annotated[Path, typer.Option(help="The store to write")],
    rows: Annotated[str, typer.Option(help="a:b, rows a up to but without b")] = "",
    data: Annotated[str, typer.Option(help="Instead of --rows: the examples of this data, in its order")] = "",
    teacher: SomeTeachers = "",
) -> None:
    """Write some rows of a store as a store; for whole views and teachers, copy is faster."""
    import numpy as np

    from pipeline.exchange import describe_examples
    from stores import open_store
    from stores.merge import rows_of, subset_store

    if bool(rows) == bool(data):
        raise ValueError("expected one of --rows and --data; pass --rows a:b, or --data for the examples of a set")
    path = here(store)
    if data:
        from pipeline.datasets import load_split

        split = load_split(data)
        chosen = rows_of(open_store(path), split.keys, split.labels)
    else:
        chosen = np.arange(open_store(path).num_examples)[read_rows(rows)]
    names = read_names("--teacher", teacher) if teacher else None
    made = subset_store(path, out, chosen, describe=describe_examples, teachers=names)
    typer.echo(f"{_wrote(not made.already_there)} {out}: {len(chosen)} rows")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="A store")],
    second: Annotated[Path, typer.Argument(help="Another, or the same")],
    teachers: Annotated[str, typer.Option(help="a,b: one of each; empty: the only ones")] = "",
    view: Annotated[int, option(COUNT, help="Which view, of both")] = 0,
    temperature: Annotated[float, option(TEMPERATURE, help="T of the KL divergence")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="For machines")] = False,
) -> None:
    """Compare two teachers over the examples that both answer: identity, agreement, KL, by class."""
    from pipeline.diff import diff_teachers, format_diff
    from stores import open_store

    chosen: list[str | None] = [*read_names("--teachers", teachers)] if teachers else [None, None]
    if len(chosen) != 2:
        raise ValueError(f"--teachers is {teachers!r}; expected two names, such as a,b")
    opened = [open_store(here(path)) for path in (first, second)]
    found = diff_teachers((opened[0], chosen[0]), (opened[1], chosen[1]), view=view, temperature=temperature)
    typer.echo(to_json(found, indent=2) if as_json else format_diff(found))


@app.command()
def card(
    store: Store,
    out: Annotated[
        str, typer.Option(help="The file to write, such as README.md, with pictures beside it; empty: print the text")
    ] = "",
) -> None:
    """Write a store's card: Markdown that says what it is, who answered, how well, and how to use it."""
    from pipeline.card import store_card, write_card

    if not out:
        typer.echo(store_card(here(store)))
        return
    paths, written = write_card(here(store), Path(out))
    for path in paths:
        typer.echo(f"{_wrote(written)} {path}")


@app.command()
def export(
    store: Store,
    out: Annotated[Path, typer.Argument(help="The file or folder to write: .npz, .parquet, .tar, a folder of tars")],
    to: Annotated[str, option(FORMATS, help="npz, parquet or webdataset; empty: as the ending says")] = "",
    teacher: OneTeacher = "",
    views: FirstViews = "",
    dense: Annotated[bool, typer.Option("--dense", help="All classes, also where the store holds the top K")] = False,
) -> None:
    """Write a store's log-probabilities for people without Zarr, as plain arrays, a table, or tar shards."""
    from tqdm import tqdm

    from pipeline.export import choose_format, export_store

    choose_format(out, to)
    num_views = read_views(views)
    with tqdm(unit="row", unit_scale=True, disable=None) as bar:
        values, written = export_store(
            here(store), out, to=to, teacher=teacher or None, num_views=num_views, dense=dense, on_rows=bar.update
        )
    answers = "all classes" if values.dense else f"top {values.encoding.top_k} of {values.encoding.num_classes} classes"
    typer.echo(f"{_wrote(written)} {out}: {values.store.num_examples} rows x {values.num_views} views, {answers}")


@app.command()
def decode(
    store: Store,
    out: Annotated[Path, typer.Option(help="The .npy file to write")],
    teacher: OneTeacher = "",
    view: Annotated[int, option(COUNT, help="Which view")] = 0,
    temperature: Annotated[float, option(TEMPERATURE, help="T of the softmax")] = 1.0,
    tail: Annotated[str, option(DECODE_RULES, help="Tail rule: predicted, uniform or renormalise")] = "predicted",
    rows: Annotated[str, typer.Option(help="a:b, rows a up to but without b; empty: all")] = "",
) -> None:
    """Write the dense log-probabilities that stage two would use, float32 [rows, classes], for other tools."""
    from pipeline.train_student.signal import decode_to_file
    from stores import open_store

    shape, written = decode_to_file(
        open_store(here(store)), out, teacher=teacher or None, view=view, temperature=temperature, tail=tail, rows=rows
    )
    typer.echo(f"{_wrote(written)} {out}: float32 {list(shape)}")


@app.command()
def losses(
    name: Annotated[str, typer.Argument(help="A loss; without it, the table of all")] = "",
) -> None:
    """List the losses, or show one's formula, options and reference."""
    from pipeline.train_student.losses import describe_loss, describe_losses

    typer.echo(describe_loss(name) if name else describe_losses())


@app.command()
def models() -> None:
    """List the models that can be teachers and students."""
    from pipeline.models import MODELS

    for name, model in MODELS.items():
        typer.echo(f"{name:14} {model.about}")
    typer.echo(f"{'timm:NAME':14} any classifier of timm, with its own input scaling")
    typer.echo(f"{'torchvision:NAME':14} any classifier of torchvision")
    typer.echo(f"{'file.py:factory':14} your own: a function that gives a torch.nn.Module; package.module:factory too")


@app.command()
def datasets() -> None:
    """List the data sources and how to write them."""
    from pipeline.datasets import SOURCES

    for source in SOURCES.values():
        typer.echo(f"{source.example:44} {source.about}")
    typer.echo(
        f"{'...&limit=n&shuffle=SEED':44} of any: n examples evenly spread, in a random order that stays the same"
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes")] = Path("demo-out"),
    seeds: Annotated[int, option(whole(3), help="Students a method, at least 3")] = 5,
) -> None:
    """Do the whole job on scikit-learn's handwritten digits: teachers, store, students, table and plot."""
    from pipeline.demo import run_demo

    run_demo(out, seeds=seeds, say=typer.echo)


def _wrote(written: bool) -> str:
    """How every command that writes begins its last line."""
    return "wrote" if written else "already there:"


def _format_trial(trial: dict[str, Any], temperatures: tuple[float, ...]) -> str:
    fidelity = ", ".join(f"{trial['fidelity'][f'{t:g}']:.2g} at T = {t:g}" for t in temperatures)
    return (
        f"{trial['num_rows']} rows at {trial['rows_per_second']:.0f} rows/s: about {trial['seconds']:.0f} s a process,"
        f" {trial['bytes'] / 1e6:.1f} MB; KL T^2 {fidelity}"
    )


def _command(name: str) -> "click.Command":
    group: Any = typer.main.get_command(app)
    command: click.Command = group.commands[name]
    return command


def main() -> None:
    """Entry point: an expected error is one line on stderr and exit code 2; ``--debug`` shows the traceback."""
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.Abort:
        sys.exit(130)
    except (ValueError, OSError, UsageError) as error:
        if "--debug" in sys.argv:
            raise
        message = error.format_message() if isinstance(error, UsageError) else str(error)
        typer.echo(f"error: {' '.join(message.split())}", err=True)
        sys.exit(2)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
