"""Losses that look at features: those of the student, and those that a store holds of the teacher.

Fold teachers have features of their own each, in spaces that have nothing in common: whatever reads them has weights
for each fold.

Shapes: B batch, C classes, D features of the student, K features of the teacher, F folds, S subclasses of a class,
G = C S.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from .context import StoredFeatures, TeacherFeatures
from .kinds import Material
from .numerics import scaled

_HIDDEN, _SHARED = 512, 64  # of Distiller's critics
_TINY = 1e-12


def stored_of(material: Material) -> StoredFeatures:
    """What the store holds; refused before a module is made where that is nothing."""
    assert material.teacher is not None  # the loss needs `embedding`
    return material.teacher


class PerFold(nn.Module):
    """A linear layer for each fold's teacher.

    Args:
        num_folds: F; 1 without cross-fitting.
        inputs: Features that are read.
        outputs: Features that are given.
    """

    def __init__(self, num_folds: int, inputs: int, outputs: int) -> None:
        super().__init__()
        layers = [nn.Linear(inputs, outputs) for _ in range(num_folds)]
        self.weight_FOI = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias_FO = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, features_BI: Tensor, fold_B: Tensor) -> Tensor:
        """Features of rows by the layer of their fold, [B, outputs]."""
        if len(self.bias_FO) == 1:
            return linear(features_BI, self.weight_FOI[0], self.bias_FO[0])
        every_BFO = torch.einsum("bi,foi->bfo", features_BI, self.weight_FOI) + self.bias_FO
        return every_BFO[torch.arange(len(fold_B), device=fold_B.device), fold_B]


class Projection(nn.Module):
    """From the student's features to the teacher's, and the size of the latter.

    Args:
        material: Of the run.
        distance: Unused.
    """

    scale_F: Tensor

    def __init__(self, material: Material, *, distance: str) -> None:
        super().__init__()
        stored = stored_of(material)
        self.layer = PerFold(stored.num_folds, material.student_features, stored.values_NK.shape[1])
        parts = [stored.of_fold(fold) for fold in range(stored.num_folds)]  # one that is left out has no rows
        scales = [part.square().mean().sqrt().clamp(min=_TINY) if len(part) else torch.tensor(1.0) for part in parts]
        self.register_buffer("scale_F", torch.stack(scales))


def feature_distance(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    module: Projection,
    student_features_BD: Tensor,
    teacher_features: TeacherFeatures,
    distance: str = "cosine",
) -> Tensor:
    """Distance of W h_s + b to h_t: 1 - cos; or sum_k |n(W h_s + b) - n(h_t)|_k, n(h) = h / ||h||; or their mean
    squared difference, with h_t in units of its root mean square over the store.

    Args:
        student_BC: Unused, as are the next two: the loss looks at features alone.
        teacher_BC: Unused.
        labels_B: Unused.
        module: W and b, learned beside the student; one of each for each fold teacher.
        student_features_BD: What the student's head reads.
        teacher_features: What the store holds.
        distance: Cosine; l1 of unit vectors, as in DMAE; or mse, as in FitNets.

    Returns:
        Loss of each example, shape [B].

    References:
        Romero et al. FitNets: Hints for Thin Deep Nets. ICLR 2015, section 2.2. Bai et al. Masked Autoencoders Enable
        Efficient Knowledge Distillers. CVPR 2023 (l1; there of tokens of a middle layer).
    """
    found_BK: Tensor = module.layer(student_features_BD, teacher_features.fold_B)
    wanted_BK = teacher_features.values_BK
    if distance == "mse":
        return (found_BK - wanted_BK / module.scale_F[teacher_features.fold_B, None]).square().mean(1)
    unit_BK, goal_BK = normalize(found_BK, dim=1), normalize(wanted_BK, dim=1)
    if distance == "l1":
        return (unit_BK - goal_BK).abs().sum(1)
    return (unit_BK - goal_BK).square().sum(1) / 2  # 1 - cos, without cancellation near 0


class Critics(nn.Module):
    """Distiller's critic f(h_s, h_t) = <g_s(h_s), g_t(h_t)> and baseline b(h_t), of three layers each.

    Args:
        material: Of the run.
        alpha: Unused.
    """

    def __init__(self, material: Material, *, alpha: float) -> None:
        super().__init__()
        stored = stored_of(material)
        folds, width = stored.num_folds, stored.values_NK.shape[1]
        self.read_teacher = PerFold(folds, width, _HIDDEN)
        self.student = nn.Sequential(nn.Linear(material.student_features, _HIDDEN), *_rest(_SHARED))
        self.teacher = nn.Sequential(*_rest(_SHARED))
        self.read_baseline = PerFold(folds, width, _HIDDEN)
        self.baseline = nn.Sequential(*_rest(1))

    def forward(self, student_BD: Tensor, teacher: TeacherFeatures) -> tuple[Tensor, Tensor]:
        """Scores [B, B], those of the teacher's row i with the student's row j, and log baselines [B]."""
        values_BK, fold_B = teacher.values_BK, teacher.fold_B
        score_BB = self.teacher(self.read_teacher(values_BK, fold_B)) @ self.student(student_BD).T
        return score_BB, self.baseline(self.read_baseline(values_BK, fold_B))[:, 0]


def _rest(outputs: int) -> list[nn.Module]:
    return [nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, outputs)]


def mutual_information_bound(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    module: Critics,
    student_features_BD: Tensor,
    teacher_features: TeacherFeatures,
    alpha: float = 0.5,
) -> Tensor:
    """-I of student and teacher features, I_i = 1 + mean_{j != i} log(e^f_ii / a_ij) - mean_{j != i} e^f_ij / a_ii,
    a_ij = alpha mean_{k != j} e^f_ik + (1 - alpha) e^b_i; f_ij = f(h_s of row j, h_t of row i), b_i = b(h_t of row i).

    The mean over a batch is the negative of the lower bound I_alpha of the mutual information. A batch of one row has
    nothing to compare with, and gives 0.

    Args:
        student_BC: Unused, as are the next two: the loss looks at features alone.
        teacher_BC: Unused.
        labels_B: Unused.
        module: The critic f and the log baseline b, learned beside the student.
        student_features_BD: What the student's head reads.
        teacher_features: What the store holds.
        alpha: Share of the batch's own baseline: 1 is InfoNCE, which varies least and sees at most log B.

    Returns:
        Loss of each example, shape [B].

    References:
        He et al. Distiller: A Systematic Study of Model Distillation Methods in Natural Language Processing. 2021,
        MI-alpha. Poole et al. On Variational Bounds of Mutual Information. ICML 2019, I_alpha.
    """
    num_rows = len(labels_B)
    score_BB: Tensor
    baseline_B: Tensor
    score_BB, baseline_B = module(student_features_BD, teacher_features)
    if num_rows < 2:
        return 0.0 * (score_BB.sum(1) + baseline_B)
    own_BB = torch.eye(num_rows, dtype=torch.bool, device=score_BB.device)
    log_mean_BB = _without_each(score_BB) - math.log(num_rows - 1)
    log_a_BB = log_mean_BB
    if alpha < 1:
        mixed = math.log(alpha) + log_mean_BB, math.log1p(-alpha) + baseline_B[:, None].expand_as(log_mean_BB)
        log_a_BB = torch.logaddexp(*mixed)
    others = num_rows - 1
    joint_B = score_BB.diagonal() - log_a_BB.masked_fill(own_BB, 0.0).sum(1) / others
    apart_BB = (score_BB - log_a_BB.diagonal()[:, None]).masked_fill(own_BB, -math.inf)
    return apart_BB.logsumexp(1).exp() / others - 1.0 - joint_B


def _without_each(score_BB: Tensor) -> Tensor:
    """log sum_{k != j} e^score_ik, [B, B]: of what stands before j and behind it, so that nothing cancels."""
    nothing_B1 = torch.full_like(score_BB[:, :1], -math.inf)
    before_BB = torch.cat([nothing_B1, score_BB.logcumsumexp(1)[:, :-1]], 1)
    behind_BB = torch.cat([nothing_B1, score_BB.flip(1).logcumsumexp(1)[:, :-1]], 1).flip(1)
    return torch.logaddexp(before_BB, behind_BB)


class Subclasses(nn.Module):
    """Directions in the teacher's features along which LELP cuts its classes, fitted on the store: not learned.

    For each class: its rows about their mean, without the part that the head reads (I - W^+ W), then the S first
    principal directions, turned by a random rotation, in units of their common deviation.

    Args:
        material: Of the run.
        temperature: Unused.
        beta: Unused.
        directions: principal, or random ones where the principal ones would be.

    Raises:
        ValueError: More subclasses than directions that the head does not read, or than a class has rows.
    """

    direction_FCKS: Tensor
    mean_FCK: Tensor

    def __init__(self, material: Material, *, temperature: float, beta: float, directions: str) -> None:
        super().__init__()
        stored = stored_of(material)
        parts = [
            _class_directions(stored, fold, label, material.subclasses, principal=directions == "principal")
            for fold in range(stored.num_folds)
            for label in range(material.num_classes)
        ]
        shape = stored.num_folds, material.num_classes
        directions_KS, means_K = (torch.stack(each) for each in zip(*parts, strict=True))
        self.register_buffer("direction_FCKS", directions_KS.reshape(*shape, *directions_KS.shape[1:]))
        self.register_buffer("mean_FCK", means_K.reshape(*shape, -1))

    def forward(self, teacher: TeacherFeatures) -> Tensor:
        """Scores of each class's subclasses, [B, C, S]."""
        centred_BCK = teacher.values_BK[:, None] - self.mean_FCK[teacher.fold_B]
        return torch.einsum("bck,bcks->bcs", centred_BCK, self.direction_FCKS[teacher.fold_B])


def _class_directions(
    stored: StoredFeatures, fold: int, label: int, subclasses: int, *, principal: bool
) -> tuple[Tensor, Tensor]:
    """Directions [K, S], in units of the scores' common deviation, and the mean [K] of one class of one fold's rows.

    A fold of which no rows are trained on, since it is left out, has zeros.
    """
    values_NK = stored.of_fold(fold, label).double()
    width = values_NK.shape[1]
    if not len(stored.of_fold(fold)):
        return torch.zeros(width, subclasses), torch.zeros(width)
    mean_K = values_NK.mean(0) if len(values_NK) else stored.of_fold(fold).double().mean(0)
    free_KK = torch.eye(width, dtype=torch.float64)
    if stored.head_FCK is not None:
        head_CK = stored.head_FCK[fold].double()
        head_CK = head_CK - head_CK.mean(0)  # a number added to all logits says nothing
        free_KK = free_KK - torch.linalg.pinv(head_CK, rtol=1e-6) @ head_CK
    room = int(torch.linalg.matrix_rank(free_KK, rtol=1e-6))
    if subclasses > room or (principal and subclasses >= len(values_NK)):
        raise ValueError(
            f"{subclasses} subclasses of class {label} need as many directions that the teacher's last layer does not"
            f" read, and more rows; found {room} directions and {len(values_NK)} rows: take fewer, or keep more"
            " features (--embedding-dim)"
        )
    spread_NK = (values_NK - mean_K) @ free_KK
    generator = torch.Generator().manual_seed(label)
    if principal:
        found_KS = torch.linalg.svd(spread_NK, full_matrices=False).Vh[:subclasses].T
    else:
        drawn_KS = torch.randn(width, subclasses, generator=generator, dtype=torch.float64)
        found_KS = torch.linalg.qr(free_KK @ drawn_KS).Q
    turn_SS = torch.linalg.qr(torch.randn(subclasses, subclasses, generator=generator, dtype=torch.float64)).Q
    turned_KS = free_KK @ found_KS @ turn_SS
    scale = (spread_NK @ turned_KS).square().mean().sqrt().clamp(min=_TINY) if len(values_NK) else 1.0
    return (turned_KS / scale).float(), mean_K.float()


def subclass_cross_entropy(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    module: Subclasses,
    subclass_logits_BG: Tensor,
    teacher_features: TeacherFeatures,
    temperature: float = 1.0,
    beta: float = 1.0,
    directions: str = "principal",
) -> Tensor:
    """Cross-entropy of subclasses, -T^2 sum_cs p_c t_cs log q_cs, p = softmax(z / T), t_c = softmax_s(a_cs / beta),
    q = softmax(the student's C S logits / T).

    a_cs are the teacher's features of the row along the directions of class c; see ``Subclasses``. The student, of
    ``--student subclasses:S:NAME``, adds each class's S probabilities up in all that it answers.

    Args:
        student_BC: Unused: the student's subclasses are used.
        teacher_BC: Teacher logits.
        labels_B: Unused.
        module: Directions and means of all classes.
        subclass_logits_BG: Of the student, subclasses of one class side by side.
        teacher_features: What the store holds.
        temperature: T > 0 of both sides.
        beta: Softness of the subclasses, in deviations of the scores.
        directions: principal, or random.

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Loo et al. Linear Projections of Teacher Embeddings for Few-Class Distillation. 2024.
    """
    target_BG = subclass_target(module, teacher_BC, teacher_features, temperature, beta)
    log_prob_BG = scaled(subclass_logits_BG, temperature).log_softmax(1)
    return -(temperature**2) * (target_BG * log_prob_BG).sum(1)


def subclass_target(
    module: Subclasses, teacher_BC: Tensor, teacher: TeacherFeatures, temperature: float, beta: float
) -> Tensor:
    """Probabilities of the C S subclasses, [B, G]; those of a class add up to the teacher's p_c."""
    prob_BC = scaled(teacher_BC, temperature).softmax(1)
    score_BCS: Tensor = module(teacher)
    return (prob_BC[:, :, None] * (score_BCS / beta).softmax(2)).flatten(1)
