"""Steps of DP-SGD by Opacus: each example's gradient is clipped, their sum gets noise, and each example is in a step
with the same chance.

Draws and noise come from the operating system's entropy, not from the run's seed: who knows them can subtract them.

Shapes: B batch, N examples.
"""

import math
import secrets
import warnings

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from logitbank.pipeline.fit.training import Training

ACCOUNTANT = "rdp"
_MISSING = "--dp-sgd needs another package: pip install 'logitbank[privacy]'"


class PrivateSteps:
    """What DP-SGD does in place of a plain gradient.

    Args:
        model: Trained in place; its layers remember each example's gradient until `close`.
        training: Says noise, clipping and expected batch.
        num_rows: N, those that are drawn from.

    Raises:
        ValueError: Opacus is missing, or a layer mixes examples, such as batch norm.
    """

    def __init__(self, model: nn.Module, training: Training, num_rows: int) -> None:
        check_layers(model)
        from opacus.grad_sample import GradSampleModule

        self.module = GradSampleModule(model, loss_reduction="sum")
        self._training, self._num_rows = training, num_rows
        self._draws = torch.Generator().manual_seed(secrets.randbits(63))

    def attach(self, optimizer: Optimizer, device: torch.device) -> None:
        """Says whose steps these are; the optimiser itself steps as ever, along the gradients that are left for it."""
        from opacus.optimizers import DPOptimizer

        self._noisy = DPOptimizer(
            optimizer,
            noise_multiplier=self._training.dp_sgd,
            max_grad_norm=self._training.grad_clip,
            expected_batch_size=min(self._training.batch_size, self._num_rows),
            generator=torch.Generator(device).manual_seed(secrets.randbits(63)),
        )

    @property
    def num_steps(self) -> int:
        """Of an epoch."""
        return steps_of_epoch(self._training, self._num_rows)

    def draw(self, rows_N: Tensor) -> list[Tensor]:
        """The rows of each step of an epoch: each example with the same chance, so batches differ in size."""
        rate = sample_rate(self._training, len(rows_N))
        return [rows_N[torch.rand(len(rows_N), generator=self._draws) < rate] for _ in range(self.num_steps)]

    def zero_grad(self) -> None:
        """Forgets the gradients of a step; a step without examples is noise alone."""
        self._noisy.zero_grad(set_to_none=True)
        for parameter in self._noisy.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))

    def backward(self, loss_B: Tensor) -> None:
        """Leaves each example's gradient with the parameters."""
        for parameter in self._noisy.params:
            parameter.grad_sample = None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            loss_B.sum().backward()  # type: ignore[no-untyped-call]

    def make_gradients(self) -> None:
        """Leaves the noisy mean of the clipped gradients for the optimiser."""
        self._noisy.pre_step()

    def close(self) -> None:
        """The model is a plain one again."""
        self.module.to_standard_module()


def check_layers(model: nn.Module) -> None:
    """Raises ValueError where Opacus is missing, or cannot tell a layer's examples apart."""
    try:
        from opacus.validators import ModuleValidator
    except ImportError as error:
        raise ValueError(_MISSING) from error
    found = ModuleValidator.validate(model, strict=False)
    if found:
        first = " ".join(str(found[0]).split())
        raise ValueError(f"--dp-sgd does not go with this student: {first}; take one without, such as cnn or mlp:32")


def sample_rate(training: Training, num_rows: int) -> float:
    """The chance of each example to be in a step."""
    return min(1.0, training.batch_size / num_rows)


def steps_of_epoch(training: Training, num_rows: int) -> int:
    """So many that an epoch shows about as many rows as there are."""
    return math.ceil(num_rows / training.batch_size)


def epsilon(training: Training, num_rows: int, steps: int) -> float | None:
    """What the steps have spent at ``training.dp_delta``, by Opacus' accountant; None when it is unbounded.

    References:
        Mironov, Talwar, Zhang. Renyi Differential Privacy of the Sampled Gaussian Mechanism. 2019.
    """
    from opacus.accountants import create_accountant

    accountant = create_accountant(ACCOUNTANT)
    accountant.history = [(training.dp_sgd, sample_rate(training, num_rows), steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an order at the end of its table: a bound, if not the best
        found = float(accountant.get_epsilon(delta=training.dp_delta))
    return found if math.isfinite(found) else None
