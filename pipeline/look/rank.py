"""Students ranked before any of them is trained: DisWOT, from what a store holds of the teacher.

Shapes: B batch, C classes, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from logitbank.pipeline.alignment import check_data
from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.models import build_model, settle_fresh, spell_model
from logitbank.pipeline.models.check import check_network
from logitbank.pipeline.models.features import PENULTIMATE, Featured, find_place
from logitbank.pipeline.models.subclasses import SubclassNetwork
from logitbank.pipeline.views import Views
from logitbank.stores import Store

NUM_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A student before its training, beside its teacher; all scores are at most 0, and 0 for the teacher itself.

    Attributes:
        student: Its architecture.
        score: Sum of the two below, mean over seeds.
        spread: Standard deviation of the score over seeds.
        semantic: How alike the gradients of the last layer are from class to class.
        relation: How alike the features are from example to example.
        num_parameters: Of the network.
    """

    student: str
    score: float
    spread: float
    semantic: float
    relation: float
    num_parameters: int


def rank_students(
    store: Store,
    split: Split,
    students: Sequence[str],
    *,
    teacher: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    num_rows: int = NUM_ROWS,
) -> list[Ranked]:
    """Scores untrained students, best first; each seed draws their weights and the rows, those of one fold.

    Args:
        store: With a teacher's features.
        split: Its examples.
        students: Architectures, as ``build_model`` takes them.
        teacher: Which one (default: the only one).
        seeds: One at least.
        num_rows: Labelled rows that students are compared on.

    Raises:
        ValueError: No such features, no labels, or a student whose features cannot be told.
    """
    check_data(store, split)
    answers = open_answers(store, teacher=teacher, features=True)
    if "embedding" not in answers.offers:
        raise ValueError(f"{store.path}: no teacher's features to rank by; cache it with --embedding penultimate")
    usable = np.flatnonzero(answers.served(0) & (split.labels >= 0))
    if not len(usable):
        raise ValueError(f"{store.path}: no row that is answered has a label, and gradients need one")
    found: dict[str, list[tuple[float, float]]] = {spell_model(name): [] for name in students}
    sizes: dict[str, int] = {}
    for seed in seeds:
        rows = np.random.default_rng(seed).permutation(usable)
        _, fold_N = answers.of(torch.from_numpy(rows), 0).features()
        rows = np.sort(rows[(fold_N == fold_N[0]).cpu().numpy()][:num_rows])
        batch = answers.of(torch.from_numpy(rows), 0)
        labels_B = torch.from_numpy(split.labels[rows])
        logits_BC = answers.logits(torch.from_numpy(rows), 0).cpu()
        theirs = relations(logits_BC, batch.features()[0].cpu(), labels_B)
        for name in found:
            mine, sizes[name] = _untrained(name, split, store, rows, labels_B, seed)
            semantic, relation = (-float((a - b).square().mean()) for a, b in zip(mine, theirs, strict=True))
            found[name].append((semantic, relation))
    ranked = [
        Ranked(
            student=name,
            score=fmean(map(sum, scores)),
            spread=stdev(map(sum, scores)) if len(scores) > 1 else 0.0,
            semantic=fmean(semantic for semantic, _ in scores),
            relation=fmean(relation for _, relation in scores),
            num_parameters=sizes[name],
        )
        for name, scores in found.items()
    ]
    return sorted(ranked, key=lambda each: -each.score)


def relations(logits_BC: Tensor, features_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """What DisWOT compares: products of the gradients of the last layer's classes, [C, C], and of the examples'
    features, [B, B], each row of length 1.

    The gradient of the cross-entropy by the last layer's weights is the mean of (p - y) h^T: it needs no backward pass,
    and no teacher. The paper compares the D x D products of one class's gradient; networks of different widths have
    products between classes in common.

    References:
        Dong et al. DisWOT: Student Architecture Search for Distillation WithOut Training. CVPR 2023.
    """
    error_BC = logits_BC.softmax(1) - one_hot(labels_B, logits_BC.shape[1])
    gradient_CD = error_BC.T @ features_BD / len(labels_B)
    return normalize(gradient_CD @ gradient_CD.T, dim=1), normalize(features_BD @ features_BD.T, dim=1)


def _untrained(
    name: str, split: Split, store: Store, rows: np.ndarray, labels_B: Tensor, seed: int
) -> tuple[tuple[Tensor, Tensor], int]:
    """What is compared of a fresh student, and its number of parameters."""
    views = Views.from_attributes(store.views)
    scaling = settle_fresh(name, split, None, rows)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        model: nn.Module = build_model(name, scaling.sized(split))
        check_network(name, model, split, views=views, preprocessing=scaling)
        scaling = scaling.on(split)
        inputs = scaling(torch.from_numpy(views.samples(split, rows, 0, scaling.fit)))
        inner = model.model if isinstance(model, SubclassNetwork) else model
        place, _ = find_place(name, inner.eval(), PENULTIMATE, lambda asked: asked(inputs[:2]))
        # as in its first step: batch norm by the batch's own statistics
        logits_BC, captured = Featured(model, {PENULTIMATE: place}).train()(inputs)
    size = sum(parameter.numel() for parameter in model.parameters())
    return relations(logits_BC.float(), captured[PENULTIMATE].float(), labels_B), size


def format_ranking(ranked: Sequence[Ranked], num_seeds: int) -> str:
    """A table for people, and what it is not."""
    width = max(len("student"), *(len(each.student) for each in ranked))
    lines = [f"{'student':<{width}}  {'score':>9}  {'+-':>8}  {'semantic':>9}  {'relation':>9}  parameters"]
    lines += [
        f"{each.student:<{width}}  {each.score:>9.5f}  {each.spread:>8.5f}  {each.semantic:>9.5f}"
        f"  {each.relation:>9.5f}  {each.num_parameters:>10,}"
        for each in ranked
    ]
    seeds = "1 seed" if num_seeds == 1 else f"{num_seeds} seeds"
    return "\n".join(
        [
            *lines,
            f"DisWOT scores of untrained students, best first, over {seeds}: how like the teacher they are.",
            "They say nothing of training, its length, or the loss; only trained students can be compared: cli sweep.",
        ]
    )
