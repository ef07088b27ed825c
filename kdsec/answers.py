"""A teacher's answers, kept for the next student that is shown the same batches.

What ``Loader`` deals out is a pure function of images, batch size, augmentation and seed. Students that
differ in their network, their loss or their labels are shown the same pixels in the same order, and what a
teacher said to the first of them it would say to the others, to the bit. A chapter sets dozens of students on
one teacher, which is often the larger network: asking it once for all of them is one forward pass in place of
dozens.

A thief is charged for every query all the same: this saves our time, not the thief's money.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kdsec.fingerprint import fingerprint

LIMIT = 2**30  # bytes; 31,000 batches of 128 answers over ten classes are 80 million of them in bf16


@dataclass
class Answers:
    """All answers kept by one process, the ones longest not asked for forgotten first.

    Attributes:
        limit: bytes that they may take.
        asked: batches that a teacher had to answer.
        recalled: batches whose answers were here.
    """

    limit: int = LIMIT
    asked: int = 0
    recalled: int = 0
    _kept: OrderedDict[str, list[Tensor]] = field(default_factory=OrderedDict, repr=False)

    def stream(self, *determined_by: object) -> Stream:
        """The batches of one training.

        Args:
            determined_by: everything that decides what their pixels are, and how teachers compute.
        """
        return Stream(self, determined_by)

    def of(self, key: str) -> list[Tensor]:
        """What is kept under ``key``, batch by batch from the first on."""
        kept = self._kept.setdefault(key, [])
        self._kept.move_to_end(key)
        return kept

    def keep(self, key: str, answer: Tensor) -> None:
        """Add the next batch's answer under ``key``, if there is room when all older keys are forgotten."""
        while self._size() + answer.nbytes > self.limit and next(iter(self._kept)) != key:
            self._kept.popitem(last=False)
        if self._size() + answer.nbytes <= self.limit:
            self._kept[key].append(answer)

    def _size(self) -> int:
        # All answers under one key have the size of the first.
        return sum(len(answers) * answers[0].nbytes for answers in self._kept.values() if answers)


@dataclass
class Stream:
    """One training's batches, in their order; see ``Answers.stream``."""

    answers: Answers
    determined_by: tuple[object, ...]
    _keys: dict[int, tuple[nn.Module, int, str]] = field(default_factory=dict, repr=False)

    def ask(self, teacher: nn.Module, images: Tensor, number: int) -> Tensor:
        """The teacher's logits ``(B, K)`` without gradient: computed, or recalled.

        Args:
            teacher: asked anew every time where it is random, or being trained itself.
            images: batch ``number`` of the stream, ``(B, C, H, W)``.
            number: 0 for the first.
        """
        key = self._key(teacher)
        known = self.answers.of(key) if key else []
        if number < len(known):
            self.answers.recalled += 1
            return known[number].clone()  # whoever changes it in place changes a copy
        self.answers.asked += 1
        drawn = _generator_state(images.device)
        with torch.no_grad():
            answer: Tensor = teacher(images)
        if key and number == len(known) and torch.equal(drawn, _generator_state(images.device)):
            self.answers.keep(key, answer.clone())
        return answer

    def _key(self, teacher: nn.Module) -> str:
        """Under what to keep the answers of ``teacher`` as it is now; empty if they cannot be kept."""
        version = sum(tensor._version for tensor in _tensors(teacher))
        known, when, key = self._keys.get(id(teacher), (None, -1, ""))
        if known is None:
            key = fingerprint([teacher, *self.determined_by]) if _repeats_itself(teacher) else ""
        elif when != version:
            key = ""  # it is being trained: what it says to this batch it would not say to it again
        self._keys[id(teacher)] = teacher, version, key
        return key


def _repeats_itself(teacher: nn.Module) -> bool:
    """Whether nothing inside is training or has a random generator of its own."""
    layers = list(teacher.modules())
    random = any(isinstance(value, torch.Generator) for layer in layers for value in vars(layer).values())
    return not random and not any(layer.training for layer in layers)


def _generator_state(device: torch.device) -> Tensor:
    """Of the generators that dropout and ``torch.rand`` take their numbers from, here and on ``device``."""
    here = torch.get_rng_state()
    return torch.cat([here, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else here


def _tensors(teacher: nn.Module) -> Iterator[Tensor]:
    yield from teacher.parameters()
    yield from teacher.buffers()
