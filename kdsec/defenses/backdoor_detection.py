"""Finding a backdoor: in the distillation set, in the student's features, at the input, and in the weights.

Each detector of poisons gives one score per image, larger for more suspicious, so that all are judged by the
same ROC curve. The two that look at features compare the images of one class with each other, and in
distillation there are two candidates for "class": the data set's label, if it has one, and the teacher's
answer, which is what the student learnt. They take ``groups`` and leave the choice to the caller.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.data import UNLABELLED, Augment, ImageSet, Loader
from kdsec.data.imageset import to_float
from kdsec.errors import KdsecError
from kdsec.models import Classifier
from kdsec.train import predict

ANOMALY = 2.0  # anomaly index above which Neural Cleanse calls a class backdoored
MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class Roc:
    """False-positive rates and true-positive rates at every threshold, and the area under the curve."""

    false_positive: list[float]
    true_positive: list[float]
    area: float

    def caught(self, at: float) -> float:
        """The largest true-positive rate with at most ``at`` false positives."""
        return max(t for f, t in zip(self.false_positive, self.true_positive, strict=True) if f <= at)


def roc(scores: Tensor, guilty: Tensor) -> Roc:
    """The ROC curve of ``scores`` ``(N,)`` against the truth ``(N,)``.

    Raises:
        KdsecError: nobody is guilty, or everybody.
    """
    from sklearn.metrics import auc, roc_curve

    truth = guilty.cpu().numpy()
    if truth.all() or not truth.any():
        raise KdsecError("a ROC curve needs some poisons and some honest images; this set has only one kind")
    false, true, _ = roc_curve(truth, scores.detach().float().cpu().numpy(), drop_intermediate=False)
    return Roc(false.tolist(), true.tolist(), float(auc(false, true)))


def label_disagreement(teacher: nn.Module, data: ImageSet) -> Tensor:
    """``(N,)``: one minus the teacher's probability of the data set's label.

    The simplest detector there is, wherever the set has labels: the attack works by making the teacher
    disagree with them.

    Raises:
        KdsecError: an image without a label.
    """
    if bool((data.labels == UNLABELLED).any()):
        raise KdsecError(
            "label disagreement needs labels; without, use label_instability(teacher, data, ...)"
        )
    probabilities = predict(teacher, data).softmax(1)
    return 1 - probabilities.gather(1, data.labels[:, None]).squeeze(1)


def label_instability(
    teacher: nn.Module, data: ImageSet, augment: Augment, *, views: int = 8, seed: int = 0
) -> Tensor:
    """``(N,)``: how much of the teacher's probability of its own answer small changes of the image take away.

    Needs no labels. An adversarial perturbation is made for the pixels as they stand; a shift by a few pixels
    may undo it, and the teacher goes back to what the image shows. Score: one minus the mean probability,
    over ``views`` augmented views, of the class that the teacher names for the image as it is.
    """
    answer = predict(teacher, data).argmax(1)
    total = torch.zeros(len(data), device=data.images.device)
    loader = Loader(data, len(data), augment=augment, seed=seed)
    for _ in range(views):
        for batch in loader:
            probabilities = predict(teacher, batch.images).softmax(1)
            total[batch.position] += probabilities.gather(1, answer[batch.position, None]).squeeze(1)
    return 1 - total / views


@torch.no_grad()
def penultimate(model: Classifier, data: ImageSet, batch_size: int = 250) -> Tensor:
    """``(N, D)``: what the last linear layer of ``model`` sees."""
    before = model.head[:-1] if isinstance(model.head, nn.Sequential) else nn.Identity()
    model.eval()
    parts = [
        before(model.features(to_float(part))[-1]).flatten(1).float()
        for part in data.images.split(batch_size)
    ]
    return torch.cat(parts)


def spectral_signatures(features: Tensor, groups: Tensor) -> Tensor:
    """``(N,)``: spectral signatures (Tran, Li & Madry 2018, arXiv 1811.00636, algorithm 1).

    Within each group, the squared projection of the centred features on their first singular vector, as a
    rank from 0 to 1: the method removes the highest-ranking share of every group.

    Args:
        features: ``(N, D)``.
        groups: ``(N,)`` classes: the teacher's answers, or the data set's labels.
    """
    scores = torch.zeros(len(features), device=features.device)
    for group in groups.unique():
        members = (groups == group).nonzero().squeeze(1)
        centred = features[members] - features[members].mean(0)
        direction = torch.linalg.svd(centred, full_matrices=False).Vh[0]
        rank = (centred @ direction).square().argsort().argsort()
        scores[members] = rank.float() / max(1, len(members) - 1)
    return scores


def activation_clustering(
    features: Tensor, groups: Tensor, *, components: int = 10, seed: int = 0
) -> tuple[Tensor, dict[int, float]]:
    """Activation clustering (Chen et al. 2018, arXiv 1811.03728): two clusters a group, the smaller suspect.

    Reduction is by principal components (the paper prefers independent ones, whose search may not converge).

    Args:
        features: ``(N, D)``.
        groups: ``(N,)`` classes: the teacher's answers, or the data set's labels.
        components: dimensions kept before clustering.
        seed: of k-means.

    Returns:
        ``(N,)`` True for the members of each group's smaller cluster, and each group's silhouette score: how
        well the two clusters are apart, at most 1. Groups of fewer than four images are left alone.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    suspect = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    silhouettes = {}
    for group in groups.unique().tolist():
        members = (groups == group).nonzero().squeeze(1)
        if len(members) < 4:
            continue
        points = features[members].cpu().numpy().astype(np.float64)
        kept = min(components, *points.shape)
        reduced = PCA(kept, svd_solver="full").fit_transform(points)
        cluster = KMeans(2, n_init=10, random_state=seed).fit_predict(reduced)
        smaller = int((cluster == 1).sum() < (cluster == 0).sum())
        suspect[members] = torch.from_numpy(cluster == smaller).to(features.device)
        if len(set(cluster.tolist())) == 2:
            silhouettes[group] = float(silhouette_score(reduced, cluster))
    return suspect, silhouettes


def strip(model: nn.Module, images: Tensor, overlays: Tensor, *, blends: int = 64, seed: int = 0) -> Tensor:
    """``(N,)``: STRIP (Gao et al. 2019, arXiv 1902.06531): minus the mean entropy under blending.

    Each image is blended half and half with ``blends`` clean ones. An honest image's class is lost in that;
    an answer that stays the same whatever is blended in hangs on a trigger.

    Args:
        model: the student under suspicion.
        images: ``(N, C, H, W)`` inputs at run time.
        overlays: clean images to draw from.
    """
    generator = torch.Generator().manual_seed(seed)
    other = to_float(overlays)
    entropy = []
    for image in to_float(images):
        chosen = other[torch.randint(len(other), (blends,), generator=generator).to(other.device)]
        probabilities = predict(model, 0.5 * image + 0.5 * chosen).softmax(1)
        entropy.append(torch.special.entr(probabilities).sum(1).mean())
    return -torch.stack(entropy)


@dataclass(frozen=True, eq=False)
class Inverted:
    """The smallest trigger found for a class: mask ``(1, H, W)``, pattern ``(C, H, W)``, its success rate."""

    mask: Tensor
    pattern: Tensor
    success: float

    @property
    def size(self) -> float:
        """L1 norm of the mask: how many pixels it covers."""
        return self.mask.sum().item()


def invert_trigger(
    model: nn.Module,
    images: Tensor,
    target: int,
    *,
    steps: int = 200,
    batch_size: int = 64,
    wanted: float = 0.99,
    seed: int = 0,
) -> Inverted:
    """Search for the smallest trigger that makes ``model`` call everything ``target``.

    Neural Cleanse (Wang et al. 2019, section IV): Adam on the cross-entropy with the target plus a weight
    times the mask's L1 norm; the weight goes up while at least ``wanted`` of a batch is fooled and down while
    it is not. Of all masks that fooled ``wanted`` of their batch the smallest is returned, or the last one if
    none did.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = to_float(images)
    shape, device = pixels.shape[1:], pixels.device
    raw = torch.rand(shape[0] + 1, *shape[1:], generator=generator).to(device).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.1, betas=(0.5, 0.9))
    weight, streak, best = 1e-3, 0, None
    model.eval()
    for _ in range(steps):
        batch = pixels[torch.randint(len(pixels), (batch_size,), generator=generator).to(device)]
        both = (raw.tanh() + 1) / 2
        mask, pattern = both[:1], both[1:]
        logits = model((1 - mask) * batch + mask * pattern).float()
        wish = torch.full((batch_size,), target, device=device)
        loss = F.cross_entropy(logits, wish) + weight * mask.sum()
        (raw.grad,) = torch.autograd.grad(loss, raw)
        success = (logits.argmax(1) == target).float().mean().item()
        last = Inverted(mask.detach(), pattern.detach(), success)
        if success >= wanted and (best is None or last.size < best.size):
            best = last
        optimizer.step()
        fooled = success >= wanted
        streak = max(streak, 0) + 1 if fooled else min(streak, 0) - 1
        if abs(streak) == 5:  # the original's patience and factors
            weight, streak = (weight * 2 if fooled else weight / 2**1.5), 0
    return best or last


def neural_cleanse(
    model: nn.Module, images: Tensor, classes: int, **options: int | float
) -> tuple[list[Inverted], Tensor]:
    """Invert a trigger for every class; options as in ``invert_trigger``.

    Returns:
        The triggers, and ``(classes,)`` anomaly indices: how many robust standard deviations a mask is
        *smaller* than the median. Above 2 the class is called backdoored.
    """
    found = [invert_trigger(model, images, target, **options) for target in range(classes)]  # type: ignore[arg-type]
    return found, anomaly_index(torch.tensor([each.size for each in found]))


def anomaly_index(sizes: Tensor) -> Tensor:
    """``(K,)``: (median - size) / (1.4826 median absolute deviation), above 0 for the smaller ones."""
    middle = sizes.double().quantile(0.5)
    deviation = (sizes - middle).abs().quantile(0.5) * MAD_TO_SIGMA
    return (middle - sizes) / deviation.clamp(min=1e-12)
