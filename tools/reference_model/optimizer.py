"""The optimizer: Muon for the matrices of the layers, Adam for embeddings and norms.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) steps along the momentum with all its
singular values brought near one. A layer with small weights or gradients therefore moves as fast as any
other, which is what makes grown layers take up work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference_model.network import ReferenceModel

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_MOMENTUM = 0.95
_ADAM_BETAS = (0.9, 0.95)
_ADAM_EPS = 1e-8
_WEIGHT_DECAY = 0.01


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return (n, rows, columns) ``matrices`` with singular values near one, by five Newton-Schulz steps."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Optimizer:
    """Holds the running averages of each parameter under its name; a checkpoint keeps its `state`."""

    def __init__(self, model: ReferenceModel) -> None:
        self._parameters = dict(model.named_parameters())
        self._step = 0
        self._averages = {
            f"{name}.{kind}": torch.zeros_like(parameter)
            for name, parameter in self._parameters.items()
            for kind in (("momentum",) if parameter.ndim == 3 else ("mean", "square"))
        }

    def state(self) -> dict[str, Tensor]:
        """Return the running averages and the step count, to be given to `restore`."""
        return {**self._averages, "step": torch.tensor(self._step)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up a `state` of the same model."""
        self._step = int(state["step"])
        for name, average in self._averages.items():
            average.copy_(state[name])

    @torch.no_grad()
    def step(self, matrix_rate: float, vector_rate: float) -> None:
        """Change every parameter by its gradient and drop the gradients; the rates are learning rates."""
        self._step += 1
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            if parameter.ndim == 3:
                self._muon(name, parameter, gradient, matrix_rate)
            else:
                self._adam(name, parameter, gradient, vector_rate)
            parameter.grad = None

    def _muon(self, name: str, parameter: Tensor, gradient: Tensor, rate: float) -> None:
        momentum = self._averages[f"{name}.momentum"]
        momentum.mul_(_MOMENTUM).add_(gradient)
        rows, columns = parameter.shape[1:]
        update = orthogonalised(gradient + _MOMENTUM * momentum) * max(1.0, rows / columns) ** 0.5
        parameter.mul_(1 - rate * _WEIGHT_DECAY).sub_(update, alpha=rate)

    def _adam(self, name: str, parameter: Tensor, gradient: Tensor, rate: float) -> None:
        first, second = _ADAM_BETAS
        mean, square = self._averages[f"{name}.mean"], self._averages[f"{name}.square"]
        mean.lerp_(gradient, 1 - first)
        square.lerp_(gradient.square(), 1 - second)
        corrected = (square / (1 - second**self._step)).sqrt_().add_(_ADAM_EPS)
        parameter.addcdiv_(mean / (1 - first**self._step), corrected, value=-rate)
