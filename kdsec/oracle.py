"""A teacher as an extraction attack sees it: it answers, counts queries, and remembers.

A chapter trains dozens of students on one teacher, and ``Loader`` shows students that differ only in network,
loss or labels the same pixels in the same order. Inside ``with recalling(memory):`` a teacher's answer to a
batch of the same pixels is recalled instead of computed, to the bit.

That saves our time, not the attacker's money: ``Oracle.queries`` counts every image that one attack asks
about, whether or not an earlier attack asked the same. An image under another augmentation is another query,
and asking about the same pixels again is none.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pickle
import random
from collections import OrderedDict
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from kdsec.data import ImageSet
from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint
from kdsec.logits import as_logits
from kdsec.train import ask, predict

LIMIT = 2**30  # bytes; 31,000 batches of 128 answers over ten classes are 80 million of them in bf16


class Oracle(nn.Module):
    """A teacher, and layers that an attacker passes its answers through.

    Without gradients, every call is a query: counted, in eval mode, recalled where possible. With gradients
    on, an attacker who holds the weights looks inside, and nothing is counted.

    Args:
        teacher: images to logits; not changed.
        layers: modules from logits ``(B, K)`` to ``(B, K)``, for example those of
            ``kdsec.attacks.postprocessing``.
    """

    @checked
    def __init__(self, teacher: nn.Module, *layers: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher
        self.layers = nn.Sequential(*layers).eval()
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)`` of float images ``(B, C, H, W)``."""
        if torch.is_grad_enabled():
            return self.layers(as_logits(self.teacher(images), len(images), values=False))
        ledger = _ledger(self)
        ledger.count(images)
        if ledger.dry_classes:
            return torch.zeros(len(images), ledger.dry_classes, device=images.device)
        return self.layers(answer(self.teacher, images))

    @checked
    def query(self, images: Tensor | ImageSet, batch_size: int = 250) -> Tensor:
        """Logits ``(N, K)``, float32, of a whole set; every image is a query."""
        return predict(self, images, batch_size)

    @property
    def queries(self) -> int:
        """Number of different images, pixel by pixel, that this oracle was asked about."""
        return _ledger(self).queries

    @property
    def asked(self) -> int:
        """Number of batches that this oracle was asked about."""
        return _ledger(self).batches

    def through(self, *layers: nn.Module) -> Oracle:
        """The same oracle with further layers behind it; queries to either count for both."""
        further = Oracle(self.teacher, *self.layers, *layers)
        _LEDGERS[further] = _ledger(self)
        return further

    def shares(self, other: Oracle) -> bool:
        """Whether queries to either count for both."""
        return _ledger(self) is _ledger(other)

    @contextlib.contextmanager
    def counting_only(self, classes: int) -> Iterator[None]:
        """Inside the block queries are counted and answered with zeros: what a training would have asked."""
        ledger = _ledger(self)
        ledger.dry_classes = classes
        try:
            yield
        finally:
            ledger.dry_classes = 0


@dataclass
class Ledger:
    """The images that an oracle was asked about, as one hash each."""

    hashes: list[Tensor] = field(default_factory=list)
    batches: int = 0
    dry_classes: int = 0

    def count(self, images: Tensor) -> None:
        self.hashes.append(pixel_hashes(images))
        self.batches += 1
        if len(self.hashes) >= 1000:
            self.hashes = [torch.cat(self.hashes).unique()]

    @property
    def queries(self) -> int:
        return len(torch.cat(self.hashes).unique()) if self.hashes else 0


# Not an attribute of the oracle: what was asked so far is no part of what the oracle *is* (its fingerprint).
_LEDGERS: WeakKeyDictionary[Oracle, Ledger] = WeakKeyDictionary()


def _ledger(oracle: Oracle) -> Ledger:
    return _LEDGERS.setdefault(oracle, Ledger())


def as_oracle(teacher: nn.Module) -> Oracle:
    """``teacher`` itself if it is an oracle, else a new oracle of it."""
    return teacher if isinstance(teacher, Oracle) else Oracle(teacher)


def pixel_hashes(images: Tensor) -> Tensor:
    """One 64-bit hash an image, ``(B,)``: equal for equal pixels, whatever their order in memory."""
    rows = images.movedim(1, -1) if images.ndim == 4 else images  # a view where memory is channels-last
    bits = rows.detach().float().flatten(1).contiguous().view(torch.int32).long()
    return (bits * _weights(bits.shape[1], bits.device)).sum(1)  # modulo 2**64


@functools.lru_cache(maxsize=8)
def _weights(length: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    drawn = torch.randint(-(2**63), 2**63 - 1, (length,), generator=generator, dtype=torch.int64)
    return (drawn | 1).to(device)


# Remembering


@dataclass
class Memory:
    """Answers of teachers, by the teacher's content and the batch's pixels.

    Attributes:
        limit: bytes that they may take. Where there is no room, the teachers not asked for the longest time
            are forgotten first; a teacher whose answers alone fill it is not remembered further.
        asked: batches that a teacher had to answer.
        recalled: batches whose answers were here.
    """

    limit: int = LIMIT
    asked: int = 0
    recalled: int = 0
    _size: int = field(default=0, repr=False)
    _kept: OrderedDict[str, dict[bytes, Tensor]] = field(default_factory=OrderedDict, repr=False)
    _teachers: dict[int, tuple[nn.Module, Any, str]] = field(default_factory=dict, repr=False)

    def answer(self, teacher: nn.Module, images: Tensor) -> Tensor:
        """The teacher's logits ``(B, K)``: recalled, or computed and kept if they would be the same again."""
        key = self._key(teacher)
        batch = _batch_key(images) if key else b""
        kept = self._kept.get(key, {})
        if batch in kept:
            self._kept.move_to_end(key)
            self.recalled += 1
            return kept[batch].clone()  # changing it in place changes a copy
        self.asked += 1
        before, content = random_streams(images.device), self._first_content(teacher, key)
        logits = ask(teacher, images)
        unmoved = before == random_streams(images.device) and self._key(teacher) == key
        if unmoved and content:  # the first question: does it change the teacher, does it have one answer?
            unmoved = content == _content(teacher) and _agree(logits, ask(teacher, images))
        if not unmoved:
            self._teachers[id(teacher)] = teacher, None, ""  # random, counting or learning: ask every time
            self._forget(key)
        elif key:
            self._keep(key, batch, logits.clone())
        return logits

    def _key(self, teacher: nn.Module) -> str:
        """Content of the teacher as it was when the training began; empty if its answers cannot be kept."""
        version = _version(teacher)
        known, before, key = self._teachers.get(id(teacher), (None, None, ""))
        if known is None:
            key = _content(teacher)
        elif before != version:
            key = ""  # it changed during the training, and will again
        self._teachers[id(teacher)] = teacher, version, key
        return key

    def _first_content(self, teacher: nn.Module, key: str) -> str:
        """The content again, if nothing of the teacher is kept yet: does a question change it?"""
        return "" if not key or key in self._kept else _content(teacher)

    def _keep(self, key: str, batch: bytes, logits: Tensor) -> None:
        kept = self._kept.setdefault(key, {})
        self._kept.move_to_end(key)
        while self._size + logits.nbytes > self.limit and next(iter(self._kept)) != key:
            self._forget(next(iter(self._kept)))
        if self._size + logits.nbytes <= self.limit:
            kept[batch] = logits
            self._size += logits.nbytes

    def _forget(self, key: str) -> None:
        self._size -= sum(logits.nbytes for logits in self._kept.pop(key, {}).values())


_MEMORY: ContextVar[Memory | None] = ContextVar("memory", default=None)


@contextlib.contextmanager
def recalling(memory: Memory) -> Iterator[Memory]:
    """One training inside which teachers' answers are recalled from ``memory`` and added to it."""
    memory._teachers.clear()  # whatever happened to a teacher since the last training: look at it again
    token = _MEMORY.set(memory)
    try:
        yield memory
    finally:
        _MEMORY.reset(token)
        memory._teachers.clear()


@checked
def answer(teacher: nn.Module, images: Tensor) -> Tensor:
    """Logits ``(B, K)`` of a teacher, without gradient, in eval mode, recalled inside ``recalling``.

    Raises:
        KdsecError: what comes back is not logits; see ``kdsec.logits.as_logits``.
    """
    memory = _MEMORY.get()
    # An oracle, or a network around one, recalls the answers of the teacher inside.
    if memory is None or any(isinstance(layer, Oracle) for layer in teacher.modules()):
        return ask(teacher, images)
    with torch.no_grad():
        return memory.answer(teacher, images)


def _batch_key(images: Tensor) -> bytes:
    """Pixels, and everything around them that decides the last bits of an answer."""
    kind = images.device.type
    cast = torch.is_autocast_enabled(kind) and str(torch.get_autocast_dtype(kind))
    place = f"{tuple(images.shape)} {images.dtype} {images.device} {images.stride()} {cast}"
    return hashlib.blake2b(pixel_hashes(images).cpu().numpy().tobytes() + place.encode()).digest()


def _content(teacher: nn.Module) -> str:
    """Fingerprint of the teacher; empty where it has none."""
    try:
        return fingerprint(teacher)
    except KdsecError:
        return ""


def _version(teacher: nn.Module) -> tuple[int, int, list[tuple[str, str]]]:
    """Number of tensors, how often they were changed in place, and the plain attributes of all layers."""
    count, changes, plain = 0, 0, []
    for layer in teacher.modules():
        for tensor in (*layer._parameters.values(), *layer._buffers.values()):
            if tensor is not None:
                count, changes = count + 1, changes + tensor._version
        if not type(layer).__module__.startswith("torch.nn."):  # their attributes are settings
            plain += [
                (name, _plain(value))
                for name, value in vars(layer).items()
                if not name.startswith("_") and name != "training" and not isinstance(value, nn.Module)
            ]
    return count, changes, plain


def _plain(value: Any) -> str:
    """A text that changes when ``value`` is changed in place, a generator's state for example."""
    match value:
        case torch.Generator():
            return str(value.get_state().tolist())
        case np.random.Generator():
            return repr(value.bit_generator.state)
        case np.random.RandomState() | random.Random():
            return repr(value.get_state() if isinstance(value, np.random.RandomState) else value.getstate())
        case Tensor():
            return f"{id(value)} {value._version}"
        case _ if hasattr(value, "__dict__") and not callable(value):
            return f"{value!r} {vars(value)!r}"
        case _:
            return repr(value)


def _agree(first: Tensor, second: Tensor) -> bool:
    """Whether two answers to one question are one answer; on a GPU up to the order of its sums."""
    if first.is_cuda:
        return torch.allclose(first.float(), second.float(), rtol=1e-2, atol=1e-2 * float(first.abs().amax()))
    return torch.equal(first, second)


def random_streams(device: torch.device) -> tuple[bytes, bytes, Any]:
    """State of the random streams that torch, numpy and Python share."""
    state = torch.get_rng_state()
    if device.type == "cuda":
        state = torch.cat([state, torch.cuda.get_rng_state(device)])
    return state.numpy().tobytes(), pickle.dumps(np.random.get_state()), random.getstate()
