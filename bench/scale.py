"""What every command costs on stores of 10^4, 10^5, 10^6 rows, with the exponent of its growth.

`python -m bench.scale [--rows 10000,100000,1000000] [--only verify diff] [--table]` prints one JSON object a line:
{name, value, goal, ok}, then, if asked for, the tables of docs/explanation/scale.md. Each command is a process of its
own with one thread: processor time (user and system), peak memory (resident, with the libraries), and what it left on
the disk. Stores are made without pictures by `bench._scale_stores`, whose process is the first line: a pass without its
teacher and its encoding. 10^7 rows take ten times the time of 10^6 and some gigabytes of the temporary folder.

Nothing is imported here that takes memory: what a process is started from counts in its peak.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
GOAL_MB, GOAL_ROWS, BILLION = 1000, 10**6, 10**9
SEEN_S = 1.0  # of processor time: what growth must exceed to have an exponent, since starts differ by as much
DATA = "npz:table.npz?classes=1000"
PASS = "cache-teacher, rows ready"
COMMANDS = {  # what it is called -> the command line, and what it writes
    "inspect": ("inspect first.zarr", ""),
    "verify": ("verify first.zarr", ""),
    "verify-data": (f"verify first.zarr --data {DATA}", ""),
    "diff": ("diff first.zarr second.zarr", ""),
    "card": ("card first.zarr --out card.md", "card.md"),
    "copy": ("copy first.zarr out.zarr", "out.zarr"),
    "merge": ("merge first.zarr second.zarr --out out.zarr", "out.zarr"),
    "subset-half": ("subset first.zarr --slice 0:{half} --out out.zarr", "out.zarr"),
    "subset-reordered": (
        f"subset first.zarr --data {DATA.replace('table', 'turned')} --out turned.zarr",
        "turned.zarr",
    ),
    "merge-reordered": ("merge turned.zarr second.zarr --out out.zarr", "out.zarr"),
    "decode-one-row": ("decode first.zarr --slice 0:1 --out out.npy", "out.npy"),
    "export-npz": ("export first.zarr --out out.npz", "out.npz"),
    "assign-folds": (f"assign-folds --data {DATA} --out folds", "folds"),
    "train-student": (
        f"train-student --store first.zarr --data {DATA} --student linear --epochs 1 --batch-size 1024 --out run",
        "run",
    ),
}


@dataclass(frozen=True)
class Cost:
    """Of one process."""

    rows: int
    seconds: float
    peak_mb: float
    files: int
    written: int


@dataclass(frozen=True)
class Growth:
    """Of a command over sizes; what is `None` cannot be told from these."""

    exponent: float | None
    us_a_row: float
    memory_a_row: float
    files_a_row: float
    written_a_row: float


def growth(costs: list[Cost]) -> Growth:
    """From one size to the next, so that what a start costs falls out.

    The exponent p of seconds = start + a rows^p follows from the last three sizes when each is the same times the one
    before: it is the logarithm of the ratio of the two differences. What a row costs comes from the last two.
    """
    before, last = costs[-2], costs[-1]
    more = last.rows - before.rows
    exponent = None
    if len(costs) > 2 and before.rows**2 == costs[-3].rows * last.rows:
        early, late = before.seconds - costs[-3].seconds, last.seconds - before.seconds
        if min(early, late) >= SEEN_S:
            exponent = math.log(late / early) / math.log(last.rows / before.rows)
    return Growth(
        exponent=exponent,
        us_a_row=max(0.0, (last.seconds - before.seconds) / more * 1e6),
        memory_a_row=max(0.0, (last.peak_mb - before.peak_mb) / more * 1e6),
        files_a_row=max(0.0, (last.files - before.files) / more),
        written_a_row=max(0.0, (last.written - before.written) / more),
    )


def on_paper(costs: list[Cost], rows: int = BILLION) -> Cost:
    """The last size and what its rows cost, as many times as there are more: a straight line, not a measurement."""
    found, last = growth(costs), costs[-1]
    more = rows - last.rows
    return Cost(
        rows=rows,
        seconds=last.seconds + found.us_a_row * more / 1e6,
        peak_mb=last.peak_mb + found.memory_a_row * more / 1e6,
        files=round(last.files + found.files_a_row * more),
        written=round(last.written + found.written_a_row * more),
    )


def measured(command: list[str], folder: Path, rows: int, out: str) -> Cost:
    """Runs a command in a folder; RuntimeError with what it said when it fails."""
    target = folder / out
    if out:
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    environment = os.environ | {
        "LOGITBANK_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said.read()[-1000:]}")
    found = [path for path in (target, *target.rglob("*")) if path.is_file()] if out else []
    return Cost(
        rows=rows,
        seconds=used.ru_utime + used.ru_stime,
        peak_mb=used.ru_maxrss / 1e3,
        files=len(found),
        written=sum(path.stat().st_size for path in found),
    )


def run(rows: int, names: list[str]) -> dict[str, Cost]:
    """All commands on stores of so many rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make = [sys.executable, "-m", "bench._scale_stores", name, str(rows)]
        costs: dict[str, Cost] = {}
        for store in ("first", "second"):
            if any(store in COMMANDS[each][0] for each in names):
                costs.setdefault(PASS, measured([*make, store], folder, rows, f"{store}.zarr"))
        for each in names:
            line, out = COMMANDS[each]
            command = [sys.executable, str(ROOT / "cli.py"), *line.format(half=rows // 2).split()]
            costs[each] = measured(command, folder, rows, out)
            if out == "out.zarr":
                shutil.rmtree(folder / out)
    return costs


def say(name: str, cost: Cost) -> None:
    goal = GOAL_MB if cost.rows <= GOAL_ROWS else None
    line = {"name": f"scale/{name}, {cost.rows} rows: peak MB", "value": round(cost.peak_mb), "goal": goal}
    line |= {"ok": goal is None or cost.peak_mb <= goal, "cpu_s": round(cost.seconds, 2)}
    print(json.dumps(line | {"files": cost.files, "bytes": cost.written}), flush=True)


def say_growth(name: str, costs: list[Cost]) -> None:
    found, paper = growth(costs), on_paper(costs)
    line = {"name": f"scale/{name}: us a row", "value": round(found.us_a_row, 3), "goal": None, "ok": True}
    line |= {"exponent": None if found.exponent is None else round(found.exponent, 2)}
    line |= {"memory_bytes_a_row": round(found.memory_a_row, 1), "written_bytes_a_row": round(found.written_a_row, 1)}
    print(json.dumps(line | {"cpu_h_at_1e9": round(paper.seconds / 3600, 2), "gb_at_1e9": round(paper.peak_mb / 1e3)}))


def tables(costs: dict[str, list[Cost]]) -> str:
    """What was measured, and what follows for a billion rows, in Markdown."""
    sizes = [f"{cost.rows:,}" for cost in next(iter(costs.values()))]
    seconds, sides = [], []
    for name, own in costs.items():
        found, last = growth(own), own[-1]
        exponent = "" if found.exponent is None else f"{found.exponent:.2f}"
        seconds.append([f"`{name}`", *(f"{cost.seconds:.1f}" for cost in own), f"{found.us_a_row:.2f}", exponent])
        disk = [f"{last.files}", f"{last.written / last.rows:.0f}"]
        sides.append([f"`{name}`", *(f"{cost.peak_mb:.0f}" for cost in own), *disk])
    lines = _table(["command", *(f"CPU s, {size}" for size in sizes), "us a row", "exponent"], seconds)
    lines += ["", *_table(["command", *(f"peak MB, {size}" for size in sizes), "files", "bytes a row"], sides)]
    lines += ["", "| command | CPU hours | peak GB | memory, bytes a row | GB written |", "|---|---:|---:|---:|---:|"]
    for name, own in costs.items():
        paper, row = on_paper(own), growth(own).memory_a_row
        cells = [
            f"{paper.seconds / 3600:.1f}",
            f"{paper.peak_mb / 1e3:.0f}",
            f"{row:.0f}",
            f"{paper.written / 1e9:.0f}",
        ]
        lines.append("| " + " | ".join([f"`{name}`", *cells]) + " |")
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", default="10000,100000,1000000", help="two sizes or more; exponents need three that grow by one factor"
    )
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), help="default: all")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    sizes = [int(rows) for rows in options.rows.split(",")]
    if len(sizes) < 2 or sizes != sorted(set(sizes)):
        parser.error(f"--rows must be two sizes or more, each larger than the one before, found {options.rows}")
    names = [name for name in COMMANDS if name in options.only]  # in this order: one merges what another wrote
    costs: dict[str, list[Cost]] = {}
    for rows in sizes:
        for name, cost in run(rows, names).items():
            costs.setdefault(name, []).append(cost)
            say(name, cost)
    for name, own in costs.items():
        say_growth(name, own)
    if options.table:
        print(tables(costs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
