r"""Feature mimicry: fool a student that nobody has seen, through the public teacher that it was made from.

Wang et al. 2018 (USENIX Security), "With Great Training Comes Great Vulnerability", as in the authors' code.
A student with its first layers copied from a teacher cannot tell two images apart that agree at the
last of them, layer l. So the attacker, who has the teacher and one image of the target class, solves

.. math:: \min_{x'} \lVert f_T^{\,\ell}(x') - f_T^{\,\ell}(x_t) \rVert_2
   \quad\text{such that}\quad d(x', x_s) < P

without a question to the student. The budget (``kdsec.attacks.constrained_search``) is DSSIM, as in the
paper, or L-infinity, as in Sabour et al. 2016 (arXiv 1511.05122).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdsec.attacks.constrained_search import Budget, SearchResult, constrained_search, portion
from kdsec.data import ImageSet
from kdsec.data.imageset import to_float
from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.layered import LayeredClassifier, check_cut, flatten_layers
from kdsec.models import Classifier
from kdsec.train import predict


@dataclass(frozen=True, eq=False)
class Mimic:
    """Minus the L2 distance of a layer's features from ``wanted`` ``(N, width)``."""

    net: LayeredClassifier
    layer: int
    wanted: Tensor

    def __call__(self, images: Tensor, index: Tensor) -> Tensor:
        return -(self.net.output(images, self.layer).float() - self.wanted[index]).norm(dim=1)


@checked
def mimic(
    teacher: Classifier, layer: int, sources: Tensor, targets: Tensor, budget: Budget, batch_size: int = 250
) -> Tensor:
    """Targeted mimicry of many pairs at once: images like ``sources`` with the features of ``targets``.

    Args:
        teacher: public, white box, not changed; any classifier, counted in the layers of ``flatten_layers``.
        layer: K, 1 to the number of layers before the head.
        sources, targets: ``(N, C, H, W)`` in [0, 1], or bytes; pair by pair.
        budget: ``Dssim`` or ``Linf``.
        batch_size: pairs at a time.

    Raises:
        KdsecError: no such layer, sources without targets, or what ``search`` refuses.
    """
    return mimicked(teacher, layer, sources, targets, budget, batch_size).images


@checked
def mimicked(
    teacher: Classifier, layer: int, sources: Tensor, targets: Tensor, budget: Budget, batch_size: int = 250
) -> SearchResult:
    """As ``mimic``, with minus the remaining distance, the budget used and the steps of every pair."""
    if sources.shape != targets.shape:
        raise KdsecError(
            f"sources {tuple(sources.shape)} and targets {tuple(targets.shape)} are not pairs; give one "
            "target for every source"
        )
    net = _frozen(teacher, layer)
    return constrained_search(Mimic(net, layer, outputs(net, layer, targets)), sources, budget, batch_size)


@checked
def mimic_any(
    teacher: Classifier,
    layer: int,
    sources: Tensor,
    candidates: Tensor,
    budget: Budget,
    batch_size: int = 250,
) -> Tensor:
    r"""Non-targeted mimicry: of several targets the one that comes closest, :math:`\min_i` of the distances.

    The choice needs no question to the student.

    Args:
        teacher, layer, sources, budget, batch_size: as in ``mimic``.
        candidates: ``(N, M, C, H, W)``, M possible targets of each source.

    Raises:
        KdsecError: as ``mimic``, or no candidates.
    """
    if candidates.ndim != 5 or len(candidates) != len(sources) or not candidates.shape[1]:
        raise KdsecError(
            f"candidates of shape {tuple(candidates.shape)} do not fit {len(sources)} sources; give "
            "(N, M, C, H, W), at least one target for every source"
        )
    many = candidates.shape[1]
    repeat = torch.arange(len(sources)).repeat_interleave(many)
    found = mimicked(
        teacher, layer, sources[repeat], candidates.flatten(0, 1), portion(budget, repeat), batch_size
    )
    nearest = found.value.view(-1, many).argmax(1)
    return found.images.unflatten(0, (-1, many))[torch.arange(len(sources)), nearest]


class Pairs(NamedTuple):
    """Positions ``(N,)`` of sources in a set, of their targets ``(N,)`` or ``(N, M)``, and both labels."""

    sources: Tensor
    targets: Tensor
    source_labels: Tensor
    target_labels: Tensor


@checked
def choose_pairs(
    student: nn.Module, data: ImageSet, count: int, *, seed: int = 0, candidates: int = 1
) -> Pairs:
    """Draw what to attack: an ordered pair of labels, an image of each, both of which the student gets right.

    Label pairs are drawn evenly, as in the authors' code, so that no class counts for more than another.

    Args:
        student: tells which images are right.
        data: labelled.
        count: N pairs.
        seed: draws them.
        candidates: M; above 1, each source gets that many targets of other labels, each label about as often.

    Raises:
        KdsecError: fewer than two classes with an image that the student gets right, or no pairs wanted.
    """
    if count < 1 or candidates < 1:
        raise KdsecError(f"count={count}, candidates={candidates}: give at least 1 of each")
    right = predict(student, data).argmax(1) == data.labels
    of_label = {
        label: members
        for label in range(data.num_classes)
        if len(members := (right & (data.labels == label)).nonzero().squeeze(1).cpu())
    }
    if len(of_label) < 2:
        raise KdsecError(
            f"the student gets images of {len(of_label)} classes right; a pair needs two, so train it longer "
            "or give more images"
        )
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(list(of_label))

    def draw(label: int) -> int:
        members = of_label[label]
        return int(members[torch.randint(len(members), (1,), generator=generator)])

    sources, targets, source_labels = [], [], []
    for _ in range(count):
        shuffled = labels[torch.randperm(len(labels), generator=generator)].tolist()
        others = (shuffled[1:] * candidates)[:candidates]
        source_labels.append(shuffled[0])
        sources.append(draw(shuffled[0]))
        targets.append([draw(label) for label in others])
    device = data.labels.device
    chosen = torch.tensor(targets, device=device)
    chosen = chosen.squeeze(1) if candidates == 1 else chosen
    return Pairs(
        torch.tensor(sources, device=device),
        chosen,
        torch.tensor(source_labels, device=device),
        data.labels[chosen],
    )


@checked
def best_layer(
    ask: Callable[[Tensor], Tensor],
    teacher: Classifier,
    data: ImageSet,
    pairs: Pairs,
    budget: Budget,
    layers: Sequence[int],
) -> tuple[int, dict[int, float]]:
    """Find the layer to attack when K is not known: try some on a few pairs and ask the student.

    Args:
        ask: images to the student's labels ``(N,)``; the only use of the student.
        teacher, budget: as in ``mimic``.
        data, pairs: what to try on.
        layers: in the order in which ties are decided; the deepest first is wise.

    Returns:
        The layer with the largest targeted success, and the success of each.

    Raises:
        KdsecError: no layers.
    """
    if not layers:
        raise KdsecError("no layers to try; give at least one")
    success = {}
    for layer in layers:
        found = mimic(teacher, layer, data.images[pairs.sources], data.images[pairs.targets], budget)
        success[layer] = (ask(found) == pairs.target_labels).float().mean().item()
    return max(success, key=lambda layer: success[layer]), success


@torch.no_grad()
def outputs(net: LayeredClassifier, layer: int, images: Tensor, batch_size: int = 250) -> Tensor:
    """Features ``(N, width)`` of layer ``layer``; images may be bytes."""
    return torch.cat([net.output(to_float(part).float(), layer) for part in images.split(batch_size)])


def _frozen(teacher: Classifier, layer: int) -> LayeredClassifier:
    """A copy of the teacher in layers, in eval mode, whose weights gather no gradient."""
    net = flatten_layers(teacher)
    check_cut(layer, net.depth, smallest=1)
    net.eval().requires_grad_(False)
    return net.to(memory_format=torch.channels_last)
