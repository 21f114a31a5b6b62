"""Work that threads do ahead of whoever needs it: reading and transforming samples."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Made = TypeVar("Made")


def in_order(make: Callable[[Job], Made], jobs: Sequence[Job], workers: int) -> Iterator[Made]:
    """``map(make, jobs)`` that threads work ahead for, at most two jobs a thread, results in their order."""
    if workers < 1 or len(jobs) < 2:
        yield from map(make, jobs)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="reader") as pool:
        ahead: deque[Future[Made]] = deque()
        try:
            for job in jobs:
                ahead.append(pool.submit(make, job))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
