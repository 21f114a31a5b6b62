"""The table of losses that look at features, which the store must hold and the student's head reads."""

from __future__ import annotations

from .domains import number, words
from .features import (
    Critics,
    Projection,
    Subclasses,
    feature_distance,
    mutual_information_bound,
    subclass_cross_entropy,
)
from .kinds import Loss, temperature
from .wasserstein import ClassDistance, wasserstein_distance

EMBEDDING = frozenset({"embedding"})

FEATURE_LOSSES: dict[str, Loss] = {
    "feature": Loss(
        fn=feature_distance,
        paper="Romero et al. ICLR 2015; Bai et al. CVPR 2023",
        use="beside a loss of logits, as kd:0.9 + ce:0.1 + feature:1: the student's features as the teacher's",
        setting="none of its own: the weight is ours",
        takes={"distance": words("cosine", "l1", "mse")},
        ce_weight=1.0,
        needs=EMBEDDING,
        extras=frozenset({"student_features_BD", "teacher_features"}),
        module=Projection,
        zero_at_teacher=False,
        unsure="both papers match middle layers; here it is what the heads read",
    ),
    "mi_alpha": Loss(
        fn=mutual_information_bound,
        paper="He et al. 2021 (Distiller)",
        use="beside a loss of logits, as kd?temperature=1:1 + mi_alpha:1: features that tell which the teacher's are",
        setting="text classification",
        takes={"alpha": number(0.5, "(0, 1]")},
        ce_weight=1.0,
        needs=EMBEDDING,
        extras=frozenset({"student_features_BD", "teacher_features"}),
        module=Critics,
        couples_rows=True,
        zero_at_teacher=False,
        below_zero=True,
        unsure="alpha is the share itself, as in the paper; the authors' code passes it through a sigmoid (0.5: 0.62)",
    ),
    "wkd": Loss(
        fn=wasserstein_distance,
        paper="WKD-L, Lv et al. NeurIPS 2024",
        use="many classes of which some are alike: a mistake between near ones costs less than one between far ones",
        setting="none of its own: T, the weight and the sharpening are ours",
        takes={
            "temperature": temperature(2.0),
            "transport": number(30.0, "(0, 1e6]"),
            "sharpen": number(1.0, "(0, 100]"),
            "blur": number(0.05, "[0.02, 10]"),
        },
        ce_weight=1.0,
        needs=EMBEDDING | {"labels", "label_prob", "fixed_tail"},
        module=ClassDistance,
        trusts_labels=True,
        zero_at_teacher=False,
        unsure="steps (ten) and blur are those of the authors' code; their weights are in files that were not read",
    ),
    "lelp": Loss(
        fn=subclass_cross_entropy,
        paper="Loo et al. 2024 (LELP)",
        use="few classes, whose teacher knows more than their names; with --student subclasses:S:NAME",
        setting="none published: S, beta and T are searched for each data set",
        takes={
            "temperature": temperature(1.0),
            "beta": number(1.0, "[0.01, 1000]"),
            "directions": words("principal", "random"),
        },
        needs=EMBEDDING,
        extras=frozenset({"subclass_logits_BG", "teacher_features"}),
        module=Subclasses,
        zero_at_teacher=False,
        unsure="read in reviews of the paper alone; T = 1, beta = 1 and their units are ours",
    ),
}
