"""``python -m benchmarks.art [--queries N] [--seeds N]``: the audit's pool against ART's extraction attacks.

One network in plain PyTorch is copied with equal queries and equal copies. Each of ART's attacks
(``make art``) trains twice: for its own ten epochs, and for as long as our whole pool takes with all ways of
serving, the choice of attack and temperature included. Seconds are of the processor. Knockoff Nets get
probabilities, Copycat CNN labels. Our copies train under random crops and mirroring; ART's attacks have none.
Needs CIFAR-10.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
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

KNOCKOFF, COPYCAT = "Knockoff Nets", "Copycat CNN"
EPOCHS = 10  # of ART's attacks, if not said otherwise


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


def ours(state: Audit, queries: int, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each way of serving: the copy that the thief chooses."""
    for served in (AS_IS, LABELS):
        chosen = best(state, served, queries)
        names = ", ".join(dict.fromkeys(each["attack"] for each in chosen))
        yield row(f"kdsec, {served}: {names}", [(each["agreement"], seconds) for each in chosen])


def classifier(model: nn.Module, shape: tuple[int, int, int]) -> Any:
    """``model`` as ART wants it; copies are trained by Adam."""
    from art.estimators.classification import PyTorchClassifier

    rest: dict[str, Any] = {"input_shape": shape, "nb_classes": 10, "device_type": "cpu"}
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], 1e-3)
    return PyTorchClassifier(model, SoftCrossEntropy(), optimizer=optimizer, clip_values=(0, 1), **rest)


def steal(name: str, net: nn.Module, state: Audit, seed: int, epochs: int) -> tuple[float, float]:
    """Agreement of ART's attack ``name`` on the audit's test images, and the seconds that it took."""
    from art.attacks.extraction import CopycatCNN, KnockoffNets

    images, shape = state.thief.float_images().numpy(), state.thief.shape
    np.random.seed(seed)
    torch.manual_seed(seed)
    copy = copy_network(None, state.thief, seed)
    made = {KNOCKOFF: KnockoffNets, COPYCAT: CopycatCNN}[name](
        classifier(nn.Sequential(net, nn.Softmax(1)), shape),
        batch_size_fit=64,
        batch_size_query=250,
        nb_epochs=epochs,
        nb_stolen=len(images),
        use_probability=name == KNOCKOFF,
    )
    thieved, started = classifier(copy, shape), time.process_time()
    made.extract(images, thieved_classifier=thieved)
    seconds = time.process_time() - started
    return (predict(copy, state.test).argmax(1) == state.decisions).float().mean().item(), seconds


def theirs(name: str, net: nn.Module, state: Audit, seconds: float) -> Iterator[dict[str, Any]]:
    """Two rows of the table: by ART's own number of epochs, and by as many as ``seconds`` allow."""
    seeds = range(state.plan.seeds)
    short = [steal(name, net, state, seed, EPOCHS) for seed in seeds]
    yield row(f"ART, {name}, {EPOCHS} epochs", short)
    epochs = max(1, round(EPOCHS * seconds / statistics.mean(took for _, took in short)))
    yield row(f"ART, {name}, {epochs} epochs", [steal(name, net, state, seed, epochs) for seed in seeds])


def row(name: str, found: Sequence[tuple[float, float]]) -> dict[str, Any]:
    agreement, seconds = zip(*found, strict=True)
    values = " ".join(f"{each:.3f}" for each in agreement)
    mean, took = statistics.mean(agreement), statistics.mean(seconds)
    return {"attack": name, "agreement": f"{mean:.3f}", "by seed": values, "seconds": f"{took:.0f}"}


def main() -> int:
    parser = argparse.ArgumentParser(description="The audit's pool against ART's extraction attacks.")
    parser.add_argument("--queries", type=int, default=1000, help="images that each attack may ask about")
    parser.add_argument("--seeds", type=int, default=3, help="how many copies of each attack")
    options = parser.parse_args()
    if not find_spec("art"):
        raise SystemExit("ART is not installed; run: make art")
    net = victim()
    rest = data.load("cifar10", seed=0).train.subset(slice(5_000, 5_000 + options.queries + 1000))
    plan = Plan(budgets=(options.queries,), defences=(LABELS,), seeds=options.seeds, flip=True)
    started = time.process_time()
    # A new cache: what an earlier run has trained would cost no time.
    with tempfile.TemporaryDirectory() as folder:
        state = audit(target(net), rest, lambda _: None, plan, Cache(pathlib.Path(folder)))
    seconds = (time.process_time() - started) / options.seeds
    rows = []
    for each in itertools.chain(
        ours(state, options.queries, seconds),
        *(theirs(name, net, state, seconds) for name in (KNOCKOFF, COPYCAT)),
    ):
        print(each["attack"], each["agreement"], flush=True)  # the whole takes long
        rows.append(each)
    print(f"{options.queries} queries, {len(state.test)} test images")
    print(text_table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
