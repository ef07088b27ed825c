"""Muon: an optimizer that orthogonalises the momentum of convolutions before each step.

A few directions dominate a gradient's matrix, and a step of SGD moves along hardly any other. Muon replaces
the matrix by the nearest orthogonal one, so that all directions move alike, and needs fewer steps. After
Keller Jordan's ``airbench94_muon.py``, with its constants: github.com/KellerJordan/cifar10-airbench.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kdsec.errors import KdsecError

MOMENTUM = 0.6  # of the convolutions
ITERATIONS = 3  # of Newton and Schulz: singular values end near 1
QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon for the convolutions but the first, SGD with Nesterov momentum or Adam for everything else.

    For networks that normalise after a convolution: its weights are kept at the length ``sqrt(outputs)``, of
    which a step is the share ``lr``, and have no weight decay. With Adam no step depends on the scale of the
    loss: losses of every temperature and weight train at the same rates.

    Args:
        model: the network.
        lr: learning rate of both.
        momentum: of SGD.
        weight_decay: of SGD or Adam.
        dtype: to orthogonalise in.
        other_lr: learning rate of Adam, which then replaces SGD.

    Raises:
        KdsecError: the network has fewer than two ordinary convolutions, or does not normalise.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        *,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype,
        other_lr: float | None = None,
    ) -> None:
        weights = muon_parameters(model)
        if not weights:
            raise KdsecError(
                f"optimizer muon is for networks with convolutions and batch normalisation, and this "
                f"{type(model).__name__} is none; take sgd or adam"
            )
        chosen = set(map(id, weights))
        others = [each for each in model.parameters() if id(each) not in chosen and each.requires_grad]
        self.dtype = dtype
        self.others: torch.optim.Optimizer
        if other_lr is not None:
            self.others = torch.optim.Adam(others, other_lr, weight_decay=weight_decay, fused=True)
        else:
            self.others = torch.optim.SGD(
                others, lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0, fused=True
            )
        super().__init__(weights, {"lr": lr})
        self.param_groups += self.others.param_groups  # the same dictionaries: a scheduler sets all rates

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step from the gradients at hand; parameters without one stay where they are."""
        group = self.param_groups[0]
        for weights in _of_one_shape(tensor for tensor in group["params"] if tensor.grad is not None):
            ahead = torch.stack([self._look_ahead(weight).flatten(1) for weight in weights])
            for weight, change in zip(weights, orthogonalise(ahead, self.dtype), strict=True):
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                weight.add_(change.view_as(weight), alpha=-group["lr"])
        self.others.step()

    def _look_ahead(self, weight: Tensor) -> Tensor:
        """The gradient with Nesterov's momentum."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum"].mul_(MOMENTUM).add_(gradient)
        return gradient.add(momentum, alpha=MOMENTUM)


def muon_parameters(model: nn.Module) -> list[Tensor]:
    """The tensors that Muon itself trains: the weights of the ordinary convolutions but the first.

    An empty list where the network does not normalise. Works on the *meta* device too, before the network
    has weights.
    """
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        return []
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.groups == 1]
    return [layer.weight for layer in layers[1:] if layer.weight.requires_grad]


def _of_one_shape(weights: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for weight in weights:
        groups[weight.shape].append(weight)
    return groups.values()


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""Matrices ``(N, R, C)`` with the same singular vectors, whose singular values are about 1.

    With :math:`X = U \Lambda V^\top`,
    :math:`aX + bXX^\top X + c(XX^\top)^2X = U(a\Lambda + b\Lambda^3 + c\Lambda^5)V^\top`: a polynomial of
    the singular values that pushes all of them towards 1 from wherever in (0, 1] they are.
    Small ones need more iterations than there are, and end below.
    """
    a, b, c = QUINTIC
    x = (matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
