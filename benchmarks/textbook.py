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

    With a ``teacher`` the loss is KD, asked on line; without one it is cross-entropy.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=True
    )
    model.train()
    if teacher is not None:
        teacher.eval()
    for images, labels in loader:
        yield time.perf_counter()
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
