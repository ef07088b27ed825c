"""Perturbations for training a purifier: attacks on the classifier, attacks on both, noise, nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdsec.budgets import check_training_attack
from kdsec.data import Batch
from kdsec.defenses.adversarial_training import attack_batch
from kdsec.defenses.purifiers import check_fit, frozen
from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.train import evaluating

# ``perturb(purifier, batch)`` gives the clean and the disturbed images, both (B, C, H, W).
Perturbation = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


@checked
@dataclass(frozen=True)
class ClassifierPGD:
    """The grey-box training attack: PGD on the classifier alone, made for every batch.

    Attributes:
        classifier: frozen here in a copy; the original is neither changed nor switched to another mode.
        eps: L-infinity budget in pixels of [0, 1], above 0.
        steps: of PGD.
        step_size: 2.5 eps / steps if not given.
    """

    classifier: nn.Module
    eps: float
    steps: int = 7
    step_size: float | None = None

    def __post_init__(self) -> None:
        check_training_attack(self.eps, self.steps, self.step_size)
        object.__setattr__(self, "classifier", frozen(self.classifier))

    def __call__(self, purifier: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.images, attack_batch(self.classifier, batch, self.eps, self.steps, self.step_size)


@checked
@dataclass(frozen=True)
class EndToEnd(ClassifierPGD):
    """The white-box training attack: the same PGD on the purifier, as it is now, and classifier together."""

    def __call__(self, purifier: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        check_fit(purifier, batch.images)
        with evaluating(purifier):
            whole = nn.Sequential(purifier, self.classifier)
            return batch.images, attack_batch(whole, batch, self.eps, self.steps, self.step_size)


@checked
@dataclass(frozen=True)
class Noise:
    """Gaussian noise instead of an attack (Vincent et al. 2008); ``sigma`` in pixels of [0, 1], above 0."""

    sigma: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 1:
            raise KdsecError(f"sigma={self.sigma:g} must be above 0 and at most 1; divide by 255 if in bytes")

    def __call__(self, purifier: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        noise = torch.randn_like(batch.images)
        return batch.images, (batch.images + self.sigma * noise).clamp(0, 1)


@dataclass(frozen=True)
class Identity:
    """No disturbance: the clean image twice."""

    def __call__(self, purifier: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.images, batch.images


@dataclass(frozen=True)
class Precomputed:
    """Attacked images made once, beside the clean ones in a set of pairs.

    The grey-box attack does not depend on the purifier, so one set serves every arm and every epoch: the
    attack is most of what training a small autoencoder costs. Clean and attacked image are the two halves of
    the channels, ``(N, 2C, H, W)``, so that both are cropped and mirrored alike;
    ``kdsec.defenses.sparse_teacher.pair`` makes such a set.
    """

    def __call__(self, purifier: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.images.shape[1] % 2:
            raise KdsecError("Precomputed() trains on pairs of images; give fit the set that pair(...) makes")
        clean, attacked = batch.images.chunk(2, dim=1)
        return clean, attacked
