"""What a file says that it unpacks to is compared with limits before it is unpacked."""

from logitbank.stores.read.memory import available_memory

ALWAYS = 2**30
MOST_TIMES = 100


def check_declared(file: object, declared: int, stored: int, remedy: str) -> None:
    """Refuses a file that says it unpacks to far more than it holds, or to more than this machine has left.

    Args:
        file: For the error.
        declared: Bytes that it says it needs in memory.
        stored: Bytes that it has on disk.
        remedy: What to do when the file is honest.

    Raises:
        ValueError: Over 1 GiB and over 100 times what is stored, or more than the memory that can still be had.
    """
    if declared > ALWAYS and declared > MOST_TIMES * stored:
        raise ValueError(
            f"{file}: {stored / 1e6:.1f} MB that say they unpack to {declared / 1e9:.1f} GB, over {MOST_TIMES} times"
            f" as much; when it is to be trusted, {remedy}"
        )
    check_fits(file, declared)


def check_fits(what: object, num_bytes: int) -> None:
    """Raises ValueError when bytes are more than this machine has left."""
    available = available_memory()
    if num_bytes > available:
        raise ValueError(
            f"{what}: needs {num_bytes / 1e9:.1f} GB of memory, found {available / 1e9:.1f} GB; use less of it, or a"
            " larger machine"
        )
