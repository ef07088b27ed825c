"""Images without a generator: pixels optimised until they look like training images (DeepInversion).

Yin et al., "Dreaming to Distill", CVPR 2020, arXiv 1912.08795.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.attacks.data_free import check_differentiable, check_settings
from kdsec.attacks.data_free_fast import Statistics
from kdsec.data.imageset import to_bytes
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_number
from kdsec.train import autocast, evaluating, track

SPREAD = 0.5  # of the pixels that a batch starts from, before the sigmoid: grey noise


@checked
@dataclass(frozen=True)
class Inversion:
    r"""Draw images from a network by going down, on their pixels,

    .. math:: \mathcal{L} = w_{bn}\,\text{(statistics)} + w_{oh}\,\mathrm{CE}(f_T(x), c)

    from noise: like the training images in what batch normalisation remembers of them, and of a class c. In
    the paper (section 3.1) a prior on smooth pixels joins in, and (section 3.2) a student who is to disagree;
    small images and networks did without. A generator shares what it learns between batches, but must be
    trained first; here every batch costs the same. So this is the attack for a short budget, and
    ``kdsec.attacks.data_free_fast`` the one for a long one.

    The student is not part of it: it is distilled on these images as if they were real.

    Attributes:
        batches, batch_size: how many images, all classes as often as they fit into a batch.
        steps: of Adam on a batch.
        lr: its rate, on pixels before the sigmoid that keeps them in [0, 1].
        statistics_weight, class_weight: the two w.
        jitter: each step looks at the images shifted by up to so many pixels, around the edges.
        precision: ``float32`` or ``bf16``.
    """

    batches: int = 40
    batch_size: int = 256
    steps: int = 500
    lr: float = 0.05
    statistics_weight: float = 1.0
    class_weight: float = 0.5
    jitter: int = 2
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_settings(self, batches=1, batch_size=2, steps=1, jitter=0)
        check_number("statistics_weight", self.statistics_weight, above=0)

    @checked
    def __call__(self, teacher: nn.Module, shape: Sequence[int], *, seed: int = 0) -> Tensor:
        """Images drawn from ``teacher``, which is left as it was.

        Args:
            teacher: images to logits. Gradients must reach its input, and its batch normalisation must be
                readable.
            shape: (C, H, W) of an image. All that the attacker knows about the data.
            seed: of everything random.

        Returns:
            ``(batches * batch_size, C, H, W)`` bytes.

        Raises:
            KdsecError: a teacher without batch normalisation, or an explosion.
        """
        check_number("seed", seed, least=0, below=2**32, whole=True)
        device = next((tensor.device for tensor in teacher.parameters()), torch.device("cpu"))
        classes = check_differentiable(teacher, shape, device)
        random = torch.Generator().manual_seed(seed)
        drawn = []
        with evaluating(teacher), Statistics(teacher, momentum=0.0) as statistics:
            for _ in track(range(self.batches), self.batches, "inversion"):
                noise = torch.randn(self.batch_size, *shape, generator=random)
                wanted = torch.arange(self.batch_size) % classes
                drawn.append(self._draw(teacher, statistics, noise.to(device), wanted.to(device), random))
        return torch.cat(drawn)

    def _draw(
        self,
        teacher: nn.Module,
        statistics: Statistics,
        noise: Tensor,
        wanted: Tensor,
        random: torch.Generator,
    ) -> Tensor:
        """One batch, bytes."""
        pixels = (SPREAD * noise).contiguous(memory_format=torch.channels_last).requires_grad_()
        optimizer = torch.optim.Adam([pixels], self.lr)
        for _ in range(self.steps):
            shift = torch.randint(-self.jitter, self.jitter + 1, (2,), generator=random).tolist()
            with torch.autocast(**autocast(self.precision, pixels.device)):
                answers = teacher(pixels.sigmoid().roll(shift, (2, 3))).float()
            loss = self.statistics_weight * statistics.distance()
            loss = loss + self.class_weight * F.cross_entropy(answers, wanted)
            (pixels.grad,) = torch.autograd.grad(loss, [pixels])
            optimizer.step()
        if not loss.isfinite():
            raise KdsecError(f"the loss became {loss.item()}; lower lr (now {self.lr:g})")
        return to_bytes(pixels.detach().sigmoid())
