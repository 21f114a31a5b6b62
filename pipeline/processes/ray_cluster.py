"""A Ray cluster: this process's connection to it, and what it has room for. The one place that imports ray."""

import logging
import os
import warnings
from dataclasses import dataclass
from typing import Any

LOCAL = "local"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each process takes of a Ray cluster.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs, or a part of one; None is one where the cluster has any.
    """

    cpus: int
    gpus: float | None = None


def connected(address: str) -> Any:
    """The module ray, connected; it reports to nobody, and prints nothing among our lines."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # why a process died is heard otherwise
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise ValueError("--ray needs Ray, which is not installed; run: pip install logitbank[ray]") from None
    if "://" in address:
        raise ValueError(
            f"--ray is {address!r}; expected local, auto, or HOST:PORT: start the command on a machine of the cluster"
        )
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        quiet["include_dashboard"] = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="ray")  # tips of older versions
            ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"--ray {address}: no Ray cluster answers there ({why}); where it asks for a token, set RAY_AUTH_MODE=token"
        ) from error
    return ray


def room_for(machines: list[dict[str, float]], resources: Resources, address: str) -> tuple[int, float]:
    """How many processes find room on the machines, and how many GPUs each has; ValueError when none does."""
    gpus = resources.gpus
    if gpus is None:
        gpus = float(any(machine.get("GPU") for machine in machines))
    room = 0
    for machine in machines:
        rooms = [int(machine.get("CPU", 0) // resources.cpus)]
        if gpus:
            have = machine.get("GPU", 0.0)
            rooms.append(int(have) * int(1 / gpus + 1e-9) if gpus < 1 else int(have // gpus))
        room += min(rooms)
    if not room:
        raise ValueError(
            f"--ray {address}: each process takes {resources.cpus} CPUs and {gpus:g} GPUs, and no machine has them;"
            " ask for less"
        )
    return room, gpus
