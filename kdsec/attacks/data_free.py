"""Data-free extraction: no images at all, so a network draws some.

A *generator* turns noise into images; the student learns the teacher's answers to them. The attacks differ in
what the generator is trained for. Here it is an opponent: it looks for images on which student and teacher
still disagree (DFAD). ``kdsec.attacks.data_free_fast`` also asks for images like the teacher's training
images, as its batch normalisation remembers them.

A data-free attack is called ``attack(student, teacher, shape) -> images``: it is told the *shape* of an
image, and there is no place for a real one. The teacher must let gradients through to its input: the attacker
holds its weights. Post-processed answers (``kdsec.attacks.postprocessing``) are just another teacher, and
``target="decision"`` makes an attacker who believes nothing but the decisions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.data.imageset import to_bytes
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice, check_number
from kdsec.logits import NOTHING, check_same_shape, check_temperature, kl_terms
from kdsec.train import CHECK_EVERY, autocast, evaluating, predict, track

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
    check_same_shape(student, teacher)
    student, teacher = student.float(), teacher.float()
    match check_choice("target", target, TARGETS):
        case "l1":
            teacher = teacher.clamp(min=NOTHING)
            gap = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
            return gap.abs().mean(1)
        case "decision":
            return F.cross_entropy(student, teacher.argmax(1), reduction="none")
        case _:
            guess, wanted = ((logits / temperature).log_softmax(1) for logits in (student, teacher))
            return temperature**2 * kl_terms(wanted, guess).sum(1)


@checked
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
        check_settings(self, rounds=1, student_steps=1, generator_steps=1, latent=1, batch_size=2, width=2)

    @checked
    def __call__(
        self, student: nn.Module, teacher: nn.Module, shape: Sequence[int], *, seed: int = 0
    ) -> Tensor:
        """Train ``student`` in place, leave it in eval mode, and return some of the images it learnt from.

        Args:
            student: fresh, of as many classes as the teacher.
            teacher: images to logits; left as it was. Gradients must reach its input.
            shape: (C, H, W) of an image. All that the attacker knows about the data.
            seed: of everything random.

        Returns:
            The last images drawn, ``(256, C, H, W)`` bytes.

        Raises:
            KdsecError: other classes than the teacher's, a shape the generator cannot draw, a teacher without
                gradients, or an explosion.
        """
        device, _ = check_pair(student, teacher, shape)
        with seeded(seed, device), evaluating(teacher):
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


# What all data-free attacks need


def check_settings(attack: object, **least: int) -> None:
    """Refuse settings that no attack can run with; ``least`` are the smallest values of whole numbers."""
    settings = vars(attack)
    check_choice("precision", settings["precision"], PRECISIONS)
    for name, value in settings.items():
        if name in least:
            check_number(name, value, least=least[name], whole=True)
        elif name == "lr" or name.endswith("_lr"):
            check_number(name, value, above=0)
        elif name.endswith(("_weight", "_decay")):
            check_number(name, value, least=0)
    if "target" in settings:
        check_choice("target", settings["target"], TARGETS)
        check_temperature(settings["temperature"])


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers from ``seed`` inside the block, and afterwards as if nobody had drawn any."""
    check_number("seed", seed, least=0, below=2**32, whole=True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def check_pair(student: nn.Module, teacher: nn.Module, shape: Sequence[int]) -> tuple[torch.device, int]:
    """Device and number of classes, once student and teacher agree on both and gradients reach the input."""
    device = next(student.parameters()).device
    classes = check_differentiable(teacher, shape, device)
    own = predict(student, torch.zeros(2, *shape, device=device)).shape[1]
    if own != classes:
        raise KdsecError(
            f"the student has {own} classes and the teacher {classes}; "
            "build the student for the teacher's classes"
        )
    return device, classes


def check_differentiable(teacher: nn.Module, shape: Sequence[int], device: torch.device) -> int:
    """The teacher's number of classes.

    Raises:
        KdsecError: its answers carry no gradient to the images, or one that is zero everywhere (rounded
            answers): data-free attacks are white box.
    """
    noise = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    classes = predict(teacher, noise.detach()).shape[1]
    with evaluating(teacher), torch.enable_grad():
        best = teacher(noise).amax(1)
        reached = best.requires_grad and torch.autograd.grad(best.sum(), noise, allow_unused=True)[0]
    if not isinstance(reached, Tensor) or not reached.any():
        raise KdsecError(
            "no gradient reaches the teacher's input, and a data-free attack needs one; take no_grad, "
            "inference_mode and detach out of its forward, or use an attack with images"
        )
    return classes


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
