"""Students that teach the next students."""

from pathlib import Path
from typing import Annotated

import typer

from logitbank.pipeline.commands.options import takes
from logitbank.pipeline.generations.settings import Generations
from logitbank.pipeline.train_student.recipes import SETTINGS_OF
from logitbank.pipeline.train_student.spec import Run


@takes(Generations, "generations")
@takes(Run, leave_out=("leave_out", "logger"), recipes=SETTINGS_OF)
def generations(
    *,
    out: Annotated[Path, typer.Option(help="Output folder of the rounds; the same command goes on with stopped ones")],
    generations: Generations,
    run: Run,
) -> None:
    """Students that teach the next students: train, cache out of fold, train on that, for some rounds.

    The store is one of fold teachers (cache-teacher --folds); all other options are those of train-student.
    """
    run.objective()  # a wrong loss is answered before anything is opened
    from logitbank.pipeline.generations.rounds import train_generations

    try:
        rounds = train_generations(run, out, generations, on_step=lambda text: typer.echo(text, err=True))
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on in {out}", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{'round':>5} {'test acc':>8} {'NLL':>7} {'fold acc':>8} {'NLL':>7} {'KL from first':>13} label weight")
    for each in rounds:
        measured = [each.accuracy, each.nll, each.fold_accuracy, each.fold_nll]
        numbers = " ".join(
            f"{'-' if value is None else format(value, '.4f'):>{width}}"
            for value, width in zip(measured, (8, 7, 8, 7), strict=True)
        )
        weight = "-" if each.label_weight is None else f"{each.label_weight:.3f}"
        typer.echo(f"{each.round:>5} {numbers} {each.kl_from_first:>13.4f} {weight}")
    last = rounds[-1].accuracy
    typer.echo(f"wrote {out}" if last is None else f"wrote {out}: accuracy of the last student {last:.4f}")
    if len(rounds) < generations.rounds:
        typer.echo(f"ended after {len(rounds)} rounds: the out-of-fold NLL was no better for {generations.stop_after}")
