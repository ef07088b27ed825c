"""Data-free thieves: no images at all, so they have a network draw some.

A *generator* turns noise into images; the student learns the teacher's answers to them. All that differs is
what the generator is trained for. Here it is an opponent: it looks for images on which student and teacher
still disagree (DFAD). ``kdsec.attacks.fast_datafree`` also asks for images like those the teacher was trained
on, which it finds written in the teacher's batch normalisation.

A data-free thief is called ``attack(student, teacher, shape) -> images``: it is told the *shape* of an image,
and there is no place for a real one. The teacher must let gradients through to its input: the thief holds its
weights. A view of the teacher (``kdsec.attacks.views``) is just another teacher, and ``target="decision"``
makes a thief who believes nothing but the decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.data.imageset import to_bytes
from kdsec.distill import check_temperature
from kdsec.errors import KdsecError, choose
from kdsec.progress import track
from kdsec.train import CHECK_EVERY, autocast, predict

TARGETS = ("kl", "l1", "decision")
PRECISIONS = ("float32", "bf16")  # fp16 would need a scaler for each of the players
SHOWN = 256  # images that an attack returns if it keeps no pool


class Generator(nn.Module):
    """Noise ``(B, latent)`` to images ``(B, C, H, W)`` in [0, 1].

    The skeleton that DAFL, ZSKT, DFAD and CMI share: a linear layer to a quarter of the height and width,
    then twice enlarge and convolve. The last layer is a sigmoid, because the networks here take pixels in
    [0, 1] and normalise them themselves.

    Args:
        shape: (C, H, W) with H and W divisible by 4.
        latent: length of the noise.
        width: channels of the first layers; half as many before the last.

    Raises:
        KdsecError: a height or width that is not a multiple of 4.
    """

    def __init__(self, shape: Sequence[int], latent: int = 256, width: int = 128) -> None:
        super().__init__()
        channels, height, width_ = shape
        if height % 4 or width_ % 4:
            raise KdsecError(
                f"the generator draws images of heights and widths divisible by 4, not {height}x{width_}; "
                "pad the teacher's images and train it on those"
            )
        self.start = (width, height // 4, width_ // 4)
        self.first = nn.Linear(latent, width * (height // 4) * (width_ // 4))
        self.layers = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width // 2, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, noise: Tensor) -> Tensor:
        images: Tensor = self.layers(self.first(noise).view(-1, *self.start))
        return images.float()


def disagreement(student: Tensor, teacher: Tensor, target: str, temperature: float = 1.0) -> Tensor:
    r"""How far the student is from the teacher, one number an image, ``(B,)``; both logits ``(B, K)``.

    ============  =====================================================================================
    ``kl``        :math:`\tau^2\,\mathrm{KL}(\sigma_\tau(z_T) \| \sigma_\tau(z_S))`, as in distillation
    ``l1``        mean absolute difference of the logits, each row's mean removed (a softmax ignores it)
    ``decision``  cross-entropy of the student with the teacher's decision
    ============  =====================================================================================
    """
    student, teacher = student.float(), teacher.float()
    match choose("target", target, TARGETS):
        case "l1":
            gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
            return gap.abs().mean(1)
        case "decision":
            return F.cross_entropy(student, teacher.argmax(1), reduction="none")
        case _:
            guess, wanted = ((logits / temperature).log_softmax(1) for logits in (student, teacher))
            return temperature**2 * F.kl_div(guess, wanted, log_target=True, reduction="none").sum(1)


@dataclass(frozen=True)
class DFAD:
    r"""Data-free adversarial distillation (Fang et al. 2019, arXiv 1912.11006).

    .. math:: \min_{f_S} \max_G\; \mathbb{E}_{\xi \sim N(0, 1)}\, D\big(f_S(G(\xi)), f_T(G(\xi))\big)

    in turns: some steps of the student on fresh images, one of the generator. With ``target="kl"`` this is
    zero-shot knowledge transfer (Micaelli & Storkey 2019, arXiv 1905.09768) without its attention maps. No
    batch normalisation is needed, nor anything else of the teacher but its answers and their gradient. The
    defaults are those of the authors' code on CIFAR, which stops the rate in steps where this anneals it.

    Attributes:
        rounds: of the game.
        student_steps, generator_steps: in each round.
        batch_size: images a step.
        target: D, see ``disagreement``.
        temperature: of ``kl``.
        student_lr, generator_lr: peak rates of SGD with momentum 0.9 and of Adam; both anneal to zero.
        weight_decay: of the student.
        latent, width: of the generator.
        precision: ``float32`` or ``bf16``.
    """

    rounds: int = 25_000
    student_steps: int = 5
    generator_steps: int = 1
    batch_size: int = 256
    target: str = "l1"
    temperature: float = 1.0
    student_lr: float = 0.1
    generator_lr: float = 1e-3
    weight_decay: float = 5e-4
    latent: int = 256
    width: int = 128
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(
        self, student: nn.Module, teacher: nn.Module, shape: Sequence[int], *, seed: int = 0
    ) -> Tensor:
        """Train ``student`` in place, leave it in eval mode, and return some of the images it learnt from.

        Args:
            student: fresh, of as many classes as the teacher.
            teacher: images to logits; put into eval mode. Gradients must reach its input.
            shape: (C, H, W) of an image. All that the thief knows about the data.
            seed: of everything random.

        Returns:
            The last images drawn, ``(256, C, H, W)`` bytes.

        Raises:
            KdsecError: other classes than the teacher's, a shape the generator cannot draw, or an explosion.
        """
        device, _ = check_pair(student, teacher, shape)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            generator = Generator(shape, self.latent, self.width).to(device)
            learner = sgd(student, self.student_lr, self.weight_decay)
            drawer = torch.optim.Adam(generator.parameters(), self.generator_lr)
            rates = [anneal(learner, self.rounds), anneal(drawer, self.rounds)]

            def draw(count: int = self.batch_size) -> Tensor:
                images: Tensor = generator(torch.randn(count, self.latent, device=device))
                return images

            def gap(images: Tensor) -> Tensor:
                with torch.set_grad_enabled(images.requires_grad):  # the student's step needs none through it
                    answers = teacher(images)
                return disagreement(student(images), answers, self.target, self.temperature).mean()

            student.train()
            for index in track(range(self.rounds), self.rounds, "data-free"):
                with torch.autocast(**autocast(self.precision, device)):
                    for _ in range(self.student_steps):
                        with torch.no_grad():
                            images = draw()
                        loss = gap(images)
                        step(learner, loss)
                    for _ in range(self.generator_steps):
                        step(drawer, -gap(draw()))
                for rate in rates:
                    rate.step()
                check_finite(loss, index, self.rounds, self.student_lr, self.generator_lr)
            student.eval()
            with torch.no_grad():
                return to_bytes(draw(SHOWN))


# What both data-free thieves need


def check_settings(attack: object) -> None:
    """Refuse what no attack can run with: see the message."""
    settings = vars(attack)
    choose("target", settings["target"], TARGETS)
    choose("precision", settings["precision"], PRECISIONS)
    check_temperature(settings["temperature"])
    for name in ("rounds", "student_steps", "generator_steps", "latent"):
        if settings[name] < 1:
            raise KdsecError(f"{name}={settings[name]} must be 1 or more")
    for name in ("batch_size", "width"):
        if settings[name] < 2:
            raise KdsecError(f"{name}={settings[name]} must be 2 or more")
    for name in ("student_lr", "generator_lr"):
        if not settings[name] > 0:
            raise KdsecError(f"{name}={settings[name]} must be above 0")


def check_pair(student: nn.Module, teacher: nn.Module, shape: Sequence[int]) -> tuple[torch.device, int]:
    """Device and number of classes, once both are known to take such images and to agree on the classes."""
    device = next(student.parameters()).device
    blank = torch.zeros(2, *shape, device=device)
    counts = [predict(network, blank).shape[1] for network in (student, teacher)]
    if counts[0] != counts[1]:
        raise KdsecError(
            f"the student has {counts[0]} classes and the teacher {counts[1]}; "
            "build the student for the teacher's classes"
        )
    teacher.eval()
    return device, counts[0]


def sgd(student: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(student.parameters(), lr, momentum=0.9, weight_decay=weight_decay)


def anneal(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Downhill, with gradients for the optimizer's own parameters only: the other players keep theirs."""
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=own)
    optimizer.step()


def check_finite(loss: Tensor, index: int, rounds: int, student_lr: float, generator_lr: float) -> None:
    """Look every now and then: looking forces a GPU to finish its work."""
    if ((index + 1) % CHECK_EVERY == 0 or index + 1 == rounds) and not loss.isfinite():
        raise KdsecError(
            f"the loss became {loss.item()} by round {index + 1}; lower student_lr (now {student_lr:g}) or "
            f"generator_lr (now {generator_lr:g})"
        )
