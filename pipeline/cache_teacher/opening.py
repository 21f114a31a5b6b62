"""From the description of a pass to who answers and what is kept: the same in every process that works on it."""

from collections.abc import Collection

from logitbank.pipeline.cache_teacher.asked import Budget
from logitbank.pipeline.cache_teacher.near import NearTeacher
from logitbank.pipeline.cache_teacher.settings import Caching
from logitbank.pipeline.cache_teacher.teachers.answering import AnsweringTeacher
from logitbank.pipeline.cache_teacher.teachers.build import LimitedTeacher, build_teacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.described import refuse_idle
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.models import read_given
from logitbank.pipeline.processes.device import find_device

_COMPUTING = ("batch_size", "precision", "channels_last", "compile", "workers", "mean", "std", "input_transform")


def open_teacher(
    caching: Caching, given: Collection[str] = (), *, local: int = 0
) -> tuple[AnsweringTeacher, Encoding | Budget]:
    """Reads the data and makes the teacher.

    Args:
        caching: The description.
        given: Names of the settings that the user gave, be it as by default.
        local: Which of this machine's processes this is.

    Returns:
        Who answers, and what is kept of a row.

    Raises:
        ValueError: Something is missing, does not fit together, or does nothing.
    """
    split = load_split(caching.data)
    chosen = caching.choose(split.num_classes, given)
    _refuse_idle_computing(caching, split, given)
    teacher = build_teacher(
        split,
        caching.teacher,
        caching.weights,
        caching.make_views(),
        plan=caching.folding.plan(),
        preprocessing=read_given(caching.mean, caching.std, caching.input_transform),
        compute=caching.compute,
        embedding=caching.embedding,
        device=find_device(caching.device, caching.threads, local),
    )
    if caching.nearness.near:
        teacher = NearTeacher(teacher, caching.nearness)
    return (LimitedTeacher(teacher, caching.limit) if caching.limit else teacher), chosen


def _refuse_idle_computing(caching: Caching, split: Split, given: Collection[str]) -> None:
    """Settings that do nothing with this teacher and these data."""
    if not split.is_image:
        refuse_idle(caching, ("channels_last",), f"{split.spec} holds no images", given)
    if not caching.is_network:
        refuse_idle(caching, _COMPUTING, f"{caching.teacher} is no network that runs here", given)
