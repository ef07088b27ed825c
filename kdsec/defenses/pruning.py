"""Structured pruning: removes whole channels, together with the weights that read them.

Only channels with exactly one reader are removed: those between two neighbouring layers, and those inside a
residual block. The sum of a block and its shortcut stays as it is. A depthwise convolution in between loses
the same channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdsec.data.imageset import to_float
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice
from kdsec.layered import LayeredClassifier
from kdsec.train import evaluating

# Which channels are removed first.
RANKINGS = ("activation", "zeros", "reverse", "random")


class ChannelGroup(NamedTuple):
    """Channels between two layers: ``writer`` computes them, ``reader`` uses them, ``norms`` are between.

    ``norms`` are what works on each channel alone: normalisations, depthwise convolutions.
    """

    writer: nn.Conv2d | nn.Linear
    norms: tuple[nn.Module, ...]
    reader: nn.Conv2d | nn.Linear

    @property
    def channels(self) -> int:
        return self.writer.weight.shape[0]

    @property
    def places(self) -> int:
        """Inputs of the reader that belong to one channel: 1, or the pixels of a flattened map."""
        return self.reader.weight.shape[1] // self.channels


def links(net: LayeredClassifier) -> list[ChannelGroup]:
    """Every group of channels of ``net`` that can be pruned, first to last.

    Raises:
        KdsecError: there is none.
    """
    found = list(_chain([*_parts(net.stages), net.head]))
    if not found:
        raise KdsecError("this network has no channels that can be removed alone; choose another one")
    return found


@checked
@torch.no_grad()
def activity(net: LayeredClassifier, images: Tensor, statistic: str = "mean") -> list[Tensor]:
    """Mean activity on ``images`` of each channel, one tensor ``(channels,)`` a group.

    Measured at the reader's input, after the activation and any pooling.

    Args:
        net: in layers.
        images: ``(N, C, H, W)`` in [0, 1], or bytes.
        statistic: ``mean`` of the absolute activation over images and places (the statistic of fine-pruning,
            Liu et al. 2018, arXiv 1805.12185), or ``nonzero``, the share that is not 0 (one minus APoZ, Hu et
            al. 2016, arXiv 1607.03250).
    """
    check_choice("statistic", statistic, ("mean", "nonzero"))
    if not len(images):
        raise KdsecError("there are no images to measure activations on; give some of each class")
    thinned = links(net)
    sums = [torch.zeros(link.channels, device=images.device) for link in thinned]

    def watch(place: int, link: ChannelGroup) -> torch.utils.hooks.RemovableHandle:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            per_channel = inputs[0].flatten(1).view(len(inputs[0]), link.channels, -1).float().abs()
            per_channel = per_channel if statistic == "mean" else (per_channel > 0).float()
            sums[place] += per_channel.mean(2).sum(0)

        return link.reader.register_forward_pre_hook(add)

    hooks = [watch(place, link) for place, link in enumerate(thinned)]
    try:
        with evaluating(net):
            for part in images.split(250):
                net(to_float(part))
    finally:
        for hook in hooks:
            hook.remove()
    return [total / len(images) for total in sums]


@checked
def prune(
    net: LayeredClassifier, images: Tensor, ratio: float, ranking: str = "activation", seed: int = 0
) -> LayeredClassifier:
    """A smaller copy of ``net`` without the share ``ratio`` of the channels of every group.

    Args:
        net: not changed.
        images: ``(N, C, H, W)``, on which activity is measured.
        ratio: in [0, 1); at least one channel of a group stays.
        ranking: removed first: the least active channels (``activation``), the most often zero (``zeros``),
            the most active (``reverse``, a control), or channels drawn by ``seed`` (``random``, a control).
        seed: of ``random``.

    Raises:
        KdsecError: a ratio out of range, or an unknown ranking.
    """
    check_choice("ranking", ranking, RANKINGS)
    if not 0 <= ratio < 1:
        raise KdsecError(f"ratio={ratio} is not a share in [0, 1); 0.5 removes half of the channels")
    scores = activity(net, images, "nonzero" if ranking == "zeros" else "mean")
    if ranking == "reverse":
        scores = [-score for score in scores]
    if ranking == "random":
        generator = torch.Generator().manual_seed(seed)
        scores = [torch.rand(len(score), generator=generator).to(score) for score in scores]
    kept = []
    for score in scores:
        gone = min(int(ratio * len(score)), len(score) - 1)
        kept.append(score.argsort(stable=True)[gone:].sort().values)
    return keep_channels(net, kept)


def keep_channels(net: LayeredClassifier, kept: list[Tensor]) -> LayeredClassifier:
    """A copy of ``net`` with only the channels ``kept[i]`` (sorted positions) of group i."""
    smaller = copy.deepcopy(net)
    for link, chosen in zip(links(smaller), kept, strict=True):
        places = torch.arange(link.places, device=chosen.device)
        inputs = (chosen[:, None] * link.places + places).flatten()
        _select(link.writer, 0, chosen)
        for norm in link.norms:
            _select(norm, 0, chosen)
        _select(link.reader, 1, inputs)
    return smaller


class Cost(NamedTuple):
    """Size and computation of a network: parameters, and multiply-adds for one image."""

    parameters: int
    multiply_adds: int

    @property
    def megabytes(self) -> float:
        """In float32."""
        return self.parameters * 4 / 1e6


@checked
@torch.no_grad()
def cost(net: nn.Module, shape: Sequence[int]) -> Cost:
    """Cost of ``net`` on an image of ``shape`` (C, H, W); only convolutions and linear maps are counted."""
    spent = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        spent.append(output[0].numel() * weight[0].numel())

    counted = [part for part in net.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    hooks = [part.register_forward_hook(count) for part in counted]
    try:
        with evaluating(net):
            net(torch.zeros(1, *shape, device=next(net.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return Cost(sum(each.numel() for each in net.parameters()), sum(spent))


def _select(module: nn.Module, dimension: int, chosen: Tensor) -> None:
    """Keep the entries ``chosen`` of a layer's outputs (dimension 0) or inputs (1), in place."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(module, name, None)
        if tensor is None or dimension >= tensor.ndim:
            continue
        smaller = tensor.detach().index_select(dimension, chosen).contiguous()
        if isinstance(tensor, nn.Parameter):
            setattr(module, name, nn.Parameter(smaller, requires_grad=tensor.requires_grad))
        else:
            setattr(module, name, smaller)
    counts: tuple[str, ...] = ("num_features",)
    if isinstance(module, nn.Conv2d | nn.Linear):
        kind = "channels" if isinstance(module, nn.Conv2d) else "features"
        counts = (f"out_{kind}", f"in_{kind}")
    for name in (*counts, "groups") if _is_depthwise(module) else counts[dimension : dimension + 1]:
        setattr(module, name, len(chosen))


def _is_depthwise(module: nn.Module) -> bool:
    """Whether the module is a convolution in which every channel has its own filter and sees no other."""
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of nested Sequentials, in the order in which they run."""
    if isinstance(module, nn.Sequential):
        for each in module:
            yield from _parts(each)
    else:
        yield module


def _chain(parts: list[nn.Module]) -> Iterator[ChannelGroup]:
    """Groups between neighbours in ``parts``; another kind of module is searched by itself."""
    writer: nn.Conv2d | nn.Linear | None = None
    norms: list[nn.Module] = []
    for part in parts:
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) or (writer is not None and _is_depthwise(part)):
            norms.append(part)
        elif isinstance(part, nn.Conv2d | nn.Linear):
            alone = isinstance(part, nn.Linear) or part.groups == 1
            if writer is not None and alone:
                yield ChannelGroup(writer, tuple(norms), part)
            writer, norms = (part if alone else None), []
        elif next(part.parameters(), None) is not None:
            writer, norms = None, []
            yield from _inside(part)


def _inside(block: nn.Module) -> Iterator[ChannelGroup]:
    """Groups inside a residual block: within its branch, whose last output is added to the shortcut."""
    for child in block.children():
        if isinstance(child, nn.Sequential):
            yield from _chain(list(_parts(child)))
