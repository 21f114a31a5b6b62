"""Stage one: teachers and folds."""

from pathlib import Path
from typing import Annotated

import typer

from logitbank.pipeline.cache_teacher.settings import Folding
from logitbank.pipeline.commands.options import (
    Data,
    Device,
    FoldSeed,
    FoldStrategy,
    InputTransform,
    Mean,
    Std,
    Threads,
    input_scaling,
    option,
    takes,
    wrote,
)
from logitbank.pipeline.domains import whole
from logitbank.pipeline.fit import EpochRecord, Training
from logitbank.pipeline.processes.device import find_device

# what a student's training alone has
_STUDENTS = (
    *("accumulate", "momentum", "schedule", "warmup_epochs", "layer_decay", "ema_decay", "precision", "channels_last"),
    *("compile", "weight_bits", "select", "patience", "drop_path", "random_erasing", "mixup", "dp_sgd", "dp_delta"),
)


@takes(Folding, "folding")
@takes(Training, "training", leave_out=_STUDENTS)
def train_teacher(
    *,
    out: Annotated[Path, typer.Option(help="Output folder, for the weights")],
    data: Data = "digits",
    teacher: Annotated[str, typer.Option(help="Architecture of the teacher, see `cli models`")] = "mlp",
    folding: Folding,
    transform: Annotated[
        str,
        typer.Option(help="How examples are shown, anew each epoch: none, flip-crop, rrc+randaugment, file.py:factory"),
    ] = "none",
    training: Training,
    mean: Mean = "",
    std: Std = "",
    input_transform: InputTransform = "",
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Train one teacher, or with --folds one for each fold, on the other folds. A stopped run goes on where it was."""
    from logitbank.pipeline.cache_teacher.train import train_teachers
    from logitbank.pipeline.datasets import load_split
    from logitbank.pipeline.processes.bar import progress_bar
    from logitbank.pipeline.views import allow_transform

    split = load_split(data)
    with progress_bar(max(folding.folds, 1) * training.epochs, "epoch") as bar:

        def report(fold: int, record: EpochRecord) -> None:
            bar.set_description(f"fold {fold}" if folding.folds else "teacher")
            bar.set_postfix(loss=f"{record.loss:.4f}", accuracy=f"{record.train_accuracy:.4f}")
            bar.update()

        there: set[Path] = set()
        try:
            paths = train_teachers(
                split,
                teacher,
                training,
                out,
                plan=folding.plan(),
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


def assign_folds(
    out: Annotated[Path, typer.Option(help="Output folder, a new one, for folds.npz and folds.csv")],
    folds: Annotated[int, option(whole(2, 2**16), help="Number of cross-fitting folds, at least 2")] = 5,
    data: Data = "digits",
    fold_strategy: FoldStrategy = "stratified",
    fold_seed: FoldSeed = 0,
) -> None:
    """Write which fold every example is in, for fold teachers that are trained elsewhere."""
    from logitbank.pipeline.datasets import load_split
    from logitbank.pipeline.folds import FoldPlan, write_assignment

    plan = FoldPlan(num_folds=folds, strategy=fold_strategy, seed=fold_seed)
    assigned, written = write_assignment(load_split(data), plan, out)
    typer.echo(f"{wrote(written)} {out}: {len(assigned)} rows in {folds} folds ({fold_strategy}, seed {fold_seed})")
