"""The runs of a sweep on a Ray cluster: processes read store and data once, and are sent runs."""

from collections.abc import Callable, Iterator, Sequence

from logitbank.pipeline.processes.rank import Rank
from logitbank.pipeline.processes.ray_cluster import Resources
from logitbank.pipeline.processes.ray_engine import Crew, gave_up
from logitbank.pipeline.train_student.planned import Event, OpenedOnce, Planned, record_failure, run_planned


class RunWorker:
    """A process that is sent runs.

    Args:
        rank: Which process, of how many.
        threads: CPU threads.
    """

    def __init__(self, rank: Rank, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._inputs = OpenedOnce()

    def train(self, planned: Planned, say: Callable[[Event], None]) -> Event:
        """As `run_planned`."""
        return run_planned(planned, inputs=self._inputs, on_event=say)


def train_on_ray(planned: Sequence[Planned], address: str, resources: Resources) -> Iterator[Event]:
    """Trains runs wherever the cluster has room; one whose process died goes on in another.

    Args:
        planned: The runs, in folders that all machines share.
        address: Of the cluster, or local.
        resources: What each run takes.

    Raises:
        ValueError: The cluster does not answer, or has not the resources.
    """
    with Crew(address, resources, RunWorker, (resources.cpus,), most=len(planned)) as crew:
        for heard in crew.each("train", planned):
            if heard.kind == "lost":
                text = f"its process died, and it goes on in another: {heard.value}"
                yield Event(kind="warning", run=heard.task.folder.name, text=text)
            elif heard.kind == "given up":
                yield record_failure(heard.task, gave_up(heard))
            else:
                yield heard.value
