"""Fast data-free extraction: images from what batch normalisation remembers (FastDFKD).

Fang et al., "Up to 100x Faster Data-Free Knowledge Distillation", AAAI 2022, arXiv 2112.06253.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.attacks.data_free import (
    Generator,
    anneal,
    check_finite,
    check_pair,
    check_settings,
    disagreement,
    seeded,
    sgd,
    step,
)
from kdsec.data import UNLABELLED, Augment, ImageSet, Loader
from kdsec.data.imageset import to_bytes
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_number
from kdsec.train import autocast, evaluating, track


class Statistics:
    r"""How far the images now in the network are from those its batch normalisation was trained on.

    .. math:: \sum_l \|\mu_l - \hat\mu_l\|_2 + \|\sigma_l^2 - \hat\sigma_l^2\|_2

    over the layers l, between the stored means and variances and those of the batch (blended with the batches
    before, as one small batch cannot show every class). Use in a ``with`` block: it hooks into the layers,
    and looks wherever gradients are on.

    Args:
        network: with batch normalisation that stores statistics, or an oracle of one.
        momentum: share of the earlier batches in the blend, in [0, 1).

    Raises:
        KdsecError: there is no such layer.
    """

    def __init__(self, network: nn.Module, momentum: float = 0.9) -> None:
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
        self.layers: list[Any] = [
            layer
            for layer in network.modules()
            if isinstance(layer, kinds) and layer.running_mean is not None
        ]
        if not self.layers:
            raise KdsecError(
                "this teacher has no batch normalisation whose statistics could be read; use DFAD, which "
                "needs none, or set statistics_weight=0"
            )
        self.momentum = momentum
        self.now: list[tuple[Tensor, Tensor] | None] = [None] * len(self.layers)
        self.before: list[tuple[Tensor, Tensor] | None] = [None] * len(self.layers)
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Statistics:
        for index, layer in enumerate(self.layers):
            self.hooks.append(layer.register_forward_pre_hook(partial(self._look, index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self.hooks:
            self.hooks.pop().remove()

    def _look(self, index: int, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        if not torch.is_grad_enabled():
            return  # a question that only wants the answer
        # One row a pixel: a view of channels-last features, and several times faster than torch.var_mean.
        rows = inputs[0].float().movedim(1, -1).flatten(0, -2)
        mean = rows.mean(0)
        variance = (rows - mean).square().mean(0)
        self.now[index] = self._blend(self.before[index], (mean, variance))

    def _blend(
        self, before: tuple[Tensor, Tensor] | None, now: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        if before is None:
            return now
        mean, variance = (torch.lerp(new, old, self.momentum) for new, old in zip(now, before, strict=True))
        return mean, variance

    def distance(self) -> Tensor:
        """Of the batch that went through the network last; differentiable."""
        total = torch.zeros((), device=self.layers[0].running_mean.device)
        for layer, now in zip(self.layers, self.now, strict=True):
            if now is None:
                raise KdsecError("no batch has gone through the network yet; ask it about some images first")
            mean, variance = now
            total = total + (mean - layer.running_mean).norm() + (variance - layer.running_var).norm()
        return total

    def remember(self) -> None:
        """Let the batch count among those before."""
        self.before = [None if now is None else (now[0].detach(), now[1].detach()) for now in self.now]


@checked
@dataclass(frozen=True)
class FastDFKD:
    r"""Draw a batch, keep it, learn from all that was kept.

    In each round a batch of images is found by a few steps down

    .. math:: \mathcal{L} = w_{bn}\,\text{(statistics)} + w_{oh}\,\mathrm{CE}(z_T, c)
        - w_{adv}\,\mathbb{1}[\arg\max z_S = \arg\max z_T]\, D(z_S, z_T)

    on the generator's weights and on the noise: like the training images in their statistics, of a drawn
    class c, and hard for the student. That few steps suffice is because the generator starts where earlier
    rounds have led it: its starting point moves along the summed gradients of the steps (first-order MAML).
    The batch joins a pool of bytes; the student then takes many steps on the pool. The defaults are those of
    the authors' code for CIFAR with five steps ("Fast-5").

    Attributes:
        rounds, warmup: how many, and during how many first ones the pool is filled and nothing learnt.
        student_steps, generator_steps: in each round.
        batch_size: images of a round, and of a student's step.
        target: what the student learns and D measures, see ``kdsec.attacks.data_free.disagreement``.
        temperature: of ``kl`` for the student; D takes 1.
        student_lr: peak rate of SGD with momentum 0.9, annealed to zero.
        generator_lr, noise_lr: rates of Adam within a round; the starting point's is ``generator_steps``
            times the first.
        statistics_weight, class_weight, adversarial_weight: the three w.
        momentum: see ``Statistics``.
        meta: whether rounds begin at the learnt starting point; if not, where the last one ended.
        weight_decay: of the student.
        latent, width: of the generator.
        augment: of the student's images.
        precision: ``float32`` or ``bf16``.
        compile: run generator, teacher and student through ``torch.compile`` while drawing. The same compiled
            step serves all rounds.
    """

    rounds: int = 220
    warmup: int = 20
    student_steps: int = 400
    generator_steps: int = 5
    batch_size: int = 256
    target: str = "kl"
    temperature: float = 20.0
    student_lr: float = 0.2
    generator_lr: float = 3e-3
    noise_lr: float = 0.01
    statistics_weight: float = 10.0
    class_weight: float = 0.5
    adversarial_weight: float = 1.33
    momentum: float = 0.9
    meta: bool = True
    weight_decay: float = 1e-4
    latent: int = 256
    width: int = 128
    augment: Augment = field(default_factory=lambda: Augment(crop=4, flip=True))
    precision: str = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        check_settings(self, rounds=1, student_steps=1, generator_steps=1, latent=1, batch_size=2, width=2)
        check_number("momentum", self.momentum, least=0, below=1)
        check_number("warmup", self.warmup, least=0, below=self.rounds, whole=True)

    @checked
    def __call__(
        self, student: nn.Module, teacher: nn.Module, shape: Sequence[int], *, seed: int = 0
    ) -> Tensor:
        """Train ``student`` in place, leave it in eval mode, and return the pool of images it learnt from.

        Args:
            student: fresh, of as many classes as the teacher.
            teacher: images to logits; left as it was. Gradients must reach its input, and its batch
                normalisation must be readable.
            shape: (C, H, W) of an image. All that the attacker knows about the data.
            seed: of everything random.

        Returns:
            Every image drawn, ``(rounds * batch_size, C, H, W)`` bytes, the first ones first.

        Raises:
            KdsecError: as ``DFAD``, and for a teacher without batch normalisation.
        """
        device, classes = check_pair(student, teacher, shape)
        statistics = Statistics(teacher, self.momentum) if self.statistics_weight else None
        pool = torch.empty(0, *shape, dtype=torch.uint8, device=device)
        with (
            seeded(seed, device),
            evaluating(teacher),
            statistics or contextlib.nullcontext(),
            torch.autocast(**autocast(self.precision, device)),
        ):
            generator = Generator(shape, self.latent, self.width).to(device)
            drawing = GeneratorTrainer(self, generator, student, teacher, classes, statistics)
            learner = sgd(student, self.student_lr, self.weight_decay)
            rate = anneal(learner, self.student_steps * (self.rounds - self.warmup))
            for index in track(range(self.rounds), self.rounds, "data-free"):
                student.eval()
                pool = torch.cat([pool, drawing.draw(adversary=index >= self.warmup)])
                if index < self.warmup:
                    continue
                student.train()
                for images in self._batches(pool, seed + index):
                    with torch.no_grad():
                        answers = teacher(images)
                    loss = disagreement(student(images), answers, self.target, self.temperature).mean()
                    step(learner, loss)
                    rate.step()
                check_finite(loss, index, self.rounds, self.student_lr, self.generator_lr)
        student.eval()
        return pool

    def _batches(self, pool: Tensor, seed: int) -> Iterator[Tensor]:
        """The student's images for one round, augmented; over the pool as often as it takes."""
        unlabelled = torch.full((len(pool),), UNLABELLED, device=pool.device)
        data = ImageSet(pool, unlabelled, ("?",), "drawn images")
        loader = Loader(data, self.batch_size, augment=self.augment, seed=seed)
        epochs = itertools.chain.from_iterable(itertools.repeat(loader))
        for batch in itertools.islice(epochs, self.student_steps):
            yield batch.images


class GeneratorTrainer:
    """The generator's side of ``FastDFKD``: its starting point, its working copy, and how both improve."""

    def __init__(
        self,
        plan: FastDFKD,
        start: Generator,
        student: nn.Module,
        teacher: nn.Module,
        classes: int,
        statistics: Statistics | None,
    ) -> None:
        self.plan, self.start, self.generator = plan, start, copy.deepcopy(start)
        self.student, self.teacher, self.classes, self.statistics = student, teacher, classes, statistics
        rate = plan.generator_steps * plan.generator_lr
        self.start_optimizer = torch.optim.Adam(start.parameters(), rate, betas=(0.5, 0.999))
        self.cost: Any = torch.compile(self._cost) if plan.compile else self._cost

    def draw(self, adversary: bool) -> Tensor:
        """One round's images ``(B, C, H, W)``, bytes: the best that were met on the way."""
        plan, device = self.plan, self.start.first.weight.device
        if plan.meta:
            self.generator.load_state_dict(self.start.state_dict())
        noise = torch.randn(plan.batch_size, plan.latent, device=device).requires_grad_()
        wanted = torch.randint(self.classes, (plan.batch_size,), device=device)
        moved: list[dict[str, Any]] = [
            {"params": list(self.generator.parameters())},
            {"params": [noise], "lr": plan.noise_lr},
        ]
        optimizer = torch.optim.Adam(moved, plan.generator_lr, betas=(0.5, 0.999))
        best, lowest = torch.empty(0), math.inf
        for attempt in range(plan.generator_steps):
            images, cost = self.cost(noise, wanted, adversary)
            if attempt == 0 or cost.item() < lowest:
                best, lowest = images.detach(), cost.item()
            step(optimizer, cost)
            self._move_start()
        if plan.meta:
            self.start_optimizer.step()
        self.start_optimizer.zero_grad()
        if self.statistics:
            self.statistics.remember()
        return to_bytes(best)

    def _cost(self, noise: Tensor, wanted: Tensor, adversary: bool) -> tuple[Tensor, Tensor]:
        """The images that the noise becomes, and how bad they are."""
        plan = self.plan
        images = self.generator(noise)
        answers = self.teacher(images).float()
        cost = plan.class_weight * F.cross_entropy(answers, wanted)
        if self.statistics:
            cost = cost + plan.statistics_weight * self.statistics.distance()
        if adversary and plan.adversarial_weight:
            guess = self.student(images)
            agree = guess.argmax(1) == answers.argmax(1)
            gap = disagreement(guess, answers, plan.target)
            cost = cost - plan.adversarial_weight * (agree * gap).mean()
        return images, cost

    def _move_start(self) -> None:
        """Add the working copy's gradients to the starting point's (first-order MAML)."""
        gradients: list[Any] = [weight.grad for weight in self.generator.parameters()]
        for start, gradient in zip(self.start.parameters(), gradients, strict=True):
            start.grad = gradient if start.grad is None else start.grad + gradient
