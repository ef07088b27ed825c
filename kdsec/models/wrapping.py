"""Somebody else's network, or a prediction API, as a teacher of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdsec.errors import KdsecError, check_number
from kdsec.models.base import Normalize


def wrap(
    model: nn.Module | Callable[[Tensor], Any],
    num_classes: int,
    *,
    output: str | Callable[[Any], Any] = "logits",
    probabilities: bool = False,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
) -> nn.Module:
    """A teacher: float images (N, C, H, W) in [0, 1] to logits (N, ``num_classes``).

    Queries are counted by ``kdsec.oracle``, not here.

    Args:
        model: a network (torchvision, timm, Hugging Face, ...), not changed, or a function of a batch of
            images, for example a call to an API. A function is asked without gradients.
        num_classes: K.
        output: where the answer holds what is wanted, if it is not a tensor: a key or an attribute, or a
            function of the answer.
        probabilities: the answer is probabilities; their logarithm is returned.
        mean, std: per channel, in pixel units of [0, 1], if the network expects normalised images.

    Raises:
        KdsecError: ``model`` cannot be called, or ``num_classes`` is below 2. Later, for every batch: an
            answer that is not (N, K), or a gradient that a function does not have.
    """
    check_number("num_classes", num_classes, least=2, whole=True)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    if not callable(model) or isinstance(model, type):
        raise KdsecError(
            f"a {type(model).__name__} cannot be called with images; give a network or a function"
        )
    if (mean is None) != (std is None):
        raise KdsecError("give both mean and std of the normalisation, or neither")
    return Wrapped(model, num_classes, output, probabilities, mean, std)


class Wrapped(nn.Module):
    """See ``wrap``."""

    def __init__(
        self,
        model: Any,
        num_classes: int,
        output: str | Callable[[Any], Any],
        probabilities: bool,
        mean: Sequence[float] | Tensor | None,
        std: Sequence[float] | Tensor | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.num_classes, self.output, self.probabilities = num_classes, output, probabilities
        self.normalize = nn.Identity() if mean is None else Normalize(len(mean), mean, std)

    def extra_repr(self) -> str:
        """Show the settings, for the fingerprint."""
        return f"num_classes={self.num_classes}, probabilities={self.probabilities}"

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (N, C, H, W) in [0, 1] to logits (N, K)."""
        if images.ndim != 4 or not images.is_floating_point():
            raise KdsecError(
                f"this model takes float images (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        if isinstance(self.model, nn.Module):
            answer = self.model(self.normalize(images))
        elif torch.is_grad_enabled() and images.requires_grad:
            raise KdsecError(
                "this teacher is a function without gradients; attack a copy that was distilled from it, or "
                "use an attack that only asks"
            )
        else:
            with torch.no_grad():
                answer = self.model(self.normalize(images))
        values = self._picked(answer).to(images.device)
        if values.shape != (len(images), self.num_classes):
            raise KdsecError(
                f"the wrapped model answered {tuple(values.shape)} for {len(images)} images, not "
                f"({len(images)}, {self.num_classes}); check num_classes={self.num_classes} and output"
            )
        return _log(values) if self.probabilities else values

    def _picked(self, answer: Any) -> Tensor:
        """The tensor inside an answer."""
        kind = type(answer).__name__
        if callable(self.output):
            answer = self.output(answer)
        elif isinstance(answer, Mapping) and self.output in answer:
            answer = answer[self.output]
        elif not isinstance(answer, Tensor) and hasattr(answer, self.output):
            answer = getattr(answer, self.output)
        elif isinstance(answer, Mapping):
            raise KdsecError(
                f"the wrapped model returned keys {sorted(map(str, answer))}; name one as output=..."
            )
        if isinstance(self.model, nn.Module) and not isinstance(answer, Tensor):
            raise KdsecError(
                f"the wrapped model returned a {kind}; tell where its logits are, e.g. "
                "output='logits' or output=lambda answer: answer[0]"
            )
        try:
            return answer if isinstance(answer, Tensor) else torch.as_tensor(answer)
        except (TypeError, ValueError, RuntimeError):
            raise KdsecError(
                f"the wrapped function returned a {kind} that is no array (N, K); see output=..."
            ) from None


def _log(values: Tensor) -> Tensor:
    """Logarithm of probabilities; a zero becomes the smallest positive float32."""
    p = values.float()
    if not bool(((p >= 0).all(1) & ((p.sum(1) - 1).abs() < 0.02)).all()):
        raise KdsecError(
            "the wrapped model returned rows that are not probabilities; for logits leave out "
            "probabilities=True"
        )
    return p.clamp(min=torch.finfo(torch.float32).tiny).log()
