"""Students of a small language model from what a store keeps of its answers: docs/how-to/distil-a-language-model.md.

`python -m bench.text_students DATA`, where DATA holds a language model's `text.py` (`model()` and its `GPT`),
`gpt.safetensors`, `train_tokens.npy` and `test_tokens.npy`, prints a line of JSON for every student, all methods of a
seed before the next seed, and the table at the end. A student has a quarter of the teacher's parameters. `--from FILE`
prints the table of lines that were kept. Several processes, each with seeds of its own, may share the stores of
`--stores` once `--seeds 0` has written them.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from logitbank import (
    Encoding,
    Inputs,
    Run,
    Store,
    Training,
    Views,
    build_teacher,
    cache_teacher,
    load_split,
    open_store,
    train_student,
)
from logitbank.pipeline.processes.device import find_device
from logitbank.pipeline.train_student.compare import half_width

STUDENT = "gpt:128x2"
# name -> store, loss, tail rule
METHODS = {
    "labels": ("topk", "ce", "predicted"),
    "top 10, uniform tail": ("topk", "kd", "uniform"),
    "top 10, renormalised": ("topk", "kd", "renormalise"),
    "top 10, predicted tail": ("topk", "kd", "predicted"),
    "top 10, tail of half a bit a class": ("coded", "kd", "predicted"),
    "dense, 8 bits": ("dense", "kd", ""),
}


def write_stores(folder: Path, arguments: argparse.Namespace) -> dict[str, Store]:
    """The teacher's answers to the training tokens in three encodings; answered once for each."""
    split = load_split(training_data(arguments))
    kinds = {
        "topk": Encoding(kind="topk", num_classes=split.num_classes, top_k=10),
        "coded": Encoding(kind="topk+tail", num_classes=split.num_classes, top_k=10, tail_bits=0.5),
        "dense": Encoding(kind="dense", num_classes=split.num_classes, bits=8),
    }
    data, device = arguments.data, find_device("auto")
    for name, encoding in kinds.items():
        teacher = build_teacher(split, f"{data}/text.py:model", f"{data}/gpt.safetensors", Views(), device=device)
        cache_teacher(teacher, folder / f"{name}.zarr", encoding=encoding, predictor_rows=20_000)
    return {name: open_store(folder / f"{name}.zarr") for name in kinds}


def training_data(arguments: argparse.Namespace) -> str:
    data, limit = arguments.data, f"&limit={arguments.sequences}" if arguments.sequences else ""
    return f"tokens:{data}/train_tokens.npy?length=128&test={data}/test_tokens.npy&classes=1024{limit}"


def outcomes(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record for each seed and method."""
    data = arguments.data
    split = load_split(training_data(arguments))
    limit = f"&limit={arguments.test_sequences}" if arguments.test_sequences else ""
    test = load_split(
        f"tokens:{data}/test_tokens.npy?length=128&split=test&test={data}/test_tokens.npy&classes=1024{limit}"
    )
    training = Training(
        epochs=arguments.epochs,
        batch_size=8,
        optimizer="adamw",
        lr=3e-3,
        weight_decay=0.01,
        warmup_epochs=0.1 * arguments.epochs,
        grad_clip=1.0,
    )
    with tempfile.TemporaryDirectory() as temporary:
        stores = write_stores(arguments.stores or Path(temporary), arguments)
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            for method, (name, loss, tail) in METHODS.items():
                store = stores[name]
                run = Run(
                    store=str(store.path),
                    data=split.spec,
                    student=STUDENT,
                    loss=loss,
                    settings={} if loss == "ce" else {"temperature": 1, "ce_weight": 0},
                    tail=tail,
                    training=replace(training, seed=seed),
                    threads=1,
                )
                inputs = Inputs(store=store, split=split, test=test)
                result = train_student(run, Path(temporary) / f"{seed}-{method}", inputs=inputs)
                yield {
                    "method": method,
                    "seed": seed,
                    "tokens": len(split) * 128,
                    "epochs": arguments.epochs,
                    "bytes": round(store.teacher().bytes_per_row(), 1) if loss != "ce" else 0,
                    "nll": result["test"]["nll"],
                    "accuracy": result["test"]["accuracy"],
                    "kl": result["against_teacher"]["kl"],
                    "parameters": result["num_parameters"],
                    "seconds": round(result["seconds"]),
                }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: the test loss, and its difference to that of labels paired by seed with 95 % intervals."""
    found = {(each["method"], each["seed"]): each for each in records}
    lines = [
        "| targets | bytes a token | seeds | test loss | less than labels by | accuracy | KL to the teacher |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        seeds = sorted(seed for name, seed in found if name == method and ("labels", seed) in found)
        if not seeds:
            continue
        losses = [found[method, seed]["nll"] for seed in seeds]
        saved = [found["labels", seed]["nll"] - found[method, seed]["nll"] for seed in seeds]
        half = half_width(saved)
        gain = "" if method == "labels" else f"{np.mean(saved):+.3f}" + ("" if half is None else f" ± {half:.3f}")
        spread = f" ({np.std(losses, ddof=1):.3f})" if len(losses) > 1 else ""
        accuracy, kl = (f"{np.mean([found[method, seed][name] for seed in seeds]):.3f}" for name in ("accuracy", "kl"))
        size = found[method, seeds[0]]["bytes"] or ""
        cells = [method, str(size), str(len(seeds)), f"{np.mean(losses):.3f}{spread}", gain, accuracy, kl]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--sequences", type=int, default=800, help="of 128 training tokens; 0: all")
    parser.add_argument("--test-sequences", type=int, default=128, help="of 128 held-out tokens; 0: all")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--stores", type=Path, help="where the stores are kept; default: removed at the end")
    parser.add_argument("--from", dest="kept", type=Path, help="lines of an earlier run: print their table alone")
    arguments = parser.parse_args()
    if not (arguments.data or arguments.kept):
        print(json.dumps({"name": "text_students", "skipped": "name a folder with the text"}))
        return
    torch.set_num_threads(1)
    if arguments.kept is not None:
        records = [json.loads(line) for line in arguments.kept.read_text().splitlines() if line.startswith("{")]
    else:
        records = []
        for record in outcomes(arguments):
            records.append(record)
            print(json.dumps(record), flush=True)
    print(f"\n{table(records)}")


if __name__ == "__main__":
    main()
