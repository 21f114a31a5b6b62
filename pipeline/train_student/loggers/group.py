"""Runs of a sweep belong together: a group in W&B, a parent run in MLflow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from logitbank.pipeline.train_student.folder import LOGGED, read_json, write_json
from logitbank.pipeline.train_student.loggers.spec import LoggerSpec, read_loggers


@contextmanager
def grouped(texts: Sequence[str], out: Path) -> Iterator[list[str]]:
    """The loggers of a sweep's runs, each told where it belongs; the parent run ends with the block.

    Args:
        texts: As ``--logger`` has them.
        out: The sweep's folder: its name is the group's, and ``loggers.json`` in it says which run is the parent.

    Raises:
        ValueError: MLflow is not installed, or cannot begin.
    """
    specs = [
        spec.given(group=out.resolve().name) if spec.kind != "tensorboard" else spec for spec in read_loggers(texts)
    ]
    of_mlflow = [spec for spec in specs if spec.kind == "mlflow" and not spec.get("parent")]
    if not of_mlflow:
        yield [str(spec) for spec in specs]
        return
    try:
        from logitbank.pipeline.train_student.loggers.mlflow_run import client_of

        client, parent = client_of(of_mlflow[0]), _parent(of_mlflow[0], out)
        client.update_run(parent, status="RUNNING")
    except ImportError as error:
        raise ValueError("--logger mlflow needs another package: pip install 'logitbank[mlflow]'") from error
    except Exception as error:  # whatever the library raises
        raise ValueError(f"--logger {of_mlflow[0]}: cannot begin ({' '.join(str(error).split())[:300]})") from error
    try:
        yield [str(spec.given(parent=parent) if spec.kind == "mlflow" else spec) for spec in specs]
    finally:
        client.set_terminated(parent, "FINISHED")


def _parent(spec: LoggerSpec, out: Path) -> str:
    from logitbank.pipeline.train_student.loggers.mlflow_run import client_of, start

    file = out / LOGGED
    found = read_json(file) if file.exists() else {}
    known = found.get(str(spec)) if isinstance(found, dict) else None
    if isinstance(known, dict) and isinstance(known.get("id"), str):
        return str(known["id"])
    parent = start(client_of(spec), spec, spec.get("group"), {"sweep": spec.get("group")})
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, {str(spec): {"id": parent}})
    return parent
