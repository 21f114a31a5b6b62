"""Does a student that comes closer to its teacher still come closer to the truth? Two divergences after every epoch.

The proxy is KL(teacher || student), the golden one that to something better: the labels (NLL), or the teacher of
another store. Both are measured on the same held-out rows, as the first view shows them.

Shapes: N examples, C classes, E epochs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from logitbank.pipeline.alignment import check_data
from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.answers.prepared import default_budget
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.fit import EpochRecord
from logitbank.pipeline.metrics import divergence
from logitbank.pipeline.train_student.evaluate import teacher_logits
from logitbank.pipeline.train_student.over_positions import Ask
from logitbank.pipeline.train_student.spec import LABELS, Run
from logitbank.pipeline.train_student.store_identity import store_identity
from logitbank.pipeline.views import Views, allow_views
from logitbank.stores import local_store, open_store

Rows = npt.NDArray[np.int64]

LEVEL = 0.01
"""Of the test by which both divergences have a trend; five epochs are the fewest that can pass it."""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """What a student is measured by beside its own teacher.

    Attributes:
        source: "labels", or the other store as it was given.
        identity: What decides the figures, fit for JSON.
        answers: The other store's; None for labels.
        rows: Held-out rows that both can judge.
    """

    source: str
    identity: Any
    answers: Answers | None
    rows: Rows

    def measure(self, ask: Ask, model: nn.Module, split: Split, answers: Answers, views: Views) -> dict[str, float]:
        """Both divergences of a student, in nats, as an epoch's record has them."""
        student_NC = ask(model, split, rows=self.rows, views=views)
        proxy_N = divergence(teacher_logits(answers, self.rows, student_NC), student_NC)
        if self.answers is None:
            labels_N = torch.from_numpy(split.labels[self.rows])
            golden_N: Tensor = F.cross_entropy(student_NC.double(), labels_N, reduction="none")
        else:
            golden_N = divergence(teacher_logits(self.answers, self.rows, student_NC), student_NC)
        return {"val_proxy": float(proxy_N.mean()), "val_golden": float(golden_N.mean())}

    def result(self, history: Sequence[EpochRecord]) -> dict[str, Any]:
        """How both went, as ``result.json`` has it."""
        proxy_E, golden_E = ([float(value or 0.0) for value in column] for column in _columns(history))
        lowest = int(np.argmin(golden_E))
        return {
            "against": self.identity,
            "num_rows": len(self.rows),
            "lowest_epoch": history[lowest].epoch,
            "lowest": golden_E[lowest],
            "last": golden_E[-1],
            "proxy_at_lowest": proxy_E[lowest],
            "proxy_last": proxy_E[-1],
            "alarm": parted(proxy_E, golden_E),
        }

    def close(self) -> None:
        """Gives back what the other store's answers hold."""
        if self.answers is not None:
            self.answers.close()


def parted(proxy_E: Sequence[float], golden_E: Sequence[float]) -> bool:
    """The alarm: since the golden divergence was lowest it has risen, while the proxy has fallen.

    Both are trends over the epochs after the lowest: Kendall's tau differs from 0 at a level of .01, one-sided. So a
    divergence that only trembles about its lowest value gives no alarm, and five epochs are the fewest that can.

    References:
        Tiapkin et al. On Teacher Hacking in Language Model Distillation. 2025, figure 1 (a U in the plane of both).
    """
    from scipy.stats import kendalltau

    after = slice(int(np.argmin(golden_E)) + 1, None)
    epochs = range(len(golden_E[after]))
    if len(epochs) < 2:
        return False
    rises = kendalltau(epochs, golden_E[after], alternative="greater").pvalue < LEVEL
    falls = kendalltau(epochs, proxy_E[after], alternative="less").pvalue < LEVEL
    return bool(rises and falls)


def alarm(found: Mapping[str, Any] | None) -> list[str]:
    """A line for the user when the two have parted, from what ``Golden.result`` says, if anything."""
    if found is None or not found["alarm"]:
        return []
    return [
        f"the student comes closer to its teacher and farther from the truth (teacher hacking): since epoch"
        f" {found['lowest_epoch']} the divergence to the teacher fell from {found['proxy_at_lowest']:.4f} to"
        f" {found['proxy_last']:.4f} and the golden one rose from {found['lowest']:.4f} to {found['last']:.4f}; train"
        " for fewer epochs, show more views, or keep the best epoch, --select best:nll"
    ]


def open_golden(run: Run, split: Split, answers: Answers, views: Views, validation: Rows) -> Golden | None:
    """What ``run.golden`` names; None without it.

    Raises:
        ValueError: Nothing is held out, or judged; the other store is none of this data and these views, or says the
            same as the student's own teacher.
    """
    if not run.golden:
        return None
    split.refuse_positions("--golden")
    if not len(validation):
        raise ValueError("--golden is measured on held-out rows; pass --val-share 0.1")
    rows = validation[answers.served(0)[validation]]
    identity: Any = LABELS
    other: Answers | None = None
    if run.golden == LABELS:
        if views.mixes:
            raise ValueError(f"--golden {LABELS} does not go with views that show two examples; name another store")
        rows = rows[split.labels[rows] >= 0]
    else:
        identity, other = _open_store(run, split, answers, views)
        rows = rows[other.served(0)[rows]]
    if not len(rows):
        raise ValueError(f"--golden {run.golden}: no held-out row is judged by it and by the teacher; leave it out")
    return Golden(source=run.golden, identity=identity, answers=other, rows=rows)


def _open_store(run: Run, split: Split, answers: Answers, views: Views) -> tuple[dict[str, Any], Answers]:
    path, _, teacher = run.golden.partition("?teacher=")
    store = open_store(local_store(Path(path)))
    allow_views(run.transform, store.views)
    check_data(store, split)
    if Views.from_attributes(store.views) != views:
        raise ValueError(
            f"--golden {path} has views {Views.from_attributes(store.views)}; expected those of the student's store,"
            f" {views}: both teachers must have seen what the student is shown"
        )
    other = open_answers(store, teacher=teacher or None, memory_budget=(run.budget or default_budget()) // 2)
    if [part.teacher.digest for part in other.parts] == [part.teacher.digest for part in answers.parts]:
        raise ValueError(f"--golden {run.golden} is the student's own teacher; name another, or --golden {LABELS}")
    return store_identity(store, other), other


def _columns(history: Sequence[EpochRecord]) -> tuple[list[float | None], list[float | None]]:
    return [record.val_proxy for record in history], [record.val_golden for record in history]
