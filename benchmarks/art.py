"""``python -m benchmarks.art [--queries N]``: the audit's pool against ART's extraction attacks.

One network in plain PyTorch is copied with equal queries, equal copies and equal time: each of ART's attacks
(``make art``) trains for as long as our whole pool takes, choice of temperature included. Needs CIFAR-10.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec import data
from kdsec.audit.copies import copy_network
from kdsec.audit.loading import target
from kdsec.audit.measure import Audit, Plan, audit
from kdsec.audit.serving import AS_IS, LABELS
from kdsec.audit.verdict import best
from kdsec.cache import Cache
from kdsec.report.text import text_table
from kdsec.train import predict


def victim(seed: int = 0) -> nn.Module:
    """A plain network, trained by Adam on 5,000 images."""
    known = data.load("cifar10", seed=0).train.subset(slice(0, 5_000))
    torch.manual_seed(seed)
    widths, layers = (3, 24, 48, 96), []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(16 * widths[-1], 10))
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(6):
        for index in torch.randperm(len(known)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(net(known.float_images(index)), known.labels[index]).backward()
            optimizer.step()
    return net.eval()


class SoftCrossEntropy(nn.Module):
    """For probabilities as targets: ART gives ``nn.CrossEntropyLoss`` nothing but their largest."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return -(targets * logits.log_softmax(1)).sum(1).mean()


def theirs(name: str, soft: bool, net: nn.Module, state: Audit, seconds: float) -> float:
    """Agreement of ART's attack ``name`` on the audit's test images, after training for ``seconds``."""
    from art.attacks.extraction import CopycatCNN, KnockoffNets
    from art.estimators.classification import PyTorchClassifier

    images, shape = state.thief.float_images().numpy(), state.thief.shape
    np.random.seed(0)
    torch.manual_seed(0)

    def classifier(model: nn.Module) -> Any:
        rest: dict[str, Any] = {"input_shape": shape, "nb_classes": 10, "device_type": "cpu"}
        optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], 1e-3)
        return PyTorchClassifier(model, SoftCrossEntropy(), optimizer=optimizer, clip_values=(0, 1), **rest)

    def steal(epochs: int) -> tuple[nn.Module, float]:
        copy, started = copy_network(None, state.thief, 0), time.monotonic()
        made = {"Knockoff Nets": KnockoffNets, "Copycat CNN": CopycatCNN}[name](
            classifier(nn.Sequential(net, nn.Softmax(1))),
            batch_size_fit=64,
            batch_size_query=250,
            nb_epochs=epochs,
            nb_stolen=len(images),
            use_probability=soft,
        )
        made.extract(images, thieved_classifier=classifier(copy))
        return copy, time.monotonic() - started

    steal(1)
    copy, _ = steal(max(1, round(seconds / steal(1)[1])))
    return (predict(copy, state.test).argmax(1) == state.decisions).float().mean().item()


def main() -> int:
    parser = argparse.ArgumentParser(description="The audit's pool against ART's extraction attacks.")
    parser.add_argument("--queries", type=int, default=1000, help="images that each attack may ask about")
    options = parser.parse_args()
    net = victim()
    rest = data.load("cifar10", seed=0).train.subset(slice(5_000, 5_000 + options.queries + 1000))
    plan = Plan(budgets=(options.queries,), defences=(LABELS,), seeds=1, flip=True)
    state = audit(target(net), rest, lambda _: None, plan, Cache())
    rows = []
    for served in (AS_IS, LABELS):
        (row,) = best(state, served, options.queries)
        name = f"kdsec, {served}: {row['attack']}"
        rows.append({"attack": name, "agreement": f"{row['agreement']:.3f}"})
    for name, soft in (("Knockoff Nets", True), ("Copycat CNN", False)):
        agreement = theirs(name, soft, net, state, state.seconds)
        rows.append({"attack": f"ART, {name}", "agreement": f"{agreement:.3f}"})
    print(f"{options.queries} queries, {state.seconds:.0f} seconds each")
    print(text_table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
