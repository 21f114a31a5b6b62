"""What is done with a trained student."""

from pathlib import Path
from typing import Annotated

import typer

from logitbank.pipeline.commands.options import Device, Student, Threads, option, wrote
from logitbank.pipeline.domains import AT_LEAST_ONE, COUNT, STUDENT_FORMATS
from logitbank.pipeline.fit.training import EVAL_BATCH_SIZE

RunFolder = Annotated[Path, typer.Argument(help="Folder of a finished run, as train-student or sweep wrote it")]


def export_student(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Output folder")],
    to: Annotated[str, option(STUDENT_FORMATS, "--format", help="File format: torch-export, onnx or safetensors")],
    data: Annotated[str, typer.Option(help="Data spec whose first rows are compared too; empty: random inputs")] = "",
    student: Student = "",
) -> None:
    """Write a student for other programs, load it again there, and compare its answers with the student's.

    The network reads scaled inputs and answers logits; export.json says how inputs are scaled, and names the classes.
    """
    from logitbank.pipeline.use_student.export import export_student
    from logitbank.pipeline.use_student.load import load_student

    done = export_student(load_student(run, student=student, device="cpu"), out, to=to, data=data)
    found = f"largest difference of a logit {done.difference:.1e} on {done.checked} inputs"
    typer.echo(f"{wrote(done.written)} {out}: {to}, {found}")


def predict(
    run: RunFolder,
    data: Annotated[str, typer.Option(help="Data spec of the new data; its labels, if any, are not looked at")],
    out: Annotated[Path, typer.Option(help="Output file, .csv or .parquet")],
    student: Student = "",
    batch_size: Annotated[int, option(AT_LEAST_ONE, help="Examples of a forward pass")] = EVAL_BATCH_SIZE,
    workers: Annotated[int, option(COUNT, help="Threads that read and transform the next batches")] = 1,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Write a student's predictions for new data: a row each with its key, the predicted class, all probabilities.

    Every row of a table, every picture below a folder. Inputs are read as in training; memory does not grow with rows.
    """
    from tqdm import tqdm

    from logitbank.pipeline.processes.device import find_device
    from logitbank.pipeline.use_student.load import load_student
    from logitbank.pipeline.use_student.predict import write_predictions

    loaded = load_student(run, student=student, device=str(find_device(device, threads)))
    with tqdm(unit="row", unit_scale=True, disable=None) as bar:
        count, written = write_predictions(
            loaded, data, out, batch_size=batch_size, workers=workers, on_rows=bar.update
        )
    typer.echo(f"{wrote(written)} {out}: {count} rows, {len(loaded.class_names)} classes")
