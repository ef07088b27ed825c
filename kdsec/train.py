"""The one training loop of the book, and exact evaluation.

Everything that differs between a teacher, a student, a thief and a defended model is in the *loss*: a
callable ``loss(model, batch) -> scalar``. The loop knows nothing else about what it trains.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.answers import Answers
from kdsec.data import UNLABELLED, Augment, Batch, ImageSet, Loader
from kdsec.data.imageset import to_float
from kdsec.errors import KdsecError, choose
from kdsec.muon import Muon
from kdsec.progress import track

Loss = Callable[[nn.Module, Batch], Tensor]

OPTIMIZERS = ("sgd", "adam", "muon")
SCHEDULES = ("one-cycle", "step", "constant")
PRECISIONS = ("auto", "float32", "bf16", "fp16")
CHECK_EVERY = 50  # steps between looks at the loss; looking forces a GPU to finish its work


@dataclass(frozen=True)
class Recipe:
    """How to train: everything but the model, the data and the loss.

    Attributes:
        epochs: passes over the data.
        batch_size: images a step.
        optimizer: ``sgd`` (Nesterov momentum), ``adam`` or ``muon`` (see ``kdsec.muon``).
        lr: peak learning rate.
        momentum: of SGD.
        weight_decay: L2 penalty on every parameter, as in the papers' code (``muon``: on those it leaves to
            SGD).
        schedule: ``one-cycle`` (warm up to ``lr``, anneal to zero), ``step`` or ``constant``.
        milestones: epochs at whose start ``step`` multiplies the rate by ``gamma``.
        gamma: see ``milestones``.
        grad_clip: largest gradient norm (None: no clipping).
        augment: random changes to each image.
        precision: ``float32``, or autocast to ``bf16``/``fp16``; ``auto`` takes bf16 where the processor
            computes in it, fp16 on older GPUs, float32 elsewhere.
        compile: run the model through ``torch.compile``.
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    grad_clip: float | None = None
    augment: Augment = field(default_factory=Augment)
    precision: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        choose("optimizer", self.optimizer, OPTIMIZERS)
        choose("schedule", self.schedule, SCHEDULES)
        choose("precision", self.precision, PRECISIONS)
        if self.epochs < 1 or not self.lr > 0:
            raise KdsecError(
                f"epochs={self.epochs}, lr={self.lr}: give at least 1 epoch and a learning rate above 0"
            )


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the labels, softened by ``smoothing`` (Szegedy et al. 2016)."""

    smoothing: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model(batch.images), batch.labels, self.smoothing)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the labelled images of a batch; zero, with zero gradient, if there are none.

    Args:
        logits: ``(B, K)``.
        labels: ``(B,)`` in 0..K-1 or ``UNLABELLED``.
        smoothing: label smoothing in [0, 1).
    """
    total = F.cross_entropy(
        logits.float(), labels, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="sum"
    )
    return total / (labels != UNLABELLED).sum().clamp(min=1)


def fit(
    model: nn.Module,
    data: ImageSet,
    recipe: Recipe,
    loss: Loss | None = None,
    *,
    seed: int = 0,
    label: str = "training",
    answers: Answers | None = None,
) -> list[float]:
    """Train ``model`` in place and leave it in eval mode; the last epoch is the result.

    Same seed and same machine give the same weights to the bit on a CPU.

    Args:
        model: on the same device as ``data``.
        data: the training images; nothing else is looked at.
        recipe: how.
        loss: ``loss(model, batch) -> scalar``; cross-entropy with the labels if not given. Its attribute
            ``advice``, if it has one, ends the message when it explodes.
        seed: order of the images, augmentation and dropout.
        label: name shown beside the progress bar.
        answers: of teachers to students before this one, to be recalled where the batches are the same.

    Returns:
        Mean training loss of each epoch.

    Raises:
        KdsecError: the loss became infinite or not a number; names the step.
    """
    loss = loss or CrossEntropy()
    device = data.images.device
    loader = Loader(data, recipe.batch_size, augment=recipe.augment, seed=seed)
    steps = recipe.epochs * len(loader)
    model.to(memory_format=torch.channels_last).train()
    network: Any = torch.compile(model) if recipe.compile else model
    optimizer = _optimizer(model, recipe, autocast_dtype(recipe.precision, device) or torch.float32)
    scheduler = _scheduler(optimizer, recipe, steps)
    cast = autocast(recipe.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=cast["dtype"] is torch.float16)
    losses = torch.zeros(steps, device=device)
    stream = answers and answers.stream(data.images, loader.batch_size, recipe.augment, seed, str(cast))

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        batches = (batch for _ in range(recipe.epochs) for batch in loader)
        for step, batch in enumerate(track(batches, steps, label)):
            if stream:
                batch = batch._replace(ask=partial(stream.ask, images=batch.images, number=step))
            with torch.autocast(**cast):
                value = loss(network, batch)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(value).backward()
            if recipe.grad_clip is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            losses[step] = value.detach()
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
                _check_finite(losses[: step + 1], len(loader), recipe, loss)
    model.eval()
    return losses.view(recipe.epochs, -1).mean(1).tolist()


def autocast(precision: str, device: torch.device) -> dict[str, Any]:
    """Arguments of ``torch.autocast`` for a precision as in ``Recipe``."""
    dtype = autocast_dtype(choose("precision", precision, PRECISIONS), device)
    return {"device_type": device.type, "dtype": dtype or torch.bfloat16, "enabled": dtype is not None}


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type that ``precision`` means on ``device``; None is plain float32.

    Raises:
        KdsecError: fp16 on a CPU, whose gradients would underflow without a scaler.
    """
    if precision == "auto":
        if device.type == "cuda":
            return (
                torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
            )
        return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None
    if precision == "fp16" and device.type != "cuda":
        raise KdsecError("precision fp16 needs a GPU; on a CPU use auto, bf16 or float32")
    return {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _optimizer(model: nn.Module, recipe: Recipe, dtype: torch.dtype) -> torch.optim.Optimizer:
    if recipe.optimizer == "muon":
        return Muon(model, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, dtype=dtype)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(
        model.parameters(),
        recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
        fused=True,
    )


def _scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    schedulers = torch.optim.lr_scheduler
    if recipe.schedule == "one-cycle":
        # One step more than is taken, since the scheduler is also advanced after the last step.
        return schedulers.OneCycleLR(
            optimizer, recipe.lr, total_steps=steps + 1, pct_start=0.3, cycle_momentum=False
        )
    milestones = recipe.milestones if recipe.schedule == "step" else ()
    per_epoch = steps // recipe.epochs
    return schedulers.MultiStepLR(optimizer, [epoch * per_epoch for epoch in milestones], recipe.gamma)


def _check_finite(losses: Tensor, steps_per_epoch: int, recipe: Recipe, loss: Loss) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        clip = "off" if recipe.grad_clip is None else f"{recipe.grad_clip:g}"
        # A loss that can explode by itself knows better what to lower.
        advice = getattr(loss, "advice", f"lower lr (now {recipe.lr:g}) or set grad_clip (now {clip})")
        epoch = step // steps_per_epoch + 1
        raise KdsecError(
            f"the loss became {losses[step].item()} at step {step + 1} (epoch {epoch}); {advice}"
        )


class Score(NamedTuple):
    """An exact accuracy: so many of so many."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def standard_error(self) -> float:
        """Binomial standard error of the accuracy: how much another test set of this size would move it."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.total)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode inside the block; afterwards every layer is in the mode that *it* was in.

    ``model.train(was_training)`` would not do: in a purifier that trains in front of a classifier that does
    not, the two parts are in different modes.
    """
    modes = [(layer, layer.training) for layer in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for layer, mode in modes:
            layer.training = mode


@torch.no_grad()
def predict(model: nn.Module, images: Tensor | ImageSet, batch_size: int = 250) -> Tensor:
    """Logits ``(N, K)`` in eval mode and float32; the model is put back into the mode it was in.

    Args:
        model: any network from images to logits.
        images: an ``ImageSet`` or ``(N, C, H, W)`` in [0, 1].
        batch_size: images at a time; on a CPU, batches that stay in the cache are several times faster.
    """
    pixels = images.images if isinstance(images, ImageSet) else images
    with evaluating(model):
        logits = [
            model(to_float(chunk).contiguous(memory_format=torch.channels_last)).float()
            for chunk in pixels.split(batch_size)
        ]
    return torch.cat(logits)


def evaluate(model: nn.Module, data: ImageSet) -> Score:
    """Exact accuracy of ``model`` on ``data``."""
    correct = predict(model, data).argmax(1) == data.labels
    return Score(int(correct.sum()), len(data))
