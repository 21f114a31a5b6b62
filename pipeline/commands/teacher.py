"""Stage one: teachers, their answers, more views, folds."""

from pathlib import Path
from typing import Annotated, Any

import typer

from logitbank.pipeline.commands.options import (
    Data,
    Device,
    Folds,
    FoldSeed,
    FoldStrategy,
    InputTransform,
    Mean,
    OwnTransform,
    Std,
    Store,
    TeacherArch,
    Threads,
    ViewTransform,
    choose_encoding,
    find_device,
    fold_plan,
    here,
    idle_of_encoding,
    input_scaling,
    option,
    refuse_idle,
    takes,
    wrote,
)
from logitbank.pipeline.domains import (
    AT_LEAST_ONE,
    BITS,
    COUNT,
    ENCODINGS,
    NOT_NEGATIVE,
    PRECISIONS,
    SEED,
    TAIL_BITS,
    TEMPERATURES,
    VIEWS,
    whole,
)
from logitbank.pipeline.files.strict_json import to_json
from logitbank.pipeline.fit import EpochRecord, Training

# what a student's training alone has
_STUDENTS = (
    *("accumulate", "momentum", "schedule", "warmup_epochs", "layer_decay", "ema_decay", "precision", "channels_last"),
    *("compile", "weight_bits", "select", "patience"),
)


@takes(Training, "training", leave_out=_STUDENTS)
def train_teacher(
    context: typer.Context,
    training: Training,
    out: Annotated[Path, typer.Option(help="Folder for the weights")],
    data: Data = "digits",
    model: Annotated[str, typer.Option(help="Architecture, see `cli models`")] = "mlp",
    folds: Folds = 0,
    fold_strategy: FoldStrategy = "stratified",
    fold_seed: FoldSeed = 0,
    transform: Annotated[
        str, typer.Option(help="Augmentation, fresh each epoch: none, flip-crop, rrc+randaugment, file.py:factory")
    ] = "none",
    mean: Mean = "",
    std: Std = "",
    input_transform: InputTransform = "",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Train one teacher, or with --folds B one on the complement of each fold. A stopped run goes on where it was."""
    from tqdm import tqdm

    from logitbank.pipeline.cache_teacher.train import train_teachers
    from logitbank.pipeline.datasets import load_split
    from logitbank.pipeline.views import allow_transform

    if not folds:
        refuse_idle(context, ("fold_strategy", "fold_seed"), "--folds is 0")
    split = load_split(data)
    with tqdm(total=max(folds, 1) * training.epochs, unit="epoch", disable=None) as bar:

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
                preprocessing=input_scaling(mean, std, input_transform),
                device=find_device(device, threads),
                on_epoch=report,
                on_there=there.add,
            )
        except KeyboardInterrupt:
            bar.close()
            typer.echo(f"stopped; the same command goes on after the last whole epoch in {out}", err=True)
            raise typer.Exit(130) from None
    for path in paths:
        typer.echo(f"{wrote(path not in there)} {path}")


def cache_teacher(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="The store to write, or to go on with after a kill")],
    data: Data = "digits",
    teacher: Annotated[
        str,
        typer.Option(
            help="A network of `cli models`, array:FILE.npy, export:FILE.npz, tinyvit:DIR or sklearn:NAME?option=value"
        ),
    ] = "mlp",
    weights: Annotated[
        str,
        typer.Option(help="A file, FILE::PART, a folder that train-teacher wrote, 'run/fold{fold}.pt', or random-init"),
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
    precision: Annotated[
        str, option(PRECISIONS, help="float32, bfloat16 or float16; part of the teacher's identity")
    ] = "float32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Faster convolutions on many GPUs")] = False,
    compile_model: Annotated[bool, typer.Option("--compile", help="torch.compile the teacher")] = False,
    workers: Annotated[int, option(COUNT, help="Threads that read and transform ahead of the teacher")] = 1,
    part: Annotated[
        str, typer.Option(help="i/n, i from 0: this is process i of n, so they start apart; torchrun sets it itself")
    ] = "",
    limit: Annotated[int, option(COUNT, help="A trial on n examples; stage two reads them with DATA?limit=n")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure a few batches, print time, size and fidelity, write nothing")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="One JSON object a line instead of a bar")] = False,
    mean: Mean = "",
    std: Std = "",
    input_transform: InputTransform = "",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Stage one: run the teacher over every view once and write its answers to a Zarr store."""
    from logitbank.pipeline.cache_teacher.asked import Budget
    from logitbank.pipeline.cache_teacher.begin import is_finished
    from logitbank.pipeline.cache_teacher.progress import ProgressDisplay
    from logitbank.pipeline.cache_teacher.run import cache_teacher as run
    from logitbank.pipeline.cache_teacher.summary import leak_warning
    from logitbank.pipeline.cache_teacher.teachers.build import LimitedTeacher, build_teacher
    from logitbank.pipeline.cache_teacher.teachers.compute import Compute
    from logitbank.pipeline.cache_teacher.trial import try_out
    from logitbank.pipeline.datasets import load_split
    from logitbank.pipeline.encoding import Encoding
    from logitbank.pipeline.look.describe import describe_kind
    from logitbank.pipeline.processes.rank import Rank
    from logitbank.pipeline.views import Views, allow_transform

    rank = Rank.find(part)
    split = load_split(data)
    measured_at = TEMPERATURES.read("--temperatures", temperatures)
    _refuse_idle_caching(context)
    chosen = (
        Budget(kl=kl_budget, temperatures=measured_at)
        if kl_budget
        else choose_encoding(encoding, split.num_classes, top_k=top_k, tail_bits=tail_bits, bits=bits)
    )
    if isinstance(chosen, Encoding):
        refuse_idle(context, idle_of_encoding(chosen), f"the encoding is {chosen.kind}")
    if not split.is_image:
        refuse_idle(context, ("channels_last",), f"{split.spec} holds no images")
    answers = build_teacher(
        split,
        teacher,
        weights,
        Views(transform=allow_transform(transform), num_views=views, seed=view_seed),
        plan=fold_plan(folds, fold_strategy, fold_seed),
        preprocessing=input_scaling(mean, std, input_transform),
        batch_size=batch_size,
        device=find_device(device, threads, local=rank.local),
        compute=Compute(precision=precision, channels_last=channels_last, compile=compile_model),
        workers=workers,
    )
    if limit:
        answers = LimitedTeacher(answers, limit)
    if dry_run:
        trial = try_out(answers, chosen, predictor_rows=predictor_rows, temperatures=measured_at)
        typer.echo(to_json({"event": "dry-run", **trial}) if log_json else _format_trial(trial, measured_at))
        return
    there = is_finished(out, name)
    total = len(answers.split) * views
    with ProgressDisplay(total, as_json=log_json, quiet=rank.together and not rank.first, say=typer.echo) as report:
        summary = run(
            answers,
            out,
            encoding=chosen,
            name=name,
            predictor_rows=predictor_rows,
            temperatures=measured_at,
            rank=rank,
            on_progress=report,
        )
    for warning in (*filter(None, [leak_warning(summary)]), *summary.get("warnings", ())):
        typer.echo(f"warning: {warning}", err=True)
    report.event(
        "finished" if summary else "part-finished",
        out=str(out),
        summary=summary,
        rows=report.answered,
        already_there=there,
    )
    if log_json:
        return
    if not summary:
        typer.echo(_left_to_others(out, report.answered))
        return
    accuracy = f", accuracy {summary['accuracy']:.4f} ({describe_kind(summary)})" if "accuracy" in summary else ""
    typer.echo(f"{wrote(not there)} {out}: {len(answers.split)} rows x {views} views{accuracy}")


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
    input_transform: InputTransform = "",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Write a store with more views of the same teacher; its seed, transform, folds and encoding are kept.

    One more teacher over the same examples: cli cache-teacher --out STORE --name NAME, with the store's own data and
    views. More classes (--top-k) or another encoding: a new pass of cli cache-teacher.
    """
    from logitbank.pipeline.alignment import check_data
    from logitbank.pipeline.cache_teacher.begin import is_finished
    from logitbank.pipeline.cache_teacher.extend import extend_views
    from logitbank.pipeline.cache_teacher.progress import ProgressDisplay
    from logitbank.pipeline.cache_teacher.teachers.recorded import recorded_teacher
    from logitbank.pipeline.datasets import load_split
    from logitbank.pipeline.processes.rank import Rank
    from logitbank.pipeline.views import allow_views
    from logitbank.stores import open_store
    from logitbank.stores.write.extend import extendable

    rank = Rank.find(part)
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
    answers = recorded_teacher(
        opened,
        chosen,
        split,
        weights,
        architecture=teacher_arch,
        num_views=views,
        preprocessing=input_scaling(mean, std, input_transform),
        batch_size=batch_size,
        device=find_device(device, threads, local=rank.local),
        workers=workers,
    )
    there = is_finished(out, chosen.name)
    quiet = rank.together and not rank.first
    with ProgressDisplay(len(split) * views, as_json=False, quiet=quiet, say=typer.echo) as report:
        summary = extend_views(opened, answers, out, rank=rank, on_progress=report)
    for warning in summary.get("warnings", ()):
        typer.echo(f"warning: {warning}", err=True)
    if not summary:
        typer.echo(_left_to_others(out, report.answered))
        return
    typer.echo(f"{wrote(not there)} {out}: {len(split)} rows x {views} views, {opened.num_views} of them taken over")


def assign_folds(
    out: Annotated[Path, typer.Option(help="New folder for folds.npz and folds.csv")],
    folds: Annotated[int, option(whole(2, 2**16), help="Cross-fitting folds B, at least 2")] = 5,
    data: Data = "digits",
    fold_strategy: FoldStrategy = "stratified",
    fold_seed: FoldSeed = 0,
) -> None:
    """Write which fold every example is in, for fold teachers that are trained elsewhere."""
    from logitbank.pipeline.datasets import load_split
    from logitbank.pipeline.folds import write_assignment

    plan = fold_plan(folds, fold_strategy, fold_seed)
    assert plan is not None
    assigned, written = write_assignment(load_split(data), plan, out)
    typer.echo(f"{wrote(written)} {out}: {len(assigned)} rows in {folds} folds ({fold_strategy}, seed {fold_seed})")


def _left_to_others(out: Path, num_rows: int) -> str:
    """What a process says that leaves a store unfinished."""
    mine = f"wrote {num_rows} rows of {out}" if num_rows else f"nothing was left to write of {out}"
    return f"{mine}; other processes still write the rest"


def _format_trial(trial: dict[str, Any], temperatures: tuple[float, ...]) -> str:
    fidelity = ", ".join(f"{trial['fidelity'][f'{t:g}']:.2g} at T = {t:g}" for t in temperatures)
    return (
        f"{trial['num_rows']} rows at {trial['rows_per_second']:.0f} rows/s: about {trial['seconds']:.0f} s a process,"
        f" {trial['bytes'] / 1e6:.1f} MB; KL T^2 {fidelity}"
    )


def _refuse_idle_caching(context: typer.Context) -> None:
    """Options of cache-teacher that do nothing beside the others."""
    from logitbank.pipeline.cache_teacher.teachers.build import NO_WEIGHTS

    given = context.params
    if not given["folds"]:
        refuse_idle(context, ("fold_strategy", "fold_seed"), "--folds is 0")
    if given["transform"] == "none":
        refuse_idle(context, ("view_seed",), "--transform is none")
    if given["kl_budget"]:
        refuse_idle(context, ("encoding", "top_k", "tail_bits", "bits"), "--kl-budget chooses the encoding")
    if given["teacher"].startswith(NO_WEIGHTS):
        scaling = ("mean", "std", "input_transform")
        of_networks = ("batch_size", "precision", "channels_last", "compile_model", "workers", *scaling)
        refuse_idle(context, of_networks, f"{given['teacher']} is no network that runs here")
