"""Which examples a teacher is asked about: those that lie near the data that it was trained on.

A client of federated distillation knows its own data alone; what lies far from them it answers by luck.

Shapes: N examples, M rows of the teacher's own data, D numbers of an example, K centres.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from logitbank.pipeline.cache_teacher.settings import Nearness
from logitbank.pipeline.cache_teacher.teachers.answering import AnsweringTeacher, Batch, Rows
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.datasets.limits import check_fits
from logitbank.pipeline.models.preprocessing import Preprocessing, fit_preprocessing
from logitbank.pipeline.views import Views

Floats = npt.NDArray[np.float32]
_AT_ONCE = 4096


class NearTeacher:
    """The same teacher, of whom only the answers to examples near its own data count; a store masks the others.

    Args:
        teacher: Who answers.
        nearness: What its own data are, and how near is near.

    Raises:
        ValueError: Its own data are of another shape, or every example is near, or none.
    """

    def __init__(self, teacher: AnsweringTeacher, nearness: Nearness) -> None:
        own = load_split(nearness.near)
        teacher.split.refuse_positions("--near")
        near_N = is_near(teacher.split, own, share=nearness.near_share, clusters=nearness.near_clusters)
        before_N = teacher.split.readable
        asked_N = near_N if before_N is None else near_N & before_N
        said = f"--near {nearness.near}: {int(near_N.sum())} of the {len(near_N)} examples are near these data"
        if near_N.all():
            raise ValueError(f"{said}, so it does nothing; leave it out, or lower --near-share")
        if not asked_N.any():
            raise ValueError(f"{said}; is it the data that the teacher was trained on?")
        self._teacher, self._asked = (
            teacher,
            {
                "data_fingerprint": own.fingerprint,
                "share": nearness.near_share,
                "clusters": nearness.near_clusters,
            },
        )
        self.split, self.views = teacher.split.answered_at(asked_N), teacher.views
        self.folds, self.fold_attributes, self.groups = teacher.folds, teacher.fold_attributes, teacher.groups
        self.seen, self.features = teacher.seen, teacher.features

    def identity(self) -> dict[str, Any]:
        return {**self._teacher.identity(), "near": self._asked}

    def __call__(self, rows: Rows, view: int) -> torch.Tensor:
        return self._teacher(rows, view)

    def batches(self, rows: Rows, view: int) -> Iterator[Batch]:
        return self._teacher.batches(rows, view)


def is_near(split: Split, own: Split, *, share: float, clusters: int) -> npt.NDArray[np.bool_]:
    """Whether each example is as near to a centre of the teacher's data as ``share`` of these are, bool [N].

    Centres are those of k-means within each class of the teacher's data (unlabelled rows are a class of their own), in
    the space of inputs: pixels or columns, standardised by the teacher's data.

    Args:
        split: The examples.
        own: The teacher's data.
        share: Share of the teacher's data that count as near.
        clusters: Centres a class, at most as many as the class has rows.

    References:
        Selective knowledge distillation of EdgeFD; there the share is 0.9 with one cluster a class (as a
        re-implementation has it).
    """
    if split.input_shape != own.input_shape or split.is_image != own.is_image:
        raise ValueError(
            f"--near {own.spec} has inputs {list(own.input_shape)}, the data {list(split.input_shape)}; expected the"
            " same"
        )
    scaling = fit_preprocessing(own)
    check_fits(f"--near {own.spec}", 4 * len(own) * int(np.prod(own.input_shape)))
    own_MD = np.concatenate(list(_inputs(own, scaling)))
    centres_KD = _centres(own_MD, own.labels, clusters)
    radius = np.quantile(_distances(own_MD, centres_KD), share)
    return np.concatenate([_distances(part_BD, centres_KD) <= radius for part_BD in _inputs(split, scaling)])


def _centres(own_MD: Floats, labels_M: npt.NDArray[np.int64], clusters: int) -> Floats:
    from sklearn.cluster import KMeans

    found = []
    for label in np.unique(labels_M):
        of_class = own_MD[labels_M == label]
        number = min(clusters, len(np.unique(of_class, axis=0)))
        found.append(KMeans(number, n_init=1, random_state=0).fit(of_class).cluster_centers_)
    return np.concatenate(found)


def _distances(inputs_BD: Floats, centres_KD: Floats) -> npt.NDArray[np.float64]:
    """To the nearest centre, [B]."""
    from sklearn.metrics import pairwise_distances_argmin_min

    return np.asarray(pairwise_distances_argmin_min(inputs_BD, centres_KD)[1], np.float64)


def _inputs(split: Split, scaling: Preprocessing) -> Iterator[Floats]:
    """Standardised inputs in one line each, [B, D], part by part."""
    views = Views()
    for start in range(0, len(split), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(split)))
        samples = torch.from_numpy(views.samples(split, rows, 0, scaling.fit))
        yield scaling(samples).flatten(1).numpy()
