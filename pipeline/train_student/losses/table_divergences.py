"""The table's divergences between teacher and student."""

from __future__ import annotations

from .adaptive import alpha_divergence
from .balanced import adaptive_kl
from .divergences import (
    alpha_beta_divergence,
    neyman_divergence,
    pearson_divergence,
    reverse_kl_divergence,
    squared_hellinger,
)
from .domains import number
from .kinds import Loss, temperature
from .labels import soft_cross_entropy
from .mixtures import (
    generalized_jensen_shannon,
    interpolated_kl_divergence,
    skewed_kl_divergence,
    skewed_reverse_kl_divergence,
    symmetric_kl_divergence,
    total_variation,
)
from .ranking import list_mle
from .sparse import sparse_soft_cross_entropy

DENSE = frozenset({"dense"})
LANGUAGE = "language models"

DIVERGENCES: dict[str, Loss] = {
    "gjs": Loss(
        fn=generalized_jensen_shannon,
        paper="Agarwal et al. ICLR 2024",
        use="bounded and symmetric at beta = .5: robust to rows where the teacher is confidently wrong",
        setting=LANGUAGE,
        takes={"temperature": temperature(1.0), "beta": number(0.5, "[0, 1]")},
    ),
    "skew_kl": Loss(
        fn=skewed_kl_divergence,
        paper="Ko et al. ICML 2024",
        use="KL with a bound: no row can dominate the batch",
        setting=LANGUAGE,
        takes={"temperature": temperature(1.0), "skew": number(0.1, "[0, 1)")},
    ),
    "skew_reverse_kl": Loss(
        fn=skewed_reverse_kl_divergence,
        paper="Ko et al. ICML 2024",
        use="reverse KL with a bound; small students that should pick the teacher's modes",
        setting=LANGUAGE,
        takes={"temperature": temperature(1.0), "skew": number(0.1, "[0, 1)")},
    ),
    "reverse_kl": Loss(
        fn=reverse_kl_divergence,
        paper="Gu et al. ICLR 2024",
        use="a student too small for the whole teacher: it drops modes instead of blurring them",
        setting=LANGUAGE,
        takes={"temperature": temperature(1.0)},
    ),
    "symmetric_kl": Loss(
        fn=symmetric_kl_divergence,
        paper="SSLD, Cui et al. 2021",
        use="unlabelled data in bulk, teacher only",
        setting="ImageNet",
        takes={"temperature": temperature(1.0)},
    ),
    "akl": Loss(
        fn=adaptive_kl,
        paper="AKL, Wu et al. COLING 2025",
        use="forward or reverse KL, row by row, by where the student is still wrong: in the teacher's head or tail",
        setting=LANGUAGE,
        takes={"temperature": temperature(1.0), "head": number(0.5, "(0, 1)")},
    ),
    "total_variation": Loss(
        fn=total_variation,
        paper="Wen et al. ACL 2023",
        use="bounded, the most robust of the divergences to outlying teacher answers; slow far from the teacher",
        setting=LANGUAGE,
        takes={"temperature": temperature(1.0)},
    ),
    "pearson": Loss(
        fn=pearson_divergence,
        paper="Cressie, Read 1984",
        use="punishes what the student misses more than KL does; least robust of the power family",
        setting="CIFAR-100, as KD",
        takes={"temperature": temperature(4.0), "ratio_clip": number(0.0, "[1, 1e6]", off=0.0)},
        weight=0.9,
        ce_weight=0.1,
    ),
    "neyman": Loss(
        fn=neyman_divergence,
        paper="Cressie, Read 1984",
        use="punishes what the student adds; needs the teacher's small probabilities",
        setting="CIFAR-100, as KD",
        takes={"temperature": temperature(4.0), "ratio_clip": number(0.0, "[1, 1e6]", off=0.0)},
        weight=0.9,
        ce_weight=0.1,
        needs=DENSE,
    ),
    "hellinger": Loss(
        fn=squared_hellinger,
        paper="Cressie, Read 1984",
        use="bounded and smooth: a robust middle between KL and reverse KL",
        setting="CIFAR-100, as KD",
        takes={"temperature": temperature(4.0)},
        weight=0.9,
        ce_weight=0.1,
    ),
    "alpha": Loss(
        fn=alpha_divergence,
        paper="AlphaNet, Wang et al. ICML 2021",
        use="guards against over- and underestimated classes at once, whichever is worse on the row",
        setting="ImageNet supernets",
        takes={
            "temperature": temperature(1.0),
            "alpha_min": number(-1.0, "[-10, 10]"),
            "alpha_max": number(1.0, "[-10, 10]"),
            "ratio_clip": number(5.0, "[1, 1e6]", off=0.0),
        },
        needs=DENSE,
        below_zero=True,  # where the clip holds
    ),
    "abkd": Loss(
        fn=alpha_beta_divergence,
        paper="ABKD, Wang et al. ICML 2025",
        use="tunes how much hard classes and confident classes weigh, between KL and reverse KL",
        setting="CIFAR-100",
        takes={
            "temperature": temperature(4.0),
            "alpha": number(0.8, "[-10, 10]"),
            "beta": number(0.3, "[-10, 10]"),
        },
        weight=32.0,
        ce_weight=1.0,
        unsure="the weight of the CE beside it was not found; 1 is ours",
    ),
    "taid": Loss(
        fn=interpolated_kl_divergence,
        paper="Shing et al. ICLR 2025",
        use="a large gap between teacher and student: the target grows with the student",
        setting=LANGUAGE,
        takes={"temperature": temperature(1.0), "start": number(0.4, "[0, 1]"), "end": number(1.0, "(0, 1]")},
        extras=frozenset({"progress"}),
        unsure="linear schedule; the paper's adaptive update of t is not applied",
    ),
    "listmle": Loss(
        fn=list_mle,
        paper="Xia et al. ICML 2008; TSD-KD",
        use="beside a divergence, as gjs:1 + listmle:0.1: the order of the classes that the student believes in",
        setting=LANGUAGE,
        needs=frozenset({"fixed_tail"}),
        zero_at_teacher=False,
        unsure="TSD-KD takes it on the opening tokens of an answer alone, at a weight of 0.1",
    ),
    "soft_ce": Loss(
        fn=soft_cross_entropy,
        sparse=sparse_soft_cross_entropy,
        paper="Hinton et al. 2015",
        use="KD's gradient with cross-entropy's value; comparable across students with one teacher",
        setting="any data, T = 1",
        takes={"temperature": temperature(1.0)},
        zero_at_teacher=False,
    ),
}
