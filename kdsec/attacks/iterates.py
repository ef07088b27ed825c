"""Bookkeeping of a search over many images: the best iterate of each, and which still take part."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When an image is done before the last step, and in what the objective computes.

    Attributes:
        goal: the objective has fallen to this share of where it began (0: never).
        patience: so many steps in a row have brought nothing better (0: never).
        precision: of the objective, as in ``Recipe``; images, budget and steps stay float32.
    """

    goal: float = 0.0
    patience: int = 0
    precision: str = "float32"


class Best:
    """The best allowed image so far of each, and which are still worth a step."""

    def __init__(self, sources: Tensor, stop: Stop):
        self.stop = stop
        self.images = sources.clone()
        self.value = torch.full((len(sources),), math.inf, device=sources.device)
        self.first = torch.full_like(self.value, math.nan)
        self.steps = torch.zeros(len(sources), dtype=torch.long, device=sources.device)
        self.idle = torch.zeros_like(self.steps)
        self.wake()

    def wake(self) -> None:
        """Go on with every image that has not reached its goal."""
        self.idle.zero_()
        self.active = (~self._reached(slice(None))).nonzero().squeeze(1)

    def offer(self, images: Tensor, value: Tensor, allowed: Tensor) -> None:
        """Take what is better than before, and drop the images that are done."""
        active = self.active
        self.first[active] = torch.where(self.first[active].isnan(), value, self.first[active])
        self.steps[active] += 1
        better = allowed & (value < self.value[active])
        chosen = active[better]
        self.images[chosen], self.value[chosen] = images[better], value[better]
        self.idle[active] = torch.where(better, 0, self.idle[active] + 1)
        if self.stop.goal or self.stop.patience:
            done = self._reached(active)
            if self.stop.patience:
                done = done | (self.idle[active] >= self.stop.patience)
            self.active = active[~done]

    def _reached(self, which: Tensor | slice) -> Tensor:
        if not self.stop.goal:  # an objective may be negative: then "a share of the first" means nothing
            return torch.zeros_like(self.value[which], dtype=torch.bool)
        return self.value[which] <= self.stop.goal * self.first[which]
