"""More evasion attacks, from torchattacks: APGD, FAB, Square, AutoAttack, CW, DeepFool.

An optional extra. torchattacks 3.5.1 (MIT) has every attack that papers report, in plain PyTorch, but asks
for an old version of requests that it never imports. So kdsec does not depend on it; ``make attacks``
installs it without that.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdsec.budgets import check_classes, check_counts, distance
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice
from kdsec.pgd import PerturbationSet, answer, in_batches

GRADIENT = ("apgd", "apgd-targeted", "fab", "square")  # the four parts of AutoAttack, in its order
NEAREST = ("cw", "deepfool")
LIBRARY = (*GRADIENT, "autoattack", *NEAREST)


@checked
def library(
    name: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 100,
    queries: int = 5000,
    seed: int = 0,
    batch_size: int = 250,
) -> Tensor:
    """An attack of torchattacks 3.5.1 (MIT), around that package's traps.

    ``autoattack`` is put together as Croce & Hein 2020 (arXiv 2003.01690) define it: APGD, targeted APGD and
    FAB of 100 steps, Square of 5,000 queries. (The package's own AutoAttack takes 10 steps, its issue 196.)
    ``cw`` and ``deepfool`` look for the nearest error, in L2, rather than for one within a budget: an image
    whose nearest error lies beyond ``eps`` comes back unchanged. CW tries its constant at 0.1, 1, 10 and 100;
    DeepFool's result is pushed 1 % further, since it may stop just short of the boundary.

    Args:
        name: one of ``LIBRARY``.
        steps: gradient steps; DeepFool stops as soon as it can.
        queries: of Square.
        model, images, labels, eps, norm, seed, batch_size: as in ``pgd``.

    Raises:
        KdsecError: torchattacks is missing, or an argument is out of range.
    """
    check_choice("attack", name, LIBRARY)
    check_counts(steps=steps, queries=queries)
    if norm != "l2" and name in NEAREST:
        raise KdsecError(f"attack {name!r} measures in L2; give norm='l2' and eps as an L2 distance")

    @torch.enable_grad()
    def attack(clean: Tensor, true: Tensor) -> Tensor:
        torchattacks = _torchattacks(name)
        if name in NEAREST:
            return _nearest(torchattacks, name, model, clean, true, steps, eps)
        logits = answer(model, clean[:1])
        check_classes(int(labels.max()), logits)
        classes = logits.shape[1]
        limits = {"eps": eps, "norm": {"linf": "Linf", "l2": "L2"}[norm], "seed": seed}
        make: dict[str, Callable[[], Any]] = {
            "apgd": lambda: torchattacks.APGD(model, steps=steps, **limits),
            "apgd-targeted": lambda: torchattacks.APGDT(model, steps=steps, n_classes=classes, **limits),
            "fab": lambda: torchattacks.FAB(
                model, steps=steps, multi_targeted=True, n_classes=classes, **limits
            ),
            "square": lambda: torchattacks.Square(model, n_queries=queries, **limits),
            "autoattack": lambda: torchattacks.MultiAttack([make[part]() for part in GRADIENT]),
        }
        return PerturbationSet(clean, eps, norm).project(make[name]()(clean, true).detach())

    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        return in_batches(attack, model, images, labels, eps, norm, batch_size)


def _torchattacks(name: str) -> Any:
    """The package, or one line that says how to get it."""
    try:
        return importlib.import_module("torchattacks")
    except ImportError:
        raise KdsecError(
            f"attack {name!r} needs torchattacks: `make attacks`, or "
            "`pip install --no-deps torchattacks==3.5.1` (kdsec brings what it imports; "
            "without --no-deps it would put an old version of requests here)"
        ) from None


def _nearest(
    torchattacks: Any, name: str, model: nn.Module, clean: Tensor, labels: Tensor, steps: int, eps: float
) -> Tensor:
    """The wrongly classified images nearest to the clean ones, where they are within ``eps``."""
    if name == "deepfool":
        attempts = [clean + 1.01 * (torchattacks.DeepFool(model, steps=steps)(clean, labels) - clean)]
    else:
        attempts = [torchattacks.CW(model, c=c, steps=steps)(clean, labels) for c in (0.1, 1, 10, 100)]
    best, nearest = clean, torch.full((len(clean),), eps, device=clean.device)
    for attempt in attempts:
        found = attempt.detach().clamp(0, 1)
        gap = distance(found, clean, "l2")
        better = (answer(model, found).argmax(1) != labels) & (gap <= nearest)
        best = torch.where(better[:, None, None, None], found, best)
        nearest = torch.where(better, gap, nearest)
    return best
