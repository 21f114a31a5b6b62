"""Where a process computes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def find_device(name: str, threads: int = 0, local: int = 0) -> "torch.device":
    """The device of that name; of several GPUs the one of this process, ``local`` on its machine.

    Args:
        name: As torch spells it, or auto: a GPU when there is one.
        threads: CPU threads of this process from now on; 0 leaves it to torch.
        local: Which of this machine's processes this is.

    Raises:
        ValueError: It is not available here.
    """
    import torch

    if threads > 0:
        torch.set_num_threads(threads)
    if name == "auto":
        name = f"cuda:{local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: not available here ({str(error).splitlines()[0]}); use cpu") from error
    return device
