"""What a device does with stored answers: decodes them to the same numbers as a CPU, how fast, in how much memory.

``python -m bench._on_device --store S [--device cuda]`` prints one JSON object a line; ``--machine`` says what it is.
``bench/gpu.sh`` runs it.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

from logitbank.pipeline.answers.opening import open_answers
from logitbank.stores import open_store

_BATCH, _BATCHES, _CLOSE = 1024, 50, 1e-3


def machine(device: torch.device) -> None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    print(json.dumps({"name": "machine", "device": name, "torch": torch.__version__, "gpu_bytes": memory}))


def decode(path: Path, device: torch.device) -> bool:
    """Whether the device's logits are those of the CPU; prints its speed and what it holds at most."""
    store = open_store(path)
    there, here = (open_answers(store, device=each) for each in (device, torch.device("cpu")))
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(store.num_examples, (_BATCH,), generator=generator) for _ in range(_BATCHES)]
    first_BC = there.of(batches[0], 0).logits(torch.zeros(_BATCH, store.num_classes, device=device), 4.0)
    on_cpu_BC = here.of(batches[0], 0).logits(torch.zeros(_BATCH, store.num_classes), 4.0)
    distance = float((first_BC.cpu() - on_cpu_BC).abs().max())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    started, total = time.perf_counter(), first_BC.new_zeros(())
    for rows_B in batches:
        total = total + there.of(rows_B, 0).logits(torch.zeros_like(first_BC), 4.0).sum()
    float(total)  # waits for the device
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    ok = distance < _CLOSE
    facts = {
        "rows_per_second": round(_BATCH * _BATCHES / seconds),
        "peak_gpu_bytes": peak,
        "largest_difference": distance,
    }
    print(json.dumps({"name": f"decode {path.name}", **facts, "ok": ok}))
    there.close()
    here.close()
    return ok


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--machine", action="store_true")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.machine:
        machine(device)
    return 0 if arguments.store is None or decode(arguments.store, device) else 1


if __name__ == "__main__":
    sys.exit(main())
