"""Processes that write a store and tell of every block, for tests that kill them."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")  # real processes that share the cost of their imports


class Telling:
    """A process that says how many rows a store holds after each block, and last how it ended.

    Args:
        work: What it does; its last argument is the connection to say it to.
        arguments: The others.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        self.said, theirs = PROCESSES.Pipe(duplex=False)
        self.process = PROCESSES.Process(target=work, args=(*arguments, theirs))
        self.process.start()
        theirs.close()

    def wait(self) -> list[Any]:
        """Everything it says until it ends well."""
        heard = []
        with contextlib.suppress(EOFError):
            while self.said.poll(120):
                heard.append(self.said.recv())
        self.process.join(10)
        assert self.process.exitcode == 0
        return heard

    def kill(self, num_blocks: int) -> int:
        """SIGKILL after so many blocks."""
        for _ in range(num_blocks):
            assert self.said.poll(120)
            self.said.recv()
        self.process.kill()
        self.process.join(10)
        assert self.process.exitcode == -signal.SIGKILL
        return num_blocks
