"""Networks that run here, each for the rows of its own fold.

Shapes: B batch, C classes, D features, N examples.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from logitbank.pipeline.cache_teacher.settings import Compute
from logitbank.pipeline.cache_teacher.teachers.answering import Batch, Features, Rows
from logitbank.pipeline.cache_teacher.teachers.compute import autocast, layout, prepare
from logitbank.pipeline.cache_teacher.teachers.load import TeacherSet
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.ahead import in_order
from logitbank.pipeline.models.check import check_network, shown
from logitbank.pipeline.models.features import Featured, find_place
from logitbank.pipeline.models.label_map import LabelMap
from logitbank.pipeline.views import Views


class NetworkTeacher:
    """Runs the teachers; each row is answered by the teacher of its own fold only.

    Args:
        split: The examples.
        teachers: Who answers which row.
        views: Which pixels they see.
        device: Where the teachers run (default: CPU).
        compute: Batch size, precision, and ways to run them faster.
        embedding: Give features beside logits: "penultimate" or a layer's name, see ``find_place``; empty: none.

    Raises:
        ValueError: The views do not fit the data, or a teacher does not.
    """

    def __init__(
        self,
        split: Split,
        teachers: TeacherSet,
        views: Views,
        *,
        device: torch.device | None = None,
        compute: Compute | None = None,
        embedding: str = "",
    ) -> None:
        views.check(split)
        if views.transform == "none" and views.num_views > 1:
            raise ValueError(
                f"--views is {views.num_views}, but transform 'none' has one view only; pass --transform flip-crop"
            )
        if views.mixes and teachers.folds is not None:
            raise ValueError(
                f"transform {views.transform!r} mixes two examples, and a fold teacher may have seen the other one;"
                " leave out mixup and cutmix, or cache one teacher without folds"
            )
        self.split, self.views = views.answered(split), views
        self.folds, self.fold_attributes = teachers.folds, teachers.fold_attributes
        self.groups = split.groups if teachers.plan is None else teachers.plan.groups(split)
        self.seen = teachers.seen
        self.device = device or torch.device("cpu")
        self.compute = compute or Compute()
        self.teachers = teachers.teachers
        self._identity = teachers.identity
        name = str(self._identity()["architecture"])
        for number, teacher in enumerate(self.teachers):
            own = np.arange(len(split)) if self.folds is None else np.flatnonzero(self.folds == number)
            if len(own):
                model, scaling = teacher.model.to(self.device), teacher.preprocessing
                check_network(name, model, split, views=views, preprocessing=scaling, rows=own, device=self.device)
        models: list[nn.Module] = [teacher.model for teacher in self.teachers]
        if views.label_map:
            models = [
                LabelMap(name, model, views.label_map, ask) for model, ask in zip(models, self._asks(), strict=True)
            ]
        self.features: Features | None = None
        if embedding:
            found = zip(models, self._asks(), strict=True)
            places = [find_place(name, model, embedding, ask) for model, ask in found]
            models = [Featured(model, {embedding: place}) for model, (place, _) in zip(models, places, strict=True)]
            heads = [place.head for place, _ in places]
            self.features = Features(
                layer=embedding,
                num_features=places[0][1],
                heads=tuple(_weights(head) for head in heads if head is not None) or None,
            )
        self._models = [prepare(model, self.device, self.compute) for model in models]

    def identity(self) -> dict[str, Any]:
        kept = {} if self.features is None else {"embedding": self.features.layer}
        return {**self._identity(), "precision": self.compute.precision, **kept}

    def __call__(self, rows: Rows, view: int) -> Tensor:
        logits_NC = torch.empty((len(rows), *self.split.answer_shape), device=self.device)
        for positions, logits_BC, _ in self.batches(rows, view):
            logits_NC[torch.from_numpy(positions).to(self.device)] = logits_BC
        return logits_NC

    def batches(self, rows: Rows, view: int) -> Iterator[Batch]:
        batches = self._batches(rows)
        samples = in_order(lambda job: self._samples(job[0], rows[job[1]], view), batches, self.compute.workers)
        for (number, positions), samples_B in zip(batches, samples, strict=True):
            with torch.inference_mode(), autocast(self.device, self.compute):
                inputs_B = self.teachers[number].preprocessing(samples_B.to(self.device, non_blocking=True))
                found = self._models[number](layout(inputs_B, self.compute))
            if self.features is None:
                yield Batch(positions, found.float())
            else:
                logits_BC, captured = found
                yield Batch(positions, logits_BC.float(), captured[self.features.layer].float())

    def _batches(self, rows: Rows) -> list[tuple[int, npt.NDArray[np.int64]]]:
        """Which teacher answers which positions of ``rows``: a function of the rows alone."""
        batches, size = [], self.compute.batch_size
        for number in range(len(self.teachers)):
            own = np.arange(len(rows)) if self.folds is None else np.flatnonzero(self.folds[rows] == number)
            batches += [(number, own[i : i + size]) for i in range(0, len(own), size)]
        return batches

    def _asks(self) -> Iterator[Callable[[nn.Module], Any]]:
        """For each teacher what shows a network some examples, scaled for the teacher."""
        for teacher in self.teachers:
            scaling = teacher.preprocessing.on(self.split)
            yield partial(_ask, scaling(shown(self.split, self.views, scaling, self.device)))

    def _samples(self, number: int, rows: Rows, view: int) -> Tensor:
        fit = self.teachers[number].preprocessing.fit
        samples_B = torch.from_numpy(self.views.samples(self.split, rows, view, fit))
        return samples_B.pin_memory() if self.device.type == "cuda" else samples_B


def _ask(inputs_B: Tensor, model: nn.Module) -> Any:
    return model(inputs_B)


def _weights(head: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight [C, D] and bias [C], zeros where there is none; on the CPU."""
    weight_CD = head.weight.detach().float().cpu()
    bias_C = torch.zeros(len(weight_CD)) if head.bias is None else head.bias.detach().float().cpu()
    return weight_CD, bias_C
