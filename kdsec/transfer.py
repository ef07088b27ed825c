"""Transfer learning: a student that keeps the first layers of a public teacher and learns the rest.

A *layer* here is a convolution or a linear map with what follows it up to the next one (normalisation,
activation, pooling), or a whole residual block. The last linear map is the *head*; a student always has one
of its own. With so many layers kept:

* all: deep-layer extractor, only the head is trained;
* some: mid-layer extractor;
* none: full fine-tuning: every layer starts from the teacher's and then moves.

These are the three kinds of Wang et al. 2018 (USENIX Security), "With Great Training Comes Great
Vulnerability".
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from kdsec.data import ImageSet
from kdsec.errors import KdsecError
from kdsec.models import Classifier

WEIGHTED = (nn.Conv2d, nn.Linear)


class Student(Classifier):
    """A classifier as a flat list of layers, the first ``frozen`` of which do not learn.

    Frozen layers stay in eval mode when the rest trains: their batch normalisation keeps the teacher's
    statistics, so that what they compute is what the public teacher computes.
    """

    head: nn.Linear

    def __init__(self, normalize: nn.Module, layers: Sequence[nn.Module], head: nn.Linear, frozen: int = 0):
        super().__init__(normalize, layers, head)
        self.frozen = frozen
        for parameter in self.stages[:frozen].parameters():
            parameter.requires_grad_(False)

    @property
    def depth(self) -> int:
        """N, the number of layers without the head."""
        return len(self.stages)

    def extra_repr(self) -> str:
        """Show how many layers are frozen, for the printed net and its fingerprint."""
        return f"frozen={self.frozen}"

    def train(self, mode: bool = True) -> Student:
        super().train(mode)
        self.stages[: self.frozen].eval()
        return self

    def output(self, images: Tensor, layer: int) -> Tensor:
        """What layer ``layer`` (1 to N) says about float images ``(N, C, H, W)``, as ``(N, width)``.

        Raises:
            KdsecError: the network has no such layer.
        """
        check_cut(layer, self.depth, smallest=1)
        features: Tensor = self.stages[:layer](self.normalize(images))
        return features.flatten(1)


def unfold(model: Classifier) -> Student:
    """A copy of ``model`` as a flat list of layers; it computes the same.

    Raises:
        KdsecError: the model does not end in a linear map.
    """
    if isinstance(model, Student):
        return copy.deepcopy(model)
    parts = list(_flat(copy.deepcopy(model.stages))) + list(_flat(copy.deepcopy(model.head)))
    if not isinstance(head := parts.pop(), nn.Linear):
        raise KdsecError(
            f"the last part of this model is a {type(head).__name__}; transfer learning replaces a Linear"
        )
    layers: list[list[nn.Module]] = []
    waiting: list[nn.Module] = []  # parts without weights in front of the first layer
    for part in parts:
        if _starts_layer(part):
            layers.append([*waiting, part])
            waiting = []
        else:
            (layers[-1] if layers else waiting).append(part)
    return Student(copy.deepcopy(model.normalize), [nn.Sequential(*layer) for layer in layers], head)


def transfer(teacher: Classifier, num_classes: int, keep: int, *, seed: int = 0) -> Student:
    """A student for ``num_classes`` new classes: the teacher's layers, ``keep`` of them frozen, a new head.

    Args:
        teacher: not changed.
        num_classes: at least 2.
        keep: K, from 0 (full fine-tuning) to the number of layers (only the head learns).
        seed: of the new head's weights.

    Raises:
        KdsecError: fewer than two classes, or K beyond the network.
    """
    if num_classes < 2:
        raise KdsecError(f"a student needs at least 2 classes, got {num_classes}")
    net = unfold(teacher)
    check_cut(keep, net.depth, smallest=0)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        head = nn.Linear(net.head.in_features, num_classes)
    for parameter in net.stages.parameters():
        parameter.requires_grad_(True)
    device = next(net.parameters()).device
    return Student(net.normalize, list(net.stages), head.to(device), frozen=keep)


def check_cut(layer: int, depth: int, smallest: int) -> None:
    """Refuse a layer that the network does not have."""
    if not smallest <= layer <= depth:
        raise KdsecError(
            f"layer {layer} is beyond this network, which has {depth} layers before its head; "
            f"choose {smallest} to {depth}"
        )


def only(data: ImageSet, classes: Sequence[int]) -> ImageSet:
    """The images of ``classes``, which become the classes 0, 1, ... in the order given.

    Raises:
        KdsecError: fewer than two classes, one that is named twice or does not exist, or one without images.
    """
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise KdsecError(f"classes {list(classes)}: give at least 2, each once")
    if not all(0 <= each < data.num_classes for each in classes):
        raise KdsecError(
            f"classes {list(classes)} are not all classes of {data.name}, which are 0 to "
            f"{data.num_classes - 1}"
        )
    place = torch.full((data.num_classes,), -1, device=data.labels.device)
    place[list(classes)] = torch.arange(len(classes), device=place.device)
    chosen = data.subset(((data.labels >= 0) & (place[data.labels] >= 0)).nonzero().squeeze(1))
    labels = place[chosen.labels]
    missing = [each for new, each in enumerate(classes) if not bool((labels == new).any())]
    if missing:
        raise KdsecError(f"{data.name} has no images of class {missing[0]}; leave it out or add some")
    names = tuple(data.classes[each] for each in classes)
    return ImageSet(chosen.images, labels, names, data.name)


def _flat(part: nn.Module) -> Iterator[nn.Module]:
    """The parts of nested Sequentials, in the order in which they run."""
    if isinstance(part, nn.Sequential):
        for each in part:
            yield from _flat(each)
    else:
        yield part


def _starts_layer(part: nn.Module) -> bool:
    """Whether the part has a convolution or a linear map in it: by itself, or as a residual block."""
    return any(isinstance(each, WEIGHTED) for each in part.modules())
