"""The predicted tail and the coded residual: they help, they round-trip, they never break a row."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.fidelity import PredictorFit, fit_predictor
from logitbank.pipeline.encoding import (
    TAIL_RULES,
    Encoding,
    decode,
    decode_log_prob,
    finite,
    ladder,
    tail_basis,
    with_tail_shift,
)
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.encoding.fitting import predictor as predictor_module
from logitbank.pipeline.encoding.fitting.basis import allocate_bits, gaussian_error, gaussian_levels
from logitbank.pipeline.encoding.fitting.predictor import TailFit, mean_kl
from logitbank.pipeline.encoding.settings import tail_bits_of
from logitbank.pipeline.encoding.tail_basis import MAX_WIDTH, TailBasis
from logitbank.pipeline.encoding.tail_mass import shift_to_mass
from logitbank.pipeline.encoding.tail_predictor import Gauge, TailPredictor
from logitbank.stores.read.rows import broken_rows
from logitbank.stores.read.tails import Tails

CLASSES = 40
TOPK = Encoding(kind="topk", num_classes=CLASSES, top_k=6)
TAIL = Encoding(kind="topk+tail", num_classes=CLASSES, top_k=6, tail_bits=1)


def teacher_logits(num_rows: int, num_classes: int = CLASSES, seed: int = 0) -> Tensor:
    """Logits of low rank plus noise, as a classifier with features gives."""
    weights = torch.randn(8, num_classes, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, 8, generator=generator) * 1.5
    return features @ weights + 0.3 * torch.randn(num_rows, num_classes, generator=generator)


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def fitted() -> TailPredictor:
    predictor = fit_predictor(teacher_logits(4000), TAIL)
    assert predictor is not None
    return predictor


def kl(encoding: Encoding, predictor: TailPredictor | None, temperature: float) -> float:
    logits_BC = teacher_logits(500, seed=7)
    labels_B = torch.arange(500) % CLASSES
    arrays = as_tensors(encode(logits_BC, labels_B, encoding, predictor=predictor))
    return mean_kl(logits_BC, decode(arrays, labels_B, encoding, predictor=predictor), temperature)


def test_prediction_halves_the_error_and_the_code_halves_it_again(fitted: TailPredictor) -> None:
    for temperature in (1.0, 4.0):
        uniform, predicted = kl(TOPK, None, temperature), kl(TOPK, fitted, temperature)
        assert predicted < 0.5 * uniform
        assert kl(TAIL, fitted, temperature) < 0.5 * predicted


@pytest.mark.parametrize("encoding", [TOPK, TAIL], ids=["topk", "topk+tail"])
def test_hostile_rows_decode_to_distributions(encoding: Encoding, fitted: TailPredictor) -> None:
    logits_BC = teacher_logits(9, seed=3)
    logits_BC[0] = 0.0
    logits_BC[1] = 1e4
    logits_BC[2, 3] = 1e4
    logits_BC[3] = -1e4
    logits_BC[4, 1:] = -math.inf
    logits_BC[5, 8:] = -math.inf
    logits_BC[6, ::2] = -math.inf
    logits_BC[7] *= 1e3
    labels_B = torch.tensor([39, 0, 5, -1, 7, 2, 1, 12, 30])
    arrays = as_tensors(encode(logits_BC, labels_B, encoding, predictor=fitted))
    for tail in ("predicted", "bucket", "uniform", "renormalise"):
        decoded_BC = decode(
            arrays,
            labels_B,
            encoding,
            predictor=fitted,
            tail=tail,
            student_BC=teacher_logits(9),
            temperature=2,
        )
        assert not torch.isnan(decoded_BC).any()
        prob_BC = decode_log_prob(finite(decoded_BC), 2.0).exp()
        torch.testing.assert_close(prob_BC.sum(1), torch.ones(9))
        if tail != "bucket":
            best_BC = logits_BC == logits_BC.amax(1, keepdim=True)
            assert best_BC.gather(1, decoded_BC.argmax(1, keepdim=True)).all()
            kth_B1 = decoded_BC.gather(1, arrays["index"].long()[:, -1:])
            assert (decoded_BC.scatter(1, arrays["index"].long(), -math.inf) <= kth_B1).all()


@pytest.mark.parametrize("encoding", [TOPK, TAIL], ids=["topk", "topk+tail"])
def test_tail_mass_is_exact_and_a_prepared_slab_decodes_the_same(encoding: Encoding, fitted: TailPredictor) -> None:
    logits_BC, labels_B = teacher_logits(300, seed=5), torch.arange(300) % CLASSES
    labels_B[::7] = -1
    arrays = as_tensors(encode(logits_BC, labels_B, encoding, predictor=fitted))
    decoded_BC = decode(arrays, labels_B, encoding, predictor=fitted)
    tail_BC = decoded_BC.scatter(1, arrays["index"].long(), -math.inf)
    mass_B = tail_BC.logsumexp(1) - decoded_BC.logsumexp(1)
    torch.testing.assert_close(mass_B, arrays["log_tail_mass"].float(), rtol=0.01, atol=0.01)
    ready = with_tail_shift(arrays, labels_B, encoding, predictor=fitted)
    again_BC = decode(ready, labels_B, encoding, predictor=fitted)
    torch.testing.assert_close(again_BC, decoded_BC, rtol=0, atol=1e-4)
    for tail in ("uniform", "renormalise"):  # which have a shift of their own
        expected_BC = decode(arrays, labels_B, encoding, predictor=fitted, tail=tail)
        assert torch.equal(decode(ready, labels_B, encoding, predictor=fitted, tail=tail), expected_BC)
        assert "tail_shift" not in with_tail_shift(arrays, labels_B, encoding, predictor=fitted, tail=tail)


def made_up_predictor(num_classes: int, num_folds: int, encoding: Encoding) -> TailPredictor:
    """Numbers in the forms that fits give: of low rank for many classes, with a code where the encoding has one."""
    generator, low_rank = torch.Generator().manual_seed(3), num_classes > 4096
    inner, directions = (128 if low_rank else num_classes), min(num_classes, 64)
    basis = None
    if encoding.tail_bytes:
        width_FM = torch.zeros(num_folds, directions, dtype=torch.uint8)
        width_FM[:, : encoding.tail_bytes * 4] = 2
        basis = TailBasis(
            basis_FMC=torch.randn(num_folds, directions, num_classes, generator=generator) / 8,
            scale_FM=torch.rand(num_folds, directions, generator=generator) + 0.1,
            width_FM=width_FM,
            levels=torch.cat([gaussian_levels(width) for width in range(1, MAX_WIDTH + 1)]).float(),
        )
    return TailPredictor(
        matrix_FCD=torch.randn(num_folds, num_classes, inner, generator=generator) / 8,
        bias_FC=torch.randn(num_folds, num_classes, generator=generator) / 4,
        factor_FDC=torch.randn(num_folds, inner, num_classes, generator=generator) / 8 if low_rank else None,
        gauge=Gauge(limit=60.0) if num_folds == 1 else Gauge(kth=1.0, offset=2.0, limit=60.0),
        basis=basis,
    )


def rows_with_extremes(num_rows: int, num_classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_classes)
    logits_BC = 3 * torch.randn(num_rows, num_classes, generator=generator)
    logits_BC[0], logits_BC[1], logits_BC[2, 0], logits_BC[3] = 0, 1e4, 1e4, -1e4
    logits_BC[4, 1:] = -math.inf
    logits_BC[5, (num_classes + 1) // 2 :] = -math.inf
    logits_BC[6] = torch.arange(num_classes).float() % 7
    labels_B = torch.randint(-1, num_classes, (num_rows,), generator=generator)
    labels_B[:7] = torch.arange(7) % num_classes
    return logits_BC, labels_B


@pytest.mark.parametrize("num_folds", [1, 2])
@pytest.mark.parametrize("num_classes", [2, 10, 1000, pytest.param(21_841, marks=pytest.mark.slow)])
def test_a_stored_shift_is_sound_and_decodes_to_the_same_bits(num_classes: int, num_folds: int) -> None:
    logits_BC, labels_B = rows_with_extremes(40, num_classes)
    student_BC = torch.randn(logits_BC.shape, generator=torch.Generator().manual_seed(1))
    folds_B, top_k = torch.arange(40) % num_folds, min(10, num_classes // 2)
    for encoding in (
        Encoding(kind="topk", num_classes=num_classes, top_k=top_k),
        Encoding(kind="topk", num_classes=num_classes, top_k=top_k, bits=16),
        Encoding(kind="topk", num_classes=num_classes, top_k=min(10, num_classes)),
        Encoding(kind="topk+tail", num_classes=num_classes, top_k=top_k, tail_bits=max(0.1, 8 / num_classes)),
    ):
        predictor = made_up_predictor(num_classes, num_folds, encoding)
        fitted: dict[str, Any] = {"predictor": predictor, "folds_B": folds_B}
        stored = encode(logits_BC, labels_B, encoding, **fitted, shifted=True)
        tails = Tails(predictor.constants(), num_classes, num_folds)
        assert not list(broken_rows(stored, labels_B.numpy(), num_classes, tails=tails, folds_R=folds_B.numpy()))
        second = as_tensors(stored)
        first = {name: array for name, array in second.items() if name != "tail_shift"}
        ready = with_tail_shift(first, labels_B, encoding, **fitted)
        assert torch.equal(ready["tail_shift"], second["tail_shift"])
        for tail in TAIL_RULES:
            fitted |= {"tail": tail, "student_BC": student_BC, "temperature": 2.0}
            expected_BC = decode(first, labels_B, encoding, **fitted)
            assert torch.equal(decode(second, labels_B, encoding, **fitted), expected_BC)


def test_label_outside_the_head_decodes_to_its_own_value(fitted: TailPredictor) -> None:
    logits_BC = teacher_logits(200, seed=6)
    labels_B = logits_BC.argmin(1)
    arrays = as_tensors(encode(logits_BC, labels_B, TAIL, predictor=fitted))
    decoded_BC = decode_log_prob(decode(arrays, labels_B, TAIL, predictor=fitted))
    truth_BC = torch.log_softmax(logits_BC, 1)
    rows = torch.arange(200)
    torch.testing.assert_close(decoded_BC[rows, labels_B], truth_BC[rows, labels_B], rtol=0.003, atol=0.02)


def test_bucket_gives_the_tail_the_students_shape(fitted: TailPredictor) -> None:
    logits_BC, student_BC = teacher_logits(20, seed=8), teacher_logits(20, seed=9)
    labels_B = logits_BC.argmax(1)
    arrays = as_tensors(encode(logits_BC, labels_B, TOPK))
    for temperature in (1.0, 3.0):
        predicted_BC = decode(arrays, labels_B, TOPK, predictor=fitted)
        bucket_BC = decode(
            arrays,
            labels_B,
            TOPK,
            predictor=fitted,
            tail="bucket",
            student_BC=student_BC,
            temperature=temperature,
        )
        outside_BC = torch.ones_like(logits_BC, dtype=torch.bool).scatter_(1, arrays["index"].long(), False)
        offset_BC = (bucket_BC - student_BC).masked_fill(~outside_BC, math.nan)
        spread_B = offset_BC.nan_to_num(-math.inf).amax(1) - offset_BC.nan_to_num(math.inf).amin(1)
        torch.testing.assert_close(spread_B, torch.zeros(20), rtol=0, atol=1e-4)
        mass = [(torch.softmax(x_BC / temperature, 1) * outside_BC).sum(1) for x_BC in (predicted_BC, bucket_BC)]
        torch.testing.assert_close(mass[0], mass[1], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="student"):
        decode(arrays, labels_B, TOPK, tail="bucket")


def test_noise_is_not_predicted() -> None:
    noise = torch.randn(3000, CLASSES, generator=torch.Generator().manual_seed(1))
    assert fit_predictor(noise, TOPK) is None
    assert fit_predictor(noise, TAIL) is not None
    assert fit_predictor(noise, Encoding(kind="dense", num_classes=CLASSES)) is None


def test_constants_round_trip(fitted: TailPredictor) -> None:
    again = TailPredictor.from_constants(fitted.constants())
    assert again is not None
    logits_BC, labels_B = teacher_logits(30, seed=4), torch.full((30,), -1)
    arrays = as_tensors(encode(logits_BC, labels_B, TAIL, predictor=fitted))
    first_BC, second_BC = (decode(arrays, labels_B, TAIL, predictor=p) for p in (fitted, again))
    assert torch.equal(first_BC, second_BC)
    assert TailPredictor.from_constants({}) is None


@pytest.mark.parametrize("encoding", [TOPK, TAIL], ids=["topk", "topk+tail"])
def test_each_fold_teacher_has_its_own_map(encoding: Encoding) -> None:
    flipped = teacher_logits(3000, seed=1).flip(1)
    logits_NC = torch.cat([teacher_logits(3000), flipped])
    folds_N = torch.arange(6000) // 3000
    order = torch.randperm(6000, generator=torch.Generator().manual_seed(0))
    stacked = fit_predictor(logits_NC[order], encoding, folds_N=folds_N[order], num_folds=3)
    assert stacked is not None
    assert stacked.num_folds == 3
    test_BC = torch.cat([teacher_logits(100, seed=5), teacher_logits(100, seed=6).flip(1)])
    folds_B, labels_B = torch.arange(200) // 100, torch.full((200,), -1)
    arrays = as_tensors(encode(test_BC, labels_B, encoding, predictor=stacked, folds_B=folds_B))
    right = decode(arrays, labels_B, encoding, predictor=stacked, folds_B=folds_B)
    wrong = decode(arrays, labels_B, encoding, predictor=stacked, folds_B=1 - folds_B)
    assert mean_kl(test_BC, right, 4.0) < 0.3 * mean_kl(test_BC, wrong, 4.0)
    ready = with_tail_shift(arrays, labels_B, encoding, predictor=stacked, folds_B=folds_B)
    torch.testing.assert_close(
        decode(ready, labels_B, encoding, predictor=stacked, folds_B=folds_B), right, rtol=0, atol=1e-4
    )
    with pytest.raises(ValueError, match="folds_B"):
        decode(arrays, labels_B, encoding, predictor=stacked)


def test_very_many_classes_take_the_low_rank_form() -> None:
    num_classes = 5000
    encoding = Encoding(kind="topk+tail", num_classes=num_classes, top_k=8, tail_bits=0.1)
    predictor = fit_predictor(teacher_logits(400, num_classes), encoding)
    assert predictor is not None
    assert predictor.factor_FDC is not None
    assert sum(array.nbytes for array in predictor.constants().values()) < 12_000_000
    logits_BC, labels_B = teacher_logits(50, num_classes, seed=2), torch.full((50,), -1)
    arrays = as_tensors(encode(logits_BC, labels_B, encoding, predictor=predictor))
    coded = mean_kl(logits_BC, decode(arrays, labels_B, encoding, predictor=predictor), 4.0)
    uniform = mean_kl(logits_BC, decode(arrays, labels_B, encoding, tail="uniform"), 4.0)
    assert coded < 0.2 * uniform


def test_rows_beyond_the_room_for_logits_still_fit_the_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many classes a few rows are kept; the others leave their heads and coordinates, and help as kept ones do."""
    num_classes, top_k = 4200, 8
    encoding = Encoding(kind="topk", num_classes=num_classes, top_k=top_k)
    test_BC, labels_B = teacher_logits(60, num_classes, seed=7), torch.full((60,), -1)

    def kl(room: int, rows: int) -> float:
        monkeypatch.setattr(predictor_module, "KEPT_BYTES", 4 * num_classes * room)
        fit = TailFit(num_classes, top_k)
        for start in range(0, rows, 100):
            fit.update(teacher_logits(100, num_classes, seed=start), more=start > 0)
        assert sum(len(part.index_BK) for part in fit._further) == max(0, rows - rows // 8 - room)
        predictor = fit.fit()
        assert predictor is not None
        arrays = as_tensors(encode(test_BC, labels_B, encoding, predictor=predictor))
        return mean_kl(test_BC, decode(arrays, labels_B, encoding, predictor=predictor), 2.0)

    few, beyond, kept = kl(175, 200), kl(175, 1000), kl(2000, 1000)
    assert beyond < 0.8 * few
    assert beyond == pytest.approx(kept, rel=0.1)


def test_a_tail_of_so_many_bytes_at_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded in blocks of classes, from a basis that is in float32 as a whole or a part at a time, it is the same."""
    num_classes, labels_B = 9000, torch.full((20,), -1)
    size = tail_bits_of(24, num_classes)
    encoding = Encoding(kind="topk+tail", num_classes=num_classes, top_k=8, tail_bits=size)
    assert encoding.row_arrays()["tail_code"].row_shape == (24,)
    fitted = fit_predictor(teacher_logits(200, num_classes), encoding)
    assert fitted is not None
    logits_BC, found = teacher_logits(20, num_classes, seed=2), []
    for kept in (2**24, 0):
        monkeypatch.setattr(tail_basis, "_KEPT", kept)
        predictor = TailPredictor.from_constants(fitted.constants())
        arrays = as_tensors(encode(logits_BC, labels_B, encoding, predictor=predictor, shifted=True))
        assert arrays["tail_code"].shape == (20, 24)
        found.append(decode(arrays, labels_B, encoding, predictor=predictor))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-3)
    plain = decode(arrays, labels_B, encoding, tail="uniform")
    assert mean_kl(logits_BC, found[0], 4.0) < 0.2 * mean_kl(logits_BC, plain, 4.0)
    del arrays["tail_shift"]  # then the tail is not decoded in blocks
    whole = decode(arrays, labels_B, encoding, predictor=fitted)
    torch.testing.assert_close(found[0], whole, rtol=0, atol=1e-3)


@pytest.mark.parametrize("num_classes", [6, 1000, 4096, 4097, 50_257, 151_936])
def test_tail_bytes_are_exact(num_classes: int) -> None:
    for size in {1, 2, min(37, num_classes // 2), min(1024, num_classes // 2)}:
        encoding = Encoding(
            kind="topk+tail", num_classes=num_classes, top_k=2, tail_bits=tail_bits_of(size, num_classes)
        )
        assert encoding.tail_bytes == size
    for wrong in (0, min(1024, num_classes // 2) + 2000):
        with pytest.raises(ValueError, match="tail bytes"):
            tail_bits_of(wrong, num_classes)


def test_a_budget_chooses_among_bytes_where_a_bit_a_class_is_too_much() -> None:
    rungs = [rung for rung in ladder(151_936) if rung.kind == "topk+tail"]
    assert {rung.tail_bytes for rung in rungs} == {32, 64, 128, 256, 512, 1024}
    assert {rung.top_k for rung in rungs} == {20, 50}


def test_streaming_equals_one_go() -> None:
    logits_NC = teacher_logits(1000)
    held_out_N = torch.arange(1000) % 5 == 0
    whole = TailFit(CLASSES, 6)
    whole.update(logits_NC, held_out_N)
    parts = TailFit(CLASSES, 6, gauges=whole.gauges)
    for start in range(0, 1000, 190):
        parts.update(logits_NC[start : start + 190], held_out_N[start : start + 190])
    first, second = whole.fit(), parts.fit()
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first.matrix_FCD, second.matrix_FCD, rtol=1e-2, atol=1e-4)


def test_topk_tail_without_a_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="fit_predictor"):
        encode(teacher_logits(3), torch.full((3,), -1), TAIL)
    with pytest.raises(ValueError, match="predictor-rows"):
        PredictorFit(TAIL).fit()


def test_shift_reaches_the_mass_under_the_cap() -> None:
    shape_BC = torch.tensor([[5.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    known = torch.tensor([[3, 3, 3, 3], [0, 0, 0, 0], [0, 1, 2, 3]])
    mass_B, cap_B = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.2, 0.9, 0.5]).log()
    shift_B = shift_to_mass(shape_BC.clone(), known, mass_B, cap_B)
    reached_BC = torch.minimum(shape_BC + shift_B[:, None], cap_B[:, None]).exp().scatter(1, known, 0.0)
    torch.testing.assert_close(reached_BC[:2].sum(1), torch.tensor([0.5, 0.5]))
    assert float(reached_BC[0, 0]) == pytest.approx(0.2)


def test_shift_reaches_the_mass_when_far_classes_come_near_the_cap_too() -> None:
    """One class takes all the mass at first, and has to leave most of it to others that were nats below."""
    generator = torch.Generator().manual_seed(3)
    shape_BC = torch.randn(6, 500, generator=generator)
    shape_BC[:, 0] += torch.arange(6) * 6.0
    known, cap_B = torch.full((6, 1), 7), torch.full((6,), 2e-3).log()
    shift_B = shift_to_mass(shape_BC.clone(), known, torch.full((6,), 0.6).log(), cap_B)
    reached_BC = torch.minimum(shape_BC + shift_B[:, None], cap_B[:, None]).exp().scatter(1, known, 0.0)
    torch.testing.assert_close(reached_BC.sum(1), torch.full((6,), 0.6), rtol=1e-4, atol=0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("spread", [3.0, 30.0, 300.0])
@pytest.mark.parametrize("classes", [20, 1000, 5000])
def test_shift_reaches_the_mass_when_classes_follow_each_other_to_the_cap(
    classes: int, spread: float, share: float
) -> None:
    """Each class that ends at the cap lifts the next ones: as many as it takes, on any spread of logits."""
    falling_C, drawn_C = torch.linspace(0, -spread, classes), torch.randn(classes) * spread / 6
    shape_BC, cap_B = torch.stack([falling_C, drawn_C]), torch.full((2,), -3.0)
    log_mass_B = cap_B + math.log(share * classes)
    shift_B = shift_to_mass(shape_BC.clone(), torch.zeros(2, 0, dtype=torch.int64), log_mass_B, cap_B)
    reached_BC = torch.minimum(shape_BC.double() + shift_B[:, None], cap_B[:, None].double())
    torch.testing.assert_close(reached_BC.logsumexp(1).float(), log_mass_B, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("width", "error"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_levels_are_the_best_for_a_gaussian(width: int, error: float) -> None:
    """Max, Quantizing for minimum distortion, 1960, table 1."""
    assert gaussian_error(width) == pytest.approx(error, rel=2e-3)
    levels = gaussian_levels(width)
    torch.testing.assert_close(levels, -levels.flip(0), rtol=0, atol=1e-8)


def test_bits_go_where_they_remove_most_error() -> None:
    widths = allocate_bits(torch.tensor([16.0, 4.0, 1.0, 0.0]), 6)
    assert widths.tolist() == [3, 2, 1, 0]
    assert allocate_bits(torch.tensor([1.0]), 100).tolist() == [8]


def test_codes_pack_and_unpack_for_every_width() -> None:
    widths = torch.tensor([8, 7, 6, 5, 4, 3, 2, 1, 1, 0])
    levels = torch.cat([gaussian_levels(width) for width in range(1, MAX_WIDTH + 1)]).float()
    basis = TailBasis(basis_FMC=torch.eye(10)[None], scale_FM=torch.ones(1, 10), width_FM=widths[None], levels=levels)
    values = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    code = basis.encode(values, None, 5)
    assert code.shape == (50, 5)
    decoded = basis.decode(code, None)
    for column, width in enumerate(widths.tolist()):
        levels = gaussian_levels(width).float() if width else torch.zeros(1)
        nearest = (values[:, column, None] - levels).abs().amin(1)
        torch.testing.assert_close((values - decoded)[:, column].abs(), nearest, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tail_bias", np.zeros((1, 3), dtype=np.float16)),
        ("tail_gauge", np.array([0, np.nan, 1], dtype=np.float32)),
        ("tail_levels", np.zeros(7, dtype=np.float32)),
        ("tail_scale", np.zeros((1, 3), dtype=np.float32)),
    ],
)
def test_constants_that_do_not_fit_are_refused(name: str, damage: np.ndarray, fitted: TailPredictor) -> None:
    with pytest.raises(ValueError, match="fetch the store again"):
        TailPredictor.from_constants({**fitted.constants(), name: damage})


@pytest.mark.parametrize("name", ["tail_bias", "tail_gauge"])
def test_a_predictor_without_one_of_its_constants_is_refused(name: str, fitted: TailPredictor) -> None:
    rest = {key: array for key, array in fitted.constants().items() if key != name}
    with pytest.raises(ValueError, match=f"expected {name} beside tail_matrix, found none"):
        TailPredictor.from_constants(rest)
