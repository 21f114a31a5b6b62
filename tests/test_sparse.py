"""A teacher's sparse form gives losses what its dense logits give them, and no block of these is made."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from logitbank.pipeline.answers.ensemble import Ensemble
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.answers.stored_batch import StoredBatch
from logitbank.pipeline.datasets import load_split
from logitbank.pipeline.encoding import Encoding, decode, finite, sparse
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.encoding.fitting.basis import gaussian_levels
from logitbank.pipeline.encoding.groups import best_classes
from logitbank.pipeline.encoding.settings import DENSE_CLASSES
from logitbank.pipeline.encoding.sparse import SparseLogits
from logitbank.pipeline.encoding.tail_basis import TailBasis
from logitbank.pipeline.encoding.tail_mass import shift_to_mass
from logitbank.pipeline.encoding.tail_predictor import Gauge, TailPredictor
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.train_student.losses import LOSSES, ExactAnswer, Step, parse_objective
from logitbank.pipeline.train_student.losses.context import Answer, SparseTarget
from logitbank.pipeline.train_student.losses.mixed import MixedAnswer
from logitbank.pipeline.train_student.losses.rated import RatedAnswer
from logitbank.stores import open_store
from tests.positions import write_files, write_store

STEP = Step(step=0, steps_per_epoch=1, num_epochs=1)
ROWS, MANY = 24, 4200
SPARSE = {name: loss for name, loss in LOSSES.items() if loss.sparse is not None}


def predictor(num_classes: int, num_folds: int, coefficients: int) -> TailPredictor:
    """A map of two factors, and a basis of so many directions."""
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(num_folds, *shape, generator=generator) for shape in ((num_classes, 3), (3, num_classes))]
    basis = TailBasis(
        basis_FMC=torch.randn(num_folds, coefficients, num_classes, generator=generator) / num_classes**0.5,
        scale_FM=torch.rand(num_folds, coefficients, generator=generator),
        width_FM=torch.full((num_folds, coefficients), 2),
        levels=torch.cat([gaussian_levels(width) for width in range(1, 9)]).float(),
    )
    bias_FC = torch.randn(num_folds, num_classes, generator=generator)
    parts = {"matrix_FCD": 0.2 * made[0], "factor_FDC": made[1], "bias_FC": bias_FC}
    return TailPredictor(**parts, gauge=Gauge(), basis=basis if coefficients else None)


def both_forms(kind: str, num_classes: int, top_k: int, scale: float, num_folds: int) -> tuple[Tensor, SparseLogits]:
    """Dense logits and the sparse form of rows, of which some have masked classes or no label."""
    generator = torch.Generator().manual_seed(num_classes)
    logits_BC = scale * torch.randn(ROWS, num_classes, generator=generator)
    if num_classes > 2:
        logits_BC[:4, num_classes // 2 :] = -math.inf
    logits_BC[4] = 0.0
    labels_B = torch.randint(-1, num_classes, (ROWS,), generator=generator)
    folds_B = torch.randint(0, num_folds, (ROWS,), generator=generator)
    coded = kind == "coded"
    encoding = Encoding(
        kind="topk+tail" if coded else "topk",
        num_classes=num_classes,
        top_k=top_k,
        tail_bits=8 / num_classes if coded else 0,  # a byte
        bits=16 if kind == "halves" else 8,
    )
    rule = kind if kind in ("uniform", "renormalise") else "predicted"
    tail = predictor(num_classes, num_folds, 4 if coded else 0) if rule == "predicted" else None
    arrays = encode(logits_BC, labels_B, encoding, predictor=tail, folds_B=folds_B, shifted=tail is not None)
    stored = {name: torch.from_numpy(array) for name, array in arrays.items()}
    form = sparse(stored, labels_B, encoding, predictor=tail, folds_B=folds_B, tail=rule)
    assert form is not None
    dense_BC = decode(stored, labels_B, encoding, predictor=tail, folds_B=folds_B, tail=rule)
    return finite(dense_BC), form


@pytest.mark.parametrize("name", sorted(SPARSE))
@pytest.mark.parametrize("kind", ["predicted", "halves", "coded", "uniform", "renormalise"])
def test_the_sparse_form_gives_losses_what_dense_logits_give_in_double_precision(kind: str, name: str) -> None:
    """Loss to 1e-5 of its size or of T, and gradient to 1e-5 T; beyond T = 20, as near as float32 comes from logits."""
    loss = SPARSE[name]
    assert loss.sparse is not None
    for num_classes, top_k in ((2, 1), (3, 3), (5, 4), (40, 7), (2500, 20)):
        if kind == "coded" and num_classes == 2:
            continue  # a byte is more than four bits a class
        for scale in (1.0, 10.0, 1e4):
            dense_BC, form = both_forms(kind, num_classes, top_k, scale, num_folds=1 + num_classes % 2)
            student_BC = scale * torch.randn(dense_BC.shape, generator=torch.Generator().manual_seed(0))
            student_BC.requires_grad_()
            for temperature in (0.5, 1.0, 4.0, 20.0, 1000.0):
                options = {"temperature": temperature}
                exact_B = loss.fn(student_BC.double(), dense_BC.double(), torch.zeros(ROWS).long(), **options)
                (exact_BC,) = torch.autograd.grad(exact_B.sum(), student_BC)
                found_B = loss.sparse(student_BC, form, **options)
                (found_BC,) = torch.autograd.grad(found_B.sum(), student_BC)
                size_B = exact_B.abs() + max(1.0, temperature if temperature <= 20 else temperature**2 / 100)
                error = float(((found_B - exact_B).abs() / size_B).detach().max())
                off = float((found_BC - exact_BC).abs().max()) / max(1.0, temperature)
                assert error < 1e-5, (num_classes, top_k, scale, temperature)
                assert off < 1e-5, (num_classes, top_k, scale, temperature)
                with torch.no_grad():
                    assert torch.equal(loss.sparse(student_BC, form, **options), found_B)


def test_gradients_are_those_of_the_numbers_and_come_again() -> None:
    for kind in ("predicted", "uniform"):
        _, form = both_forms(kind, 9, 3, 2.0, num_folds=2)
        student_BC = torch.randn(ROWS, 9, dtype=torch.float64).requires_grad_()
        for loss in SPARSE.values():
            assert loss.sparse is not None
            assert torch.autograd.gradcheck(partial(loss.sparse, target=form, temperature=2.0), (student_BC,))
            total = loss.sparse(student_BC, form, temperature=2.0).sum()
            (first_BC,) = torch.autograd.grad(total, student_BC, retain_graph=True)
            assert torch.equal(first_BC, torch.autograd.grad(total, student_BC)[0])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> StoredAnswers:
    """Answers at three positions, ragged, of more classes than a full matrix predicts."""
    folder = tmp_path_factory.mktemp("many")
    data, _ = write_files(folder, 12, 3, MANY, ragged=True)
    encoding = Encoding(kind="topk", num_classes=MANY, top_k=6)
    plan = FoldPlan(num_folds=2, strategy="group", seed=0)
    return StoredAnswers(open_store(write_store(folder, load_split(data), encoding, plan=plan)))


def whole(*_: object) -> Tensor:
    raise AssertionError("every class was decoded")


@pytest.mark.parametrize("tail", ["predicted", "uniform"])
def test_an_objective_that_can_do_without_every_class_decodes_none(
    many: StoredAnswers, tail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of rows too, with rows that are not served, a label's term beside it, and a part of a batch."""
    answers = StoredAnswers(open_store(many._path), tail=tail)
    rows, labels_BL = torch.tensor([3, 0, 11, 7]), many.labels[[3, 0, 11, 7]]
    student_BLC = torch.randn(4, 3, MANY, generator=torch.Generator().manual_seed(2)).requires_grad_()
    plain = answers.of(rows, 0)
    served_P = plain.served()
    assert served_P is not None
    for name in sorted(SPARSE):
        objective = parse_objective(name, {})
        dense = Ensemble([answers], [1.0], combine="mean-logit").of(rows, 0)  # which has no sparse form
        expected_B = objective(student_BLC, dense, labels_BL, STEP)
        (expected_BLC,) = torch.autograd.grad(expected_B.sum(), student_BLC)
        monkeypatch.setattr(StoredBatch, "decoded", whole)
        for chunk in (10**9, 2 * MANY):
            monkeypatch.setattr("logitbank.pipeline.train_student.losses.objective.CHUNK", chunk)
            found_B = objective(student_BLC, answers.of(rows, 0), labels_BL, STEP)
            (found_BLC,) = torch.autograd.grad(found_B.sum(), student_BLC)
            torch.testing.assert_close(found_B, expected_B, rtol=1e-5, atol=2e-5)
            torch.testing.assert_close(found_BLC, expected_BLC, rtol=1e-5, atol=2e-5)
        monkeypatch.undo()


@pytest.mark.parametrize(
    "settings",
    [
        {"standardise": True},
        {"temperature_rule": "difficulty"},
        {"row_weight": "confidence"},
        {"target_transform": "label_mix"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_looks_at_every_class_gets_every_class(many: StoredAnswers, settings: dict[str, str | float]) -> None:
    rows, objective = torch.tensor([3, 0]), parse_objective("kd", settings)
    student_BLC = torch.randn(2, 3, MANY, generator=torch.Generator().manual_seed(2))
    dense = Ensemble([many], [1.0], combine="mean-logit").of(rows, 0)  # which has no sparse form
    found_B = objective(student_BLC, many.of(rows, 0), many.labels[rows], STEP)
    torch.testing.assert_close(found_B, objective(student_BLC, dense, many.labels[rows], STEP), rtol=0, atol=0)


def test_answers_that_have_no_sparse_form_do_not_offer_it(many: StoredAnswers) -> None:
    store, rows = open_store(many._path), torch.arange(2)
    batch = many.of(rows, 0)
    form: SparseTarget = batch.sparse()
    assert form.index_BJ.shape == (6, 7)
    assert "sparse" in batch.offers & batch.part(slice(1, 3)).offers
    others: list[Answer] = [
        StoredAnswers(store, tail="bucket").of(rows, 0),
        Ensemble([many], [1.0], combine="mean-prob").of(rows, 0),
        MixedAnswer(batch, batch, torch.ones(6)),
        RatedAnswer(batch, torch.ones(6)),
        ExactAnswer(batch.logits(torch.empty(0), 1.0)),
    ]
    assert not any("sparse" in other.offers for other in others)


def test_the_best_of_very_many_classes_are_those_that_a_sort_finds() -> None:
    """Also those that stand in no group, tied ones, and rows of which most classes are masked."""
    logits_BC = torch.randn(7, 4 * DENSE_CLASSES + 5, generator=torch.Generator().manual_seed(0))
    logits_BC[0, -3:] = 9.0
    logits_BC[1] = 0.0
    logits_BC[2, 40:] = -math.inf
    for count in (1, 50):
        best_BK, index_BK = best_classes(logits_BC, count)
        assert torch.equal(best_BK, logits_BC.sort(1, descending=True).values[:, :count])
        assert torch.equal(best_BK, logits_BC.gather(1, index_BK))
        assert all(len(row.unique()) == count for row in index_BK)


def test_the_shift_of_very_many_classes_gives_the_mass_that_is_asked_for() -> None:
    """With none, few or most of the classes at the cap, and with the largest in no group."""
    shape_BC = torch.randn(6, DENSE_CLASSES + 7, generator=torch.Generator().manual_seed(0))
    shape_BC[1:3, -2:] = 9.0
    shape_BC[3, 5::9] = 4.0
    shape_BC[4] *= 3.0
    known = torch.arange(12).reshape(6, 2)
    cap_B, log_mass_B = torch.zeros(6), torch.tensor([-3.0, 0.5, 2.0, 6.0, 6.5, 8.3])
    shift_B = shift_to_mass(shape_BC.clone(), known, log_mass_B, cap_B)
    tail_BC = torch.minimum(shape_BC + shift_B[:, None], cap_B[:, None]).scatter(1, known, -math.inf)
    torch.testing.assert_close(tail_BC.double().logsumexp(1).float(), log_mass_B, rtol=0, atol=1e-4)
