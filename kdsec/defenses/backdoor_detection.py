"""Detecting a backdoor: in the distillation set, in the student's features, at the input, and in the weights.

Each detector of poisons gives one score an image, larger for more suspicious, so that all are judged by the
same ROC curve. The two that read features compare the images of one class with the victim's clean images of
it. "Class" may be the data set's label, if it has one, or the teacher's answer, which is what the student
learnt: they take ``groups`` and leave the choice to the caller.

Networks are asked in eval mode and left as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.data import UNLABELLED, Augment, ImageSet, Loader
from kdsec.data.imageset import to_float
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_number
from kdsec.logits import as_logits
from kdsec.models import Classifier
from kdsec.models.base import check_stages
from kdsec.pgd import check_gradient
from kdsec.train import evaluating, predict

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


@checked
def roc(scores: Tensor, guilty: Tensor) -> Roc:
    """The ROC curve of ``scores`` ``(N,)`` against the truth ``(N,)``.

    Raises:
        KdsecError: nobody is guilty, or everybody.
    """
    from sklearn.metrics import auc, roc_curve

    if guilty.shape != scores.shape or not bool(((guilty == 0) | (guilty == 1)).all()):
        raise KdsecError(
            f"scores {tuple(scores.shape)} and guilty {tuple(guilty.shape)} must both be (N,), guilty a "
            "truth value for each"
        )
    truth = guilty.bool().cpu().numpy()
    if truth.all() or not truth.any():
        raise KdsecError("a ROC curve needs some poisons and some honest images; this set has only one kind")
    false, true, _ = roc_curve(truth, scores.detach().float().cpu().numpy(), drop_intermediate=False)
    return Roc(false.tolist(), true.tolist(), float(auc(false, true)))


@checked
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


@checked
def label_instability(
    teacher: nn.Module, data: ImageSet, augment: Augment, *, views: int = 8, seed: int = 0
) -> Tensor:
    """``(N,)``: how much probability the teacher's own answer loses under small changes of the image.

    Needs no labels. An adversarial perturbation is made for the pixels as they are; a shift by a few pixels
    may undo it. Score: one minus the mean probability, over ``views`` augmented views, of the class that the
    teacher names for the unchanged image.
    """
    answer = predict(teacher, data).argmax(1)
    total = torch.zeros(len(data), device=data.images.device)
    loader = Loader(data, 1000, augment=augment, seed=seed, drop_last=False)
    check_number("views", views, least=1, whole=True)
    for _ in range(views):
        for batch in loader:
            probabilities = predict(teacher, batch.images).softmax(1)
            total[batch.position] += probabilities.gather(1, answer[batch.position, None]).squeeze(1)
    return 1 - total / views


@checked(some=["data"])
@torch.no_grad()
def penultimate(model: Classifier, data: ImageSet, batch_size: int = 250) -> Tensor:
    """Input of the last linear layer of ``model``, ``(N, D)``."""
    check_stages(model, "a network whose features are read")
    before = model.head[:-1] if isinstance(model.head, nn.Sequential) else nn.Identity()
    with evaluating(model):
        parts = [
            before(model.features(to_float(part))[-1]).flatten(1).float()
            for part in data.images.split(batch_size)
        ]
    return torch.cat(parts)


@checked
def spectral_signatures(features: Tensor, groups: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """``(N,)``: spectral signatures (Tran, Li & Madry 2018, arXiv 1811.00636), measured from clean images.

    Features are centred on the clean images of their group and whitened by the clean covariance, as SPECTRE
    does with robust estimates (Hayase et al. 2021, arXiv 2104.11315). The score is the squared projection on
    the group's first singular vector. It is in clean variances, so scores of all groups compare.

    Args:
        features: ``(N, D)``.
        groups: ``(N,)`` classes: the teacher's answers, or the data set's labels.
        clean: ``(M, D)`` features of the victim's clean images.
        labels: ``(M,)`` their classes. A group without any is centred on its own mean.
    """
    from sklearn.covariance import ledoit_wolf

    within = clean - _centres(clean, labels, clean, labels)
    covariance = torch.from_numpy(ledoit_wolf(within.double().cpu().numpy(), assume_centered=True)[0])
    root = torch.linalg.cholesky(covariance).to(features.device)
    centred = (features - _centres(features, groups, clean, labels)).double()
    white = torch.linalg.solve_triangular(root, centred.T, upper=False).T
    scores = torch.zeros(len(features), device=features.device)
    for group in groups.unique():
        members = groups == group
        direction = torch.linalg.svd(white[members], full_matrices=False).Vh[0]
        scores[members] = (white[members] @ direction).square().float()
    return scores


def _centres(features: Tensor, groups: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """``(N, D)``: for each image the mean of the clean images of its group, or of the group itself."""
    centres = torch.zeros_like(features)
    for group in groups.unique():
        known = clean[labels == group]
        centres[groups == group] = (known if len(known) else features[groups == group]).mean(0)
    return centres


@checked
def activation_clustering(
    features: Tensor,
    groups: Tensor,
    clean: Tensor,
    labels: Tensor,
    *,
    components: int = 10,
    seed: int = 0,
) -> tuple[Tensor, dict[int, float]]:
    """Activation clustering (Chen et al. 2018, arXiv 1811.03728): two clusters a group, one suspect.

    Their silhouette rule trusts a split only where the clusters are well apart. So a member of the suspect
    cluster scores its group's silhouette, every other image 0. Suspect is the cluster farther from the
    group's clean images (the smaller one, where there are none): poisons may be the majority of a group.
    Reduction is by principal components (the paper prefers independent ones, whose search may not converge).

    Args:
        features, groups, clean, labels: as in ``spectral_signatures``.
        components: dimensions kept before clustering.
        seed: of k-means.

    Returns:
        ``(N,)`` scores, and each group's silhouette, at most 1. Groups of fewer than four images score 0.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    scores, silhouettes = torch.zeros(len(features), device=features.device), {}
    for group in groups.unique().tolist():
        members = (groups == group).nonzero().squeeze(1)
        if len(members) < 4:
            continue
        points = features[members].cpu().numpy().astype(np.float64)
        reduction = PCA(min(components, *points.shape), svd_solver="full").fit(points)
        reduced = reduction.transform(points)
        clusters = KMeans(2, n_init=10, random_state=seed).fit(reduced)
        if len(set(clusters.labels_.tolist())) < 2:
            continue
        known = clean[labels == group].cpu().numpy().astype(np.float64)
        if len(known):
            suspect = int(clusters.transform(reduction.transform(known)).mean(0).argmax())
        else:
            suspect = int(clusters.labels_.mean() < 0.5)
        silhouettes[group] = float(silhouette_score(reduced, clusters.labels_))
        inside = torch.from_numpy(clusters.labels_ == suspect).to(features.device)
        scores[members] = inside * max(0.0, silhouettes[group])
    return scores, silhouettes


@checked(some=["images", "overlays"])
def strip(model: nn.Module, images: Tensor, overlays: Tensor, *, blends: int = 64, seed: int = 0) -> Tensor:
    """``(N,)``: STRIP (Gao et al. 2019, arXiv 1902.06531): minus the mean entropy under blending.

    Each image is blended half and half with ``blends`` clean ones. An honest image loses its class by that;
    an answer that stays the same with every blend depends on a trigger.

    Args:
        model: the student under suspicion.
        images: ``(N, C, H, W)`` inputs at run time.
        overlays: clean images to draw from.
    """
    generator = torch.Generator().manual_seed(seed)
    entropy = []
    for image in images:
        index = torch.randint(len(overlays), (blends,), generator=generator).to(overlays.device)
        probabilities = predict(model, 0.5 * to_float(image) + 0.5 * to_float(overlays[index])).softmax(1)
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


@checked(some=["images"])
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

    Raises:
        KdsecError: a model without gradients.
    """
    check_number("steps", steps, least=1, whole=True)
    generator = torch.Generator().manual_seed(seed)
    shape, device = images.shape[1:], images.device
    raw = torch.rand(shape[0] + 1, *shape[1:], generator=generator).to(device).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.1, betas=(0.5, 0.9))
    wish = torch.full((batch_size,), target, device=device)
    weight, streak, best = 1e-3, 0, None
    with evaluating(model):
        for number in range(steps):
            index = torch.randint(len(images), (batch_size,), generator=generator).to(device)
            batch = to_float(images[index])
            both = (raw.tanh() + 1) / 2
            mask, pattern = both[:1], both[1:]
            logits = as_logits(model((1 - mask) * batch + mask * pattern), batch_size).float()
            if number == 0:
                check_gradient(logits, raw)
            loss = F.cross_entropy(logits, wish) + weight * mask.sum()
            (raw.grad,) = torch.autograd.grad(loss, raw)
            success = (logits.argmax(1) == target).float().mean().item()
            last = Inverted(mask.detach(), pattern.detach(), success)
            fooled = success >= wanted
            if fooled and (best is None or last.size < best.size):
                best = last
            optimizer.step()
            streak = max(streak, 0) + 1 if fooled else min(streak, 0) - 1
            if abs(streak) == 5:  # the original's patience and factors
                weight, streak = (weight * 2 if fooled else weight / 2**1.5), 0
    return best or last


@checked
def neural_cleanse(
    model: nn.Module, images: Tensor, classes: int, **options: int | float
) -> tuple[list[Inverted], Tensor]:
    """Invert a trigger for every class; options as in ``invert_trigger``.

    Returns:
        The triggers, and ``(classes,)`` anomaly indices: how many robust standard deviations a mask is
        *smaller* than the median. Above 2 the class is called backdoored.
    """
    found = [invert_trigger(model, images, target, **options) for target in range(classes)]
    return found, anomaly_index(torch.tensor([each.size for each in found]))


@checked(some=["sizes"])
def anomaly_index(sizes: Tensor) -> Tensor:
    """``(K,)``: (median - size) / (1.4826 median absolute deviation), above 0 for the smaller ones.

    All not a number, which is no verdict, where the median deviation is 0 or a size is not finite.
    """
    if sizes.ndim != 1:
        raise KdsecError(f"sizes {tuple(sizes.shape)} must be (K,), one a class")
    middle = sizes.double().quantile(0.5)
    deviation = (sizes - middle).abs().quantile(0.5) * MAD_TO_SIGMA
    usable = deviation > 0 and bool(sizes.isfinite().all())
    return (middle - sizes) / deviation if usable else torch.full_like(middle - sizes, torch.nan)
