"""The baseline: CIFAR-10 training as tutorials and most papers' repositories write it.

A data set that hands out one PIL image at a time, torchvision's transforms, a ``DataLoader``, contiguous
float32. Net, batch size and optimiser are those that kdsec is measured with. Normalisation is a transform
here, as is usual, so the net must come without its own. The optimiser is called as tutorials call it, without
``fused``, and no ``autocast`` or memory format is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class Cifar(Dataset[tuple[Tensor, int]]):
    """Item by item what ``torchvision.datasets.CIFAR10`` does; the pixels are in memory there too.

    Args:
        images: ``(N, 32, 32, 3)`` uint8.
        labels: N integers.
        mean: of each channel, of pixels in [0, 1].
        std: likewise.
    """

    def __init__(self, images: np.ndarray, labels: list[int], mean: list[float], std: list[float]) -> None:
        self.data, self.targets = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.data[index])
        return self.transform(image), self.targets[index]


def batches(data: Cifar, batch_size: int, workers: int) -> DataLoader[Any]:
    """Shuffled full batches."""
    return DataLoader(data, batch_size, shuffle=True, num_workers=workers, drop_last=True)


def clock(device: torch.device) -> float:
    """Seconds, once a GPU has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def kd_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
    """Hinton's loss in its usual spelling."""
    soft = nn.KLDivLoss(reduction="batchmean")(
        F.log_softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    )
    return soft * (alpha * temperature**2) + F.cross_entropy(student, labels) * (1 - alpha)


def train(
    model: nn.Module,
    loader: DataLoader[Any],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    teacher: nn.Module | None = None,
    temperature: float = 4.0,
    alpha: float = 0.9,
) -> Iterator[float]:
    """One epoch; yields the clock at the start of every step, when its batch has arrived.

    With a ``teacher`` the loss is KD, asked on line; without one it is cross-entropy. Batches go where the
    model is.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=True
    )
    model.train()
    if teacher is not None:
        teacher.eval()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        yield clock(device)
        logits = model(images)
        if teacher is None:
            loss = F.cross_entropy(logits, labels)
        else:
            with torch.no_grad():
                answers = teacher(images)
            loss = kd_loss(logits, answers, labels, temperature, alpha)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def pgd(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, step_size: float, steps: int
) -> Tensor:
    """As in most repositories: float32, random start, the whole batch to the end."""
    changed = (images + torch.empty_like(images).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        changed = changed.detach().requires_grad_()
        loss = F.cross_entropy(model(changed), labels)
        gradient = torch.autograd.grad(loss, changed)[0]
        changed = changed.detach() + step_size * gradient.sign()
        changed = images + (changed - images).clamp(-eps, eps)
        changed = changed.clamp(0, 1)
    return changed.detach()


def train_adversarially(
    model: nn.Module, loader: DataLoader[Any], *, lr: float, eps: float, step_size: float, steps: int = 2
) -> None:
    """One epoch on images attacked anew in every step; the network normalises, images are in [0, 1]."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    for images, labels in loader:
        model.eval()
        attacked = pgd(model, images, labels, eps=eps, step_size=step_size, steps=steps)
        model.train()
        loss = F.cross_entropy(model(attacked), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def mimic_pair(
    body: nn.Module, source: Tensor, target: Tensor, *, budget: float, penalty: float, steps: int
) -> Tensor:
    """Feature mimicry of one pair as its authors' code does it; the best image within the budget."""
    with torch.no_grad():
        wanted = body(target)
    scale = 2 - 1e-6
    origin = torch.atanh((source - 0.5) * scale)
    moved = torch.full_like(source, 1e-6).requires_grad_()
    optimizer = torch.optim.Adadelta([moved], lr=1.0, rho=0.95, eps=1e-5)
    best, lowest = source, float("inf")
    for _ in range(steps):
        images = torch.tanh(moved + origin) / scale + 0.5
        distance = (body(images) - wanted).flatten(1).norm(dim=1).sum()
        spent = (1 - ms_ssim(images, source).sum()) / 2
        loss = distance + penalty * (spent - budget).clamp(min=0) ** 2
        if spent.item() < budget and distance.item() < lowest:
            best, lowest = images.detach(), distance.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best


def ms_ssim(first: Tensor, second: Tensor) -> Tensor:
    """Multi-scale structural similarity in its usual spelling, with a Gaussian window as a convolution."""
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    total = torch.ones(first.shape[:2])
    for level, weight in enumerate(weights):
        size = min(11, first.shape[-1])
        places = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        line = torch.exp(-0.5 * (places / (1.5 * size / 11)) ** 2)
        window = (line[:, None] * line[None]) / line.sum() ** 2
        window = window.expand(first.shape[1], 1, size, size)

        def blur(images: Tensor, window: Tensor = window) -> Tensor:
            return F.conv2d(images, window, groups=images.shape[1])

        a, b = blur(first), blur(second)
        va, vb, cov = (
            blur(first * first) - a * a,
            blur(second * second) - b * b,
            blur(first * second) - a * b,
        )
        structure = (2 * cov + 0.03**2) / (va + vb + 0.03**2)
        luminance = (2 * a * b + 0.01**2) / (a * a + b * b + 0.01**2)
        kind = structure if level < 4 else structure * luminance
        total = total * kind.mean((2, 3)).clamp(min=1e-6) ** weight
        first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
    return total.mean(1)
