"""Semiparametric distillation: squared error on logits and its corrections by the label.

The teacher is a nuisance estimate; the correction (y - p) makes the student's loss less sensitive to the teacher's
errors. It is meant for out-of-fold teachers (cross-fitting). Shapes: B batch, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .numerics import Temperature, at, cross_entropy, kl, log_probs, mean_square, probs, raised

_HALVINGS = {torch.float32: 24, torch.float64: 44}
"""Of the interval of 20 in which a minimax correction is searched: as far as the type can tell."""


def logit_squared_error(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Squared error on raw logits, mean over the classes (SEL).

    1/C sum_c (s_c - z_c)^2.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.

    Returns:
        Loss of each example, shape [B].

    References:
        Ba, Caruana. Do Deep Nets Really Need to be Deep? NeurIPS 2014, section 2.2.
        Dao, Kamath, Syrgkanis, Mackey. Knowledge Distillation as Semiparametric Inference. ICLR 2021, section 5.
    """
    return mean_square(raised(student_BC) - raised(teacher_BC))


def corrected_squared_error(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    c: float = 0.01,
    scale: str = "logit",
    floor: float = 1e-3,
    smoothing: float = 0.0,
) -> Tensor:
    """Gamma-corrected squared error: the target moves towards the label as far as the bound allows.

    1/C sum_j (s_j - t_j)^2 with t_j = z_j + g_j (y_j - p_j), p = softmax(z), y the one-hot label and
    g_j = (c / max(p_j, floor)) / (c + (y_j - p_j)^2), which minimises (y_j - p_j)^2 g^2 + c (g - 1/p_j)^2.
    scale = "probability": s_j, z_j become probabilities and g_j = c / (c + (y_j - p_j)^2).
    c -> 0 leaves the teacher as it is; c -> infinity is the orthogonal loss at the same floor.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite; out-of-fold if the theory is to hold.
        labels_B: Class ids.
        c: Trade of the teacher's bias against the label's variance, > 0; 0.01 was the best for CIFAR-10.
        scale: "logit" or "probability".
        floor: Smallest p_j in the denominator.
        smoothing: Mixes p with the uniform distribution first.

    Returns:
        Loss of each example, shape [B].

    References:
        Dao, Kamath, Syrgkanis, Mackey. Knowledge Distillation as Semiparametric Inference. ICLR 2021, section 4.2;
        the bound-fast form of the authors' code.
    """
    target_BC = corrected_target(teacher_BC, labels_B, c=c, scale=scale, floor=floor, smoothing=smoothing)
    if scale == "probability":
        return (probs(student_BC) - target_BC).square().mean(1)
    return mean_square(raised(student_BC) - target_BC)


def corrected_target(
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    c: float = 0.01,
    scale: str = "logit",
    floor: float = 1e-3,
    smoothing: float = 0.0,
) -> Tensor:
    """What ``corrected_squared_error`` fits, [B, C]: logits or, at scale = "probability", numbers between p and y.

    Of more than two classes those need not sum to 1.
    """
    p_BC = _smoothed(probs(teacher_BC), smoothing, teacher_BC.shape[1])
    surprise_BC = _minus_one_hot(p_BC, labels_B).neg()  # y - p
    gamma_BC = c / (c + surprise_BC.square())
    if scale == "probability":
        return p_BC + gamma_BC * surprise_BC
    return raised(teacher_BC) + gamma_BC * surprise_BC / p_BC.clamp(min=floor)


def minimax_squared_error(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    uncertainty: str = "relative",
    width: float = 2.0,
    mix: float = 0.5,
    smoothing: float = 0.0,
) -> Tensor:
    """Gamma-corrected squared error whose correction is the best for the worst true probability.

    1/C sum_j (s_j - t_j)^2 with t_j = z_j + g_j (y_j - p_j), p = softmax(z), y the one-hot label and g_j in [-10, 10]
    the minimiser of max_r (g (r - p_j) - log(r / p_j))^2 + (1/mix - 1 + g)^2 r (1 - r) over ten equally spaced r of the
    probabilities that the truth may have: from p / (1 + width) to p (1 + width), with uncertainty = "power" from p to
    p^(1 / width), with "absolute" from p - width to p + width, all within 1e-6 (absolute: 1e-3) and 1. The authors
    search g on a grid of steps of 0.05; this is the minimum itself, by bisection.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite; out-of-fold if the theory is to hold.
        labels_B: Class ids.
        uncertainty: "relative", "power" or "absolute".
        width: Of the interval; the authors take 2, 2 and 0.05.
        mix: Share of this loss beside cross-entropy.
        smoothing: Mixes p with the uniform distribution first.

    Returns:
        Loss of each example, shape [B].

    References:
        Dao, Kamath, Syrgkanis, Mackey. Knowledge Distillation as Semiparametric Inference. ICLR 2021; the minimax forms
        of the authors' code.
    """
    p_BC = _smoothed(probs(teacher_BC), smoothing, teacher_BC.shape[1]).clamp(min=1e-30)
    least, most = {
        "relative": (p_BC / (1.0 + width), p_BC * (1.0 + width)),
        "power": (p_BC, p_BC ** (1.0 / width)),
        "absolute": (p_BC - width, p_BC + width),
    }[uncertainty]
    least_BC, most_BC = least.clamp(min=1e-3 if uncertainty == "absolute" else 1e-6), most.clamp(max=1.0)
    gamma_BC = _minimax_gamma(p_BC, least_BC, most_BC, 1.0 / mix - 1.0)
    surprise_BC = _minus_one_hot(p_BC, labels_B).neg()
    return mean_square(raised(student_BC) - (raised(teacher_BC) + gamma_BC * surprise_BC))


def _minimax_gamma(p_BC: Tensor, least_BC: Tensor, most_BC: Tensor, offset: float) -> Tensor:
    """Where the largest of ten parabolas is least: the slope of the one on top says on which side it lies."""
    share_R = torch.linspace(0.0, 1.0, 10, dtype=p_BC.dtype, device=p_BC.device)[:, None, None]
    r_RBC = least_BC + share_R * (most_BC - least_BC)
    lever_RBC, distance_RBC, variance_RBC = r_RBC - p_BC, (r_RBC / p_BC).log(), r_RBC * (1.0 - r_RBC)
    low_BC, high_BC = torch.full_like(p_BC, -10.0), torch.full_like(p_BC, 10.0)
    for _ in range(_HALVINGS[p_BC.dtype]):
        gamma_BC = 0.5 * (low_BC + high_BC)
        missed_RBC, moved_BC = gamma_BC * lever_RBC - distance_RBC, offset + gamma_BC
        top_1BC = (missed_RBC.square() + moved_BC.square() * variance_RBC).argmax(0, keepdim=True)
        slope_1BC = (missed_RBC * lever_RBC + moved_BC * variance_RBC).gather(0, top_1BC)
        low_BC = torch.where(slope_1BC[0] < 0.0, gamma_BC, low_BC)
        high_BC = torch.where(slope_1BC[0] < 0.0, high_BC, gamma_BC)
    return 0.5 * (low_BC + high_BC)


def _smoothed(p: Tensor, smoothing: float, num_classes: int) -> Tensor:
    return p if smoothing == 0.0 else p * (1.0 - smoothing) + smoothing / num_classes


def _minus_one_hot(p_BC: Tensor, labels_B: Tensor) -> Tensor:
    index_B1 = labels_B[:, None]
    return p_BC.scatter_add(1, index_B1, torch.full_like(index_B1, -1, dtype=p_BC.dtype))


def fixed_gamma_squared_error(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, gamma: str = "one", smoothing: float = 0.0
) -> Tensor:
    """Squared error whose correction needs no constant.

    1/C sum_j (s_j - t_j)^2 with t_j = z_j + g_j (y_j - p_j), p = softmax(z), y the one-hot label and g_j = 1, or with
    gamma = "one_minus_p" g_j = 1 - p_j.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite; out-of-fold if the theory is to hold.
        labels_B: Class ids.
        gamma: "one" or "one_minus_p".
        smoothing: Mixes p with the uniform distribution first.

    Returns:
        Loss of each example, shape [B].

    References:
        Dao, Kamath, Syrgkanis, Mackey. Knowledge Distillation as Semiparametric Inference. ICLR 2021; variants of the
        authors' code.
    """
    target_BC = fixed_gamma_target(teacher_BC, labels_B, gamma=gamma, smoothing=smoothing)
    return mean_square(raised(student_BC) - target_BC)


def fixed_gamma_target(teacher_BC: Tensor, labels_B: Tensor, *, gamma: str = "one", smoothing: float = 0.0) -> Tensor:
    """The logits that ``fixed_gamma_squared_error`` fits, [B, C]."""
    p_BC = _smoothed(probs(teacher_BC), smoothing, teacher_BC.shape[1])
    surprise_BC = _minus_one_hot(p_BC, labels_B).neg()
    gamma_BC = 1.0 if gamma == "one" else 1.0 - p_BC
    return raised(teacher_BC) + gamma_BC * surprise_BC


def slow_bound_squared_error(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    c: float = 0.01,
    floor: float = 1e-3,
    smoothing: float = 0.0,
) -> Tensor:
    """Gamma-corrected squared error under the slow-rate bound.

    1/C sum_j (s_j - t_j)^2 with t_j = z_j + g_j (y_j - p_j), p = softmax(z), y the one-hot label and g_j the minimiser
    of (y_j - p_j)^2 g^2 + c (g - 1/max(p_j, floor))^4: of a cubic with one real root, in closed form.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite; out-of-fold if the theory is to hold.
        labels_B: Class ids.
        c: Trade of the teacher's bias against the label's variance, > 0.
        floor: Smallest p_j in the denominator.
        smoothing: Mixes p with the uniform distribution first.

    Returns:
        Loss of each example, shape [B].

    References:
        Dao, Kamath, Syrgkanis, Mackey. Knowledge Distillation as Semiparametric Inference. ICLR 2021; the bound-slow
        form of the authors' code.
    """
    target_BC = slow_bound_target(teacher_BC, labels_B, c=c, floor=floor, smoothing=smoothing)
    return mean_square(raised(student_BC) - target_BC)


def slow_bound_target(
    teacher_BC: Tensor, labels_B: Tensor, *, c: float = 0.01, floor: float = 1e-3, smoothing: float = 0.0
) -> Tensor:
    """The logits that ``slow_bound_squared_error`` fits, [B, C]."""
    p_BC = _smoothed(probs(teacher_BC), smoothing, teacher_BC.shape[1])
    surprise_BC = _minus_one_hot(p_BC, labels_B).neg()
    inverse_BC = 1.0 / p_BC.clamp(min=floor)
    # u = 1/p - g solves u^3 + 3 w u = 3 w / p with w = (y - p)^2 / (6 c): Cardano's formula with sinh
    w_BC = (surprise_BC.square() / (6.0 * c)).clamp(min=1e-30)
    below_BC = 2.0 * w_BC.sqrt() * torch.sinh(torch.asinh(1.5 * inverse_BC / w_BC.sqrt()) / 3.0)
    gamma_BC = below_BC**3 / (3.0 * w_BC)  # 1/p - u, without the cancellation
    return raised(teacher_BC) + gamma_BC * surprise_BC


def orthogonal_squared_error(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, floor: float = 1e-2, smoothing: float = 0.0
) -> Tensor:
    """Orthogonal squared error: the full first-order correction of the logits.

    1/C sum_j (s_j - t_j)^2 with t_j = z_j + y_j / max(p_j, floor) - 1, p = softmax(z).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite; out-of-fold if the theory is to hold.
        labels_B: Class ids.
        floor: Smallest p_y in the denominator.
        smoothing: Mixes p with the uniform distribution first.

    Returns:
        Loss of each example, shape [B].

    References:
        Dao, Kamath, Syrgkanis, Mackey. Knowledge Distillation as Semiparametric Inference. ICLR 2021, section 4.2.
    """
    return mean_square(raised(student_BC) - orthogonal_target(teacher_BC, labels_B, floor=floor, smoothing=smoothing))


def orthogonal_target(teacher_BC: Tensor, labels_B: Tensor, *, floor: float = 1e-2, smoothing: float = 0.0) -> Tensor:
    """The logits that ``orthogonal_squared_error`` fits, [B, C]."""
    pull_B = 1.0 / _smoothed(at(log_probs(teacher_BC), labels_B).exp(), smoothing, teacher_BC.shape[1]).clamp(min=floor)
    return (raised(teacher_BC) - 1.0).scatter_add(1, labels_B[:, None], pull_B[:, None])


def orthogonal_cross_entropy(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    floor: float = 1e-2,
    max_ratio: float = 0.0,
    smoothing: float = 0.0,
) -> Tensor:
    """Annealed cross-entropy with the orthogonal correction.

    T^2 [KL(w || q) + (r/T) (sum_c w_c log q_c - log q_y)], with w, q = softmax(logits / T), p = softmax(z) and
    r = w_y / max(p_y, floor). Up to the teacher's entropy this is T^2 [(1 - r/T) soft CE + (r/T) hard CE], both
    with q: at T = 1 plain cross-entropy on rows with p_y >= floor, and closer to KD where p_y is below. r > T,
    where the teacher all but excludes the label, makes the soft weight negative, as published; max_ratio holds it.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite; out-of-fold if the theory is to hold.
        labels_B: Class ids.
        temperature: T > 0, one number or one per row.
        floor: Smallest p_y in the denominator.
        max_ratio: 0 for none, else the largest r/T; 1 keeps every target non-negative.
        smoothing: Mixes p with the uniform distribution first.

    Returns:
        Loss of each example in nats, shape [B]; it may be negative.

    References:
        Dao, Kamath, Syrgkanis, Mackey. Knowledge Distillation as Semiparametric Inference. ICLR 2021, section 4.2;
        the annealed form of the authors' code, reduced by us.
    """
    log_w_BC, log_q_BC = log_probs(teacher_BC, temperature), log_probs(student_BC, temperature)
    label_p_B = _smoothed(at(log_probs(teacher_BC), labels_B).exp(), smoothing, teacher_BC.shape[1])
    ratio_B = at(log_w_BC, labels_B).exp() / label_p_B.clamp(min=floor) / temperature
    if max_ratio != 0.0:
        ratio_B = ratio_B.clamp(max=max_ratio)
    soft_B = cross_entropy(log_w_BC.exp(), log_q_BC)
    rows_B = kl(log_w_BC, log_q_BC) - ratio_B * (soft_B + at(log_q_BC, labels_B))
    return rows_B * temperature**2
