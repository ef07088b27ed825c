"""The one training loop of the book, exact evaluation, and how a network is asked without being changed.

Everything that differs between a teacher, a student, an attack and a defended model is in the *loss*: a
callable ``loss(model, batch) -> scalar``. Optional attributes of a loss: ``needs_labels`` (True where it
learns nothing from images without labels) and ``advice`` (what to lower when training explodes).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.data import UNLABELLED, Augment, Batch, ImageSet, Loader
from kdsec.data.imageset import to_float
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice, check_number
from kdsec.logits import as_logits, check_values
from kdsec.optim import Muon

Item = TypeVar("Item")
Loss = Callable[[nn.Module, Batch], Tensor]

OPTIMIZERS = ("sgd", "adam", "muon")
SCHEDULES = ("one-cycle", "linear", "step", "constant")
PRECISIONS = ("auto", "float32", "bf16", "fp16")
PROGRESS = ("bar", "log", "off")
CHECK_EVERY = 50  # steps between looks at the loss; looking forces a GPU to finish its work


@dataclass(frozen=True)
class Recipe:
    """How to train: everything but the model, the data and the loss.

    Attributes:
        epochs: passes over the data.
        steps: training steps in all, of whatever number of images; None: those of ``epochs`` passes.
        batch_size: images a step.
        optimizer: ``sgd`` (Nesterov momentum), ``adam`` or ``muon`` (see ``kdsec.optim``).
        lr: peak learning rate.
        other_lr: with ``muon``: peak rate of Adam, which then trains what Muon does not, in place of SGD.
        momentum: of SGD, in [0, 1).
        weight_decay: L2 penalty on every parameter, as in the papers' code (``muon``: on those it leaves to
            SGD).
        schedule: ``one-cycle`` (warm up to ``lr``, anneal to zero), ``linear`` (from ``lr`` to zero),
            ``step`` or ``constant``.
        milestones: epochs, of ``epochs`` in all, at whose start ``step`` multiplies the rate by ``gamma``.
        gamma: see ``milestones``.
        grad_clip: largest gradient norm (None: no clipping).
        augment: random changes to each image.
        precision: ``float32``, or autocast to ``bf16``/``fp16``; ``auto`` takes bf16 where the processor
            computes in it, fp16 on older GPUs, float32 elsewhere.
        compile: run the model through ``torch.compile``.

    Raises:
        KdsecError: a value that no training can use.
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
    steps: int | None = None
    other_lr: float | None = None

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, PRECISIONS)
        check_number("epochs", self.epochs, least=1, whole=True)
        if self.steps is not None:
            check_number("steps", self.steps, least=1, whole=True)
        check_number("batch_size", self.batch_size, least=2, whole=True)
        check_number("lr", self.lr, above=0)
        if self.other_lr is not None:
            check_number("other_lr", self.other_lr, above=0)
            if self.optimizer != "muon":
                raise KdsecError(
                    f"other_lr={self.other_lr:g} belongs to optimizer muon, not {self.optimizer}"
                )
        check_number("momentum", self.momentum, least=0, below=1)
        check_number("weight_decay", self.weight_decay, least=0)
        check_number("gamma", self.gamma, above=0)
        for milestone in self.milestones:
            check_number("milestones", milestone, least=1, whole=True)
        if self.grad_clip is not None:
            check_number("grad_clip", self.grad_clip, above=0)
        if not isinstance(self.augment, Augment):
            raise KdsecError(f"augment={self.augment!r} must be an Augment, for example Augment(crop=4)")

    def total_steps(self, images: int) -> int:
        """Number of training steps on a set of so many images."""
        return self.steps or self.epochs * max(1, images // self.batch_size)

    def batches(self, data: ImageSet, seed: int) -> Iterator[Batch]:
        """The batches of a training on ``data``; a shorter training sees the first of a longer one's."""
        loader = Loader(data, self.batch_size, augment=self.augment, seed=seed)
        endless = itertools.chain.from_iterable(itertools.repeat(loader))
        return itertools.islice(endless, self.total_steps(len(data)))


class Diverged(KdsecError):
    """A training whose loss or weights became infinite or not a number."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with the labels, softened by ``smoothing`` in [0, 1) (Szegedy et al. 2016)."""

    smoothing: float = 0.0
    needs_labels = True

    def __post_init__(self) -> None:
        check_number("smoothing", self.smoothing, least=0, below=1)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model(batch.images), batch.labels, self.smoothing)


@checked(values=False)
def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the labelled images of a batch; zero, with zero gradient, if there are none.

    Args:
        logits: ``(B, K)``.
        labels: ``(B,)`` in 0..K-1 or ``UNLABELLED``.
        smoothing: label smoothing in [0, 1).
    """
    logits = as_logits(logits, len(labels), values=False)
    # A GPU is not made to wait; there the driver refuses such labels.
    if labels.device.type == "cpu" and len(labels) and int(labels.max()) >= logits.shape[1]:
        raise KdsecError(
            f"label {int(labels.max())} of a network with {logits.shape[1]} classes; build it for more"
        )
    total = F.cross_entropy(
        logits.float(), labels, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="sum"
    )
    return total / (labels != UNLABELLED).sum().clamp(min=1)


@checked
def fit(
    model: nn.Module,
    data: ImageSet,
    recipe: Recipe,
    loss: Loss | None = None,
    *,
    seed: int = 0,
    label: str = "training",
) -> list[float]:
    """Train ``model`` in place, leave it in eval mode, and return the mean training loss of each epoch.

    The last step is the result. Same seed and machine give the same weights, to the bit on a CPU.

    Args:
        model: on the same device as ``data``.
        data: the training images; nothing else is looked at.
        recipe: how.
        loss: ``loss(model, batch) -> scalar``; cross-entropy with the labels if not given.
        seed: order of the images, augmentation and dropout; 0 to 2**32 - 1.
        label: name shown beside the progress bar.

    Raises:
        KdsecError: the loss cannot learn from this data; as ``Diverged``, the loss or the weights became
            infinite or not a number.
    """
    loss = loss or CrossEntropy()
    _check_task(data, loss, seed)
    device = data.images.device
    steps, batches = recipe.total_steps(len(data)), recipe.batches(data, seed)
    epoch = max(1, len(data) // recipe.batch_size)
    model.to(memory_format=torch.channels_last).train()
    network: Any = torch.compile(model) if recipe.compile else model
    optimizer = _optimizer(model, recipe, autocast_dtype(recipe.precision, device) or torch.float32)
    scheduler = _scheduler(optimizer, recipe, steps)
    cast = autocast(recipe.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=cast["dtype"] is torch.float16)
    losses = torch.zeros(steps, device=device)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for step, batch in enumerate(track(batches, steps, label)):
            with torch.autocast(**cast):
                value = loss(network, batch)
            if step == 0:
                _check_first(value, data, loss)
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
                _check_finite(losses[: step + 1], epoch, recipe, loss)
    _check_weights(model, _advice(recipe, loss))
    model.eval()
    return [part.mean().item() for part in losses.split(epoch)]


def _check_task(data: ImageSet, loss: Loss, seed: int) -> None:
    """Refuse a loss that has nothing to learn from ``data``."""
    check_number("seed", seed, least=0, below=2**32, whole=True)
    if not isinstance(data, ImageSet):
        raise KdsecError(
            f"a {type(data).__name__} is not an ImageSet; fit needs ImageSet(images, labels, ...)"
        )
    if not callable(loss):
        raise KdsecError(f"loss={loss!r:.60} must be a function loss(model, batch), e.g. KD(teacher)")
    if getattr(loss, "needs_labels", False):
        _check_labelled(data, loss)
    teacher = getattr(loss, "teacher", None)
    if isinstance(teacher, Tensor) and len(teacher) != len(data):
        raise KdsecError(
            f"the teacher's cached logits are for {len(teacher)} images and {data.name} has {len(data)}; "
            "make them with teacher_labels(teacher, data) for this very set"
        )


def _check_first(value: Tensor, data: ImageSet, loss: Loss) -> None:
    """Refuse a loss whose first value is no number to minimise, or is zero because there are no labels."""
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        got = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise KdsecError(f"the loss must return one number with a gradient (), and returned {got}")
    if bool((data.labels == UNLABELLED).all()) and not value:
        _check_labelled(data, loss)


def _check_labelled(data: ImageSet, loss: Loss) -> None:
    if bool((data.labels == UNLABELLED).all()):
        raise KdsecError(
            f"{data.name} has no labels and the loss {getattr(loss, '__name__', type(loss).__name__)} learns "
            "from labels; give some, or distil from a teacher (KD with alpha above 0, HardLabels)"
        )


def autocast(precision: str, device: torch.device) -> dict[str, Any]:
    """Arguments of ``torch.autocast`` for a precision as in ``Recipe``."""
    dtype = autocast_dtype(check_choice("precision", precision, PRECISIONS), device)
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
        return torch.bfloat16 if bf16_pays() else None
    if precision == "fp16" and device.type != "cuda":
        raise KdsecError("precision fp16 needs a GPU; on a CPU use auto, bf16 or float32")
    return {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


@functools.cache
def bf16_pays(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this processor trains faster in bf16 than in float32.

    Intel's does with AMX only: without it (before Sapphire Rapids, or hidden by a virtual machine), a step of
    ``airbench-64`` took 4.1 s in bf16 and 2.6 s in float32.
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    try:
        described = pathlib.Path(cpuinfo).read_text()
    except OSError:
        return True
    return "GenuineIntel" not in described or "amx_bf16" in described


def _optimizer(model: nn.Module, recipe: Recipe, dtype: torch.dtype) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "muon":
        return Muon(model, recipe.lr, dtype=dtype, other_lr=recipe.other_lr, **settings)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    nesterov = recipe.momentum > 0
    return torch.optim.SGD(model.parameters(), recipe.lr, nesterov=nesterov, fused=True, **settings)


def _scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    schedulers = torch.optim.lr_scheduler
    if recipe.schedule == "one-cycle":
        # One step more than is taken, since the scheduler is also advanced after the last step.
        peaks = [group["lr"] for group in optimizer.param_groups]
        return schedulers.OneCycleLR(
            optimizer, peaks, total_steps=steps + 1, pct_start=0.3, cycle_momentum=False
        )
    if recipe.schedule == "linear":
        return schedulers.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
    milestones = recipe.milestones if recipe.schedule == "step" else ()
    at = [round(steps * epoch / recipe.epochs) for epoch in milestones]
    return schedulers.MultiStepLR(optimizer, at, recipe.gamma)


def _advice(recipe: Recipe, loss: Loss) -> str:
    """What to lower; a loss that can explode by itself knows better."""
    clip = "off" if recipe.grad_clip is None else f"{recipe.grad_clip:g}"
    return getattr(loss, "advice", f"lower lr (now {recipe.lr:g}) or set grad_clip (now {clip})")


def _check_finite(losses: Tensor, steps_per_epoch: int, recipe: Recipe, loss: Loss) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        place = f"step {step + 1} (epoch {step // steps_per_epoch + 1})"
        raise Diverged(f"the loss became {losses[step].item()} at {place}; {_advice(recipe, loss)}")


def _check_weights(model: nn.Module, advice: str) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise Diverged(f"training left {name} with values that are infinite or not a number; {advice}")


# Asking


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode inside the block; afterwards every layer is in the mode that *it* was in.

    ``model.train(was_training)`` would not do: the parts of a network may be in different modes.
    """
    modes = [(layer, layer.training) for layer in model.modules()]
    if any(mode for _, mode in modes):
        model.eval()
    try:
        yield model
    finally:
        for layer, mode in modes:
            if layer.training != mode:  # setting an attribute of a layer is slow
                layer.training = mode


@checked
@torch.no_grad()
def ask(model: nn.Module, images: Tensor) -> Tensor:
    """Logits ``(B, K)`` of a network that is not being trained: in eval mode, left as it was.

    Every loss, attack and detector that only wants a network's answer comes here.

    Args:
        model: any network from images to logits.
        images: float ``(B, C, H, W)`` in [0, 1].

    Raises:
        KdsecError: what comes back is not logits; see ``kdsec.logits.as_logits``.
    """
    images = to_float(images)
    with evaluating(model):
        return as_logits(model(images), len(images))


@checked
def predict(model: nn.Module, images: Tensor | ImageSet, batch_size: int = 250) -> Tensor:
    """Logits ``(N, K)`` in eval mode and float32; every layer is put back into the mode it was in.

    Args:
        model: any network from images to logits.
        images: an ``ImageSet`` or ``(N, C, H, W)`` in [0, 1].
        batch_size: images at a time; on a CPU, batches that stay in the cache are several times faster.

    Raises:
        KdsecError: what comes back is not logits; see ``kdsec.logits.as_logits``.
    """
    return check_values(_in_parts(ask, model, images, batch_size))


@checked
def outputs(network: nn.Module, images: Tensor | ImageSet, batch_size: int = 250) -> Tensor:
    """As ``predict``, for a network that returns something else than logits: a purifier's images."""

    @torch.no_grad()
    def returned(network: nn.Module, images: Tensor) -> Tensor:
        with evaluating(network):
            output: Tensor = network(images)
        if not isinstance(output, Tensor) or len(output) != len(images):
            raise KdsecError(f"the network must return a tensor, a row for each of {len(images)} images")
        return output

    return _in_parts(returned, network, images, batch_size)


def _in_parts(
    function: Callable[[nn.Module, Tensor], Tensor], model: nn.Module, images: Tensor | ImageSet, size: int
) -> Tensor:
    pixels = images.images if isinstance(images, ImageSet) else images
    parts = (to_float(part).contiguous(memory_format=torch.channels_last) for part in pixels.split(size))
    return torch.cat([function(model, part).float() for part in parts])


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


@checked
def evaluate(model: nn.Module, data: ImageSet) -> Score:
    """Exact accuracy of ``model`` on ``data``.

    Raises:
        KdsecError: no images, an image without a label, or a model with other classes.
    """
    unknown = int((data.labels == UNLABELLED).sum())
    if unknown or not len(data):
        raise KdsecError(
            f"{unknown} of the {len(data)} images of {data.name} have no label; accuracy needs at least one "
            "image and a label for each (to compare with a teacher instead, take its decisions as labels)"
        )
    logits = predict(model, data)
    if logits.shape[1] != data.num_classes:
        raise KdsecError(
            f"the model has {logits.shape[1]} classes and {data.name} {data.num_classes}; build it for these"
        )
    return Score(int((logits.argmax(1) == data.labels).sum()), len(data))


# Progress


def progress_style() -> str:
    """``KDSEC_PROGRESS`` if set (bar, log or off); else a bar in a terminal or notebook, lines elsewhere."""
    if asked := os.environ.get("KDSEC_PROGRESS"):
        return check_choice("KDSEC_PROGRESS", asked, PROGRESS)
    return "bar" if sys.stderr.isatty() or "ipykernel" in sys.modules else "log"


def track(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Yield ``items`` and show on standard error how many of ``total`` are done.

    The bar is plain text that wipes itself: widgets would be stored in the executed notebook. A log gets at
    most ten lines.
    """
    style, start, tenth = progress_style(), time.monotonic(), 0
    if style == "bar":
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label, leave=False, file=sys.stderr)
        return
    for done, item in enumerate(items, 1):
        yield item
        if style == "log" and done * 10 // max(total, 1) > tenth:
            tenth = done * 10 // max(total, 1)
            seconds = time.monotonic() - start
            print(f"{label}: {done}/{total} ({seconds:.0f} s)", file=sys.stderr, flush=True)
