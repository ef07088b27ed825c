"""Transfer learning: a student that keeps the first layers of a public teacher and learns the rest.

A *layer* is a convolution or a linear map with what follows it up to the next one (normalisation, activation,
pooling), or a whole residual block. The last linear map is the *head*; every student has its own. The number
of layers kept gives the three kinds of Wang et al. 2018 (USENIX Security), "With Great Training Comes Great
Vulnerability": all is a deep-layer extractor (only the head is trained), some a mid-layer extractor, none
full fine-tuning.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from kdsec.data import Augment, ImageSet
from kdsec.data.imageset import to_float
from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.models import Classifier
from kdsec.models.base import check_stages
from kdsec.train import Recipe

WEIGHTED = (nn.Conv2d, nn.Linear)


class LayeredClassifier(Classifier):
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

    def train(self, mode: bool = True) -> LayeredClassifier:
        super().train(mode)
        self.stages[: self.frozen].eval()
        return self

    def output(self, images: Tensor, layer: int) -> Tensor:
        """Output of layer ``layer`` (1 to N) for float images ``(B, C, H, W)``, as ``(B, width)``.

        Raises:
            KdsecError: the network has no such layer.
        """
        check_cut(layer, self.depth, smallest=1)
        features: Tensor = self.stages[:layer](self.normalize(images))
        return features.flatten(1)


@checked
def flatten_layers(model: Classifier) -> LayeredClassifier:
    """A copy of ``model`` as a flat list of layers; it computes the same.

    Raises:
        KdsecError: it is no kdsec Classifier, or does not end in a linear map.
    """
    check_stages(model, "the network of transfer learning")
    if isinstance(model, LayeredClassifier):
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
    return LayeredClassifier(
        copy.deepcopy(model.normalize), [nn.Sequential(*layer) for layer in layers], head
    )


@checked
def transfer(teacher: Classifier, num_classes: int, keep: int, *, seed: int = 0) -> LayeredClassifier:
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
    net = flatten_layers(teacher)
    check_cut(keep, net.depth, smallest=0)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        head = nn.Linear(net.head.in_features, num_classes)
    for parameter in net.stages.parameters():
        parameter.requires_grad_(True)
    device = next(net.parameters()).device
    return LayeredClassifier(net.normalize, list(net.stages), head.to(device), frozen=keep)


@checked
def fit_above(
    student: LayeredClassifier,
    data: ImageSet,
    recipe: Recipe,
    fit: Callable[[nn.Module, ImageSet, Recipe], nn.Module],
) -> LayeredClassifier:
    """Train a student in place; where nothing crops its images, on features that are computed once.

    What the frozen layers say about an image is then the same in every epoch. Mirroring is kept: the mirrored
    images are added to the others.

    Args:
        student: on the same device as ``data``.
        recipe: of the training; with a crop or a cutout, the whole student is run on every batch.
        fit: trains a network, e.g. ``functools.partial(run.fit, "student")``.
    """
    cut, augment = student.frozen, recipe.augment
    if not cut or augment.crop or augment.cutout:
        fit(student, data, recipe)
        return student.eval()
    images, labels = data.images, data.labels
    if augment.flip:
        images, labels = torch.cat([images, images.flip(3)]), labels.repeat(2)
    student.eval()
    with torch.no_grad():
        parts = (student.normalize(to_float(part)) for part in images.split(250))
        features = torch.cat([student.stages[:cut](part) for part in parts])
    flat = features.ndim == 2
    features = features[:, :, None, None] if flat else features
    # The same modules, so that the student learns what this network learns.
    upper = LayeredClassifier(
        nn.Flatten() if flat else nn.Identity(), list(student.stages[cut:]), student.head
    )
    # Features are no pixels: they may have any size and number of channels.
    fit(upper, data._with(features, labels), dataclasses.replace(recipe, augment=Augment()))
    return student.eval()


def student_parts(
    parts: Sequence[ImageSet], classes: Sequence[int], own: int, loot: int, most: int, seed: int
) -> tuple[ImageSet, ImageSet, ImageSet, ImageSet]:
    """Images of some classes: the owner's, the attacker's, validation, test.

    Args:
        parts: training, validation and test images of all classes.
        classes: become 0, 1, ...
        own, loot: numbers of images of the owner and of the attacker, who share no image; if there are fewer
            than both, they get their shares.
        most: validation images, and test images, at most.
        seed: draws them.
    """
    rest, *others = (select_classes(part, classes) for part in parts)
    dealt = rest.stratified(min(own + loot, len(rest)), seed)  # in random order
    cut = own * len(dealt) // (own + loot)
    val, test = (each.stratified(most, seed) if len(each) > most else each for each in others)
    return dealt.subset(slice(cut)), dealt.subset(slice(cut, None)), val, test


@checked(labelled=["data"])
@torch.no_grad()
def nearest_mean(teacher: Classifier, data: ImageSet, layer: int) -> LayeredClassifier:
    r"""A student without training: the class whose mean features at ``layer`` are nearest.

    Logits :math:`2 \mu_c^\top f(x) - \lVert \mu_c \rVert^2`: minus the squared distance, up to a term
    that all classes share.

    Args:
        teacher: not changed.
        data: labelled, at least one image of each class.
        layer: 1 to the number of layers.
    """
    net = flatten_layers(teacher).eval()
    parts = data.float_images().split(250)
    features = torch.cat([net.output(part, layer).float() for part in parts])
    means = torch.stack([features[data.labels == label].mean(0) for label in range(data.num_classes)])
    head = nn.Linear(means.shape[1], len(means)).to(means.device)
    head.weight.copy_(2 * means)
    head.bias.copy_(-means.square().sum(1))
    return LayeredClassifier(net.normalize, [*net.stages[:layer], nn.Flatten()], head, layer + 1).eval()


def feature_distance(first: Tensor, second: Tensor) -> float:
    """How unlike two layers are: 1 - linear CKA of their features ``(N, width)`` of the same N images.

    0 for features that are equal up to rotation, scale and shift; 1 for uncorrelated ones. The widths may
    differ. Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", arXiv 1905.00414.
    """
    for each in (first, second):
        if (
            not isinstance(each, Tensor)
            or each.ndim != 2
            or each.is_complex()
            or not len(each)
            or not bool(each.isfinite().all())
        ):
            raise KdsecError("features must be two tensors (N, width) of finite numbers, N at least 1")
    if len(first) != len(second):
        raise KdsecError(
            f"features of {len(first)} and of {len(second)} images; give those of the same images"
        )
    x, y = (each.double() - each.double().mean(0) for each in (first, second))
    shared = (x.T @ y).square().sum()
    return 1 - (shared / ((x.T @ x).norm() * (y.T @ y).norm()).clamp(min=1e-30)).item()


def check_cut(layer: int, depth: int, smallest: int) -> None:
    """Refuse a layer that the network does not have."""
    if not smallest <= layer <= depth:
        raise KdsecError(
            f"layer {layer} is beyond this network, which has {depth} layers before its head; "
            f"choose {smallest} to {depth}"
        )


@checked
def select_classes(data: ImageSet, classes: Sequence[int]) -> ImageSet:
    """The images of ``classes``, which become the classes 0, 1, ... in the order given.

    Raises:
        KdsecError: fewer than two classes, one that is named twice or does not exist, or one without images.
    """
    if not isinstance(classes, Sequence) or isinstance(classes, str):
        raise KdsecError(f"classes={classes!r} must be a list of class numbers")
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
