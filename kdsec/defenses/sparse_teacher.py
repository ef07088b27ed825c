"""The Adversarial Sparse Teacher (AST): answers on clean images pulled towards sparse adversarial ones.

Yilmaz & Keles, "Adversarial Sparse Teacher: Defense Against Distillation-Based Model Stealing Attacks Using
Adversarial Examples", arXiv 2403.05181 (2024). Three steps: train an honest teacher; make adversarial images
from it (``perturb``); train the teacher that is published, from scratch, on pairs of both (``pair``) with
``SparseTeacherLoss``. The defaults and the options ``"literal pgd"`` and ``paired=False`` follow the authors'
public code, which departs from what the abstracts say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.budgets import check_attack
from kdsec.data import Batch, ImageSet
from kdsec.data.imageset import to_float
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice
from kdsec.logits import check_temperature, keep_largest
from kdsec.models import Classifier, Normalize
from kdsec.pgd import PerturbationSet, label_objective, pgd, projected_ascent
from kdsec.train import autocast, cross_entropy, evaluating

DIVERGENCES = ("epd", "kl")
SOURCES = ("current", "random")
PERTURBATIONS = ("pgd", "literal pgd", "low contrast", "noise", "none")
LITERAL = (0.3, 0.01, 40)  # eps and step of the authors' code in normalised units, and its number of steps


@checked
def sparse_targets(logits: Tensor, keep: int, temperature: float) -> Tensor:
    r"""Probabilities ``(B, K)``: :math:`\sigma_\tau` of the ``keep`` largest logits, zero elsewhere."""
    return (keep_largest(logits.float(), keep) / temperature).softmax(1)


def exponential_predictive_divergence(q: Tensor, p: Tensor) -> Tensor:
    r"""EPD, mean over the batch: :math:`\sum_k e^{q_k} (q_k - p_k)`.

    This is what PyTorch's ``kl_div`` with ``log_target=True`` computes when it is given probabilities in
    place of their logarithms. Linear in p, and zero but *not smallest* at p = q: the smallest value is that
    of the one-hot vector at the largest q, so it is not a divergence and never asks for the shape of q. With
    :math:`p = \sigma_\tau(z)` the gradient is
    :math:`\partial/\partial z_k = -\frac{1}{\tau} p_k \big(e^{q_k} - \sum_j p_j e^{q_j}\big)`.

    Args:
        q: target probabilities ``(B, K)``.
        p: the network's probabilities ``(B, K)``.
    """
    return (q.exp() * (q - p)).sum(1).mean()


@checked
@dataclass(frozen=True)
class SparseTeacherLoss:
    r"""The loss of AST, on the images of a set made by ``pair``.

    .. math:: \mathcal{L} = \omega\, \tau^2\, D\big(q, \sigma_\tau(f_T(x))\big)
        + (1-\omega)\, \mathrm{CE}(f_T(x), y), \qquad q = \sigma_\tau\big(\mathrm{top}_n(f_T(x'))\big)

    where x is a clean image, x' a disturbed one, and q carries no gradient.

    Attributes:
        keep: n, the logits kept in the target; the authors' code keeps 2 of 10 classes and 7 of 100.
        temperature: tau; 6 with 10 classes, 30 with 100.
        alpha: weight of the divergence; 0.05 on CIFAR-10, 0.03 to 0.035 on CIFAR-100.
        divergence: ``epd``, which their code computes, or ``kl``, the relative entropy
            :math:`\mathrm{KL}(q \| p) = \sum_{k: q_k > 0} q_k \log(q_k / p_k)` of the first version's
            abstract.
        paired: x' is the disturbed x, cropped and mirrored alike. If not, each image gets its neighbour's x'
            in the shuffled batch: unrelated, as in the authors' code, which zips a shuffled set with an
            unshuffled one.
        source: whose answer on x' is the target: ``current``, the network being trained, in eval mode (as in
            their code); a frozen network; or, as a control, ``random``: the current answer dealt out to
            random classes.
    """

    keep: int = 2
    temperature: float = 6.0
    alpha: float = 0.05
    divergence: str = "epd"
    paired: bool = True
    source: str | nn.Module = "current"

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_choice("divergence", self.divergence, DIVERGENCES)
        if not isinstance(self.source, nn.Module):
            check_choice("source", self.source, SOURCES)
        if not 0 <= self.alpha <= 1 or self.keep < 1:
            raise KdsecError(f"alpha={self.alpha} must lie in [0, 1] and keep={self.keep} be 1 or more")

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        if batch.images.shape[1] % 2:
            raise KdsecError("the sparse teacher trains on pairs of images; give fit the set pair(...) makes")
        clean, disturbed = batch.images.chunk(2, dim=1)
        target = self.target(model, disturbed if self.paired else disturbed.roll(1, dims=0))
        logits = model(clean)
        log_p = F.log_softmax(logits.float() / self.temperature, dim=1)
        if self.divergence == "epd":
            gap = exponential_predictive_divergence(target, log_p.exp())
        else:
            gap = F.kl_div(log_p, target, reduction="batchmean")
        return self.alpha * self.temperature**2 * gap + (1 - self.alpha) * cross_entropy(logits, batch.labels)

    @torch.no_grad()
    def target(self, model: nn.Module, disturbed: Tensor) -> Tensor:
        """The sparse probabilities ``(B, K)`` that the clean answers are pulled towards."""
        network = self.source if isinstance(self.source, nn.Module) else model
        with evaluating(network):  # batch normalisation must not learn from the disturbed images
            logits = network(disturbed)
        if self.source == "random":
            logits = logits.gather(1, torch.rand_like(logits).argsort(1))
        return sparse_targets(logits, self.keep, self.temperature)


@checked
def pair(data: ImageSet, disturbed: Tensor) -> ImageSet:
    """Clean and disturbed images as channels of one, ``(N, 2C, H, W)``, so that both are cropped alike.

    Bytes stay bytes: disturbed images are then rounded to the 256 levels, by which a budget that is a
    multiple of 1/255 is kept exactly.
    """
    if disturbed.shape != data.images.shape:
        shapes = f"{tuple(disturbed.shape)} for {tuple(data.images.shape)}"
        raise KdsecError(f"disturbed images of shape {shapes}; make them with disturb(model, data)")
    if data.images.dtype == torch.uint8:
        disturbed = (disturbed * 255).round().to(torch.uint8)
    return data.replace(images=torch.cat([data.images, disturbed], dim=1))


@checked
def perturb(
    model: Classifier,
    data: ImageSet,
    kind: str = "pgd",
    *,
    eps: float = 8 / 255,
    step_size: float = 2 / 255,
    steps: int = 10,
    seed: int = 0,
    batch_size: int = 250,
    precision: str = "float32",
) -> Tensor:
    """The other half of each pair, ``(N, C, H, W)`` float32 in [0, 1], made once from the honest teacher.

    ====================  ==============================================================================
    ``pgd``               L-infinity PGD on the labels' cross-entropy, no random start, in pixels
    ``literal pgd``       the authors' code: the same on *normalised* images, clamped to [0, 1] *there*
    ``low contrast``      control: that clamp without the attack
    ``noise``             control: Gaussian noise with standard deviation ``eps``
    ``none``              control: the clean image, so that only the sparseness remains
    ====================  ==============================================================================

    In the literal kind every pixel darker than its channel's mean becomes the mean, and every one brighter
    than a standard deviation above it is cut off there, so that most of the change is lost contrast and the
    budget is not kept. Its budget, step and number of steps are the authors' own (``LITERAL``).

    Args:
        model: the honest teacher.
        data: labelled images.
        kind: see above.
        eps: budget of ``pgd`` in pixels, or the noise's standard deviation.
        step_size, steps: of ``pgd``.
        seed: of the noise.
        batch_size, precision: as in ``kdsec.pgd.pgd``.

    Raises:
        KdsecError: unknown kind, a budget outside [0, 1], or images without labels.
    """
    check_choice("disturbance", kind, PERTURBATIONS)
    check_attack(data.images, data.labels, eps, "linf")
    if kind == "pgd":
        how: dict[str, Any] = {"batch_size": batch_size, "precision": precision, "random_start": False}
        return pgd(model, data.images, data.labels, eps=eps, steps=steps, step_size=step_size, **how)
    if not isinstance(getattr(model, "normalize", None), Normalize):
        raise KdsecError(f"disturbance {kind!r} needs a network of kdsec.models, whose mean and std it uses")
    images, normalize = to_float(data.images), cast(Normalize, model.normalize)
    match kind:
        case "noise":
            noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
            return (images + eps * noise.to(images.device)).clamp(0, 1)
        case "low contrast":
            return images.clamp(normalize.mean, normalize.mean + normalize.std)
        case "none":
            return images
    with evaluating(model), torch.autocast(**autocast(precision, images.device)):
        parts = zip(images.split(batch_size), data.labels.split(batch_size), strict=True)
        return torch.cat([_literal_pgd(model, normalize, *part) for part in parts])


def _literal_pgd(model: nn.Module, normalize: Normalize, images: Tensor, labels: Tensor) -> Tensor:
    """One batch of ``literal pgd``: budget, step and box are in units of the channels' deviation."""
    size, step, count = LITERAL
    mean, std = normalize.mean, normalize.std
    allowed = PerturbationSet(images, size * std, "linf", mean, mean + std)
    return projected_ascent(label_objective(model, labels), images, allowed, step * std, count)
