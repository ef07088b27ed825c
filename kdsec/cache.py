"""Checkpoints as safetensors, and a cache of trained models keyed by content.

A trained model is looked up by *what it is made of*: initial weights, data, loss (with its teacher's
weights), recipe, seed, and the code that trains. Change any of these and it is another entry; change none and
a rerun, or a run after a crash, loads it instead of training it again.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import os
import pathlib
import re
import sys
import time
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kdsec.data import ImageSet
from kdsec.entry import checked
from kdsec.errors import KdsecError, atomic_write, check_path, disk_is_full
from kdsec.fingerprint import fingerprint, source_dependencies, source_fingerprint
from kdsec.oracle import Memory, random_streams, recalling
from kdsec.train import CrossEntropy, Loss, Recipe, autocast_dtype, fit

Model = TypeVar("Model", bound=nn.Module)
Tensors = dict[str, Tensor]

# In every key: the code that trains. Losses and models bring their own code into it.
TRAINING_CODE = "import kdsec.train, kdsec.distill, kdsec.models"
DREW = (
    "draws from a random stream that torch, numpy or Python share, so its result is not kept; "
    "let it draw from a generator of its own"
)
# First bytes of files that are no safetensors, and how to convert them.
OTHER_FORMATS = {
    b"PK\x03\x04": "a zip file, such as torch.save or numpy.savez write",
    b"\x80": "a pickle, as older versions of torch.save write",
    b"\x93NUMPY": "a numpy array",
    b"\x89HDF": "an HDF5 file",
}


@functools.cache
def _training_code() -> str:
    return source_fingerprint(*source_dependencies(TRAINING_CODE))


def save_checkpoint(path: pathlib.Path, tensors: Mapping[str, Tensor], recipe: str, **notes: Any) -> None:
    """Write tensors (a state dict, say), the fingerprint of how they were made, and a checksum; whole or not
    at all.

    Raises:
        KdsecError: the file cannot be written, for lack of space for instance.
    """
    for name, tensor in _named_tensors(tensors).items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise KdsecError(f"{name!r} is not the name of a dense tensor; only such are kept in a file")
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    text = json.dumps(notes)
    meta = {"recipe": recipe, "notes": text, "checksum": _checksum(plain, recipe, text)}
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            save_file(plain, part, metadata=meta)


def _named_tensors(made: Any) -> Mapping[Any, Any]:
    if not isinstance(made, Mapping):
        raise KdsecError(f"a {type(made).__name__} is not tensors by name; give a dict of tensors")
    return made


def load_checkpoint(path: pathlib.Path, recipe: str) -> tuple[Tensors, dict[str, Any]]:
    """Read back the tensors and notes that ``save_checkpoint`` wrote.

    Raises:
        KdsecError: the file is missing, of another format, from another recipe, or its content is not what
            was written.
    """
    path = check_path("checkpoint", path)
    if not path.is_file():
        raise KdsecError(f"no checkpoint at {path}; train first")
    try:
        with safe_open(path, framework="pt") as stored:
            meta = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise KdsecError(f"{path} {what_it_is(path)} ({type(error).__name__})") from None
    if meta.get("recipe") != recipe:
        raise KdsecError(f"checkpoint {path} was made by recipe {meta.get('recipe')}, not {recipe}")
    notes = meta.get("notes", "")
    if meta.get("checksum") != _checksum(tensors, recipe, notes):
        raise KdsecError(f"checkpoint {path} does not have the content that was written to it")
    return tensors, json.loads(notes)


def _checksum(tensors: Tensors, recipe: str, notes: str) -> str:
    return fingerprint([recipe, notes, sorted(tensors.items())])


def what_it_is(path: pathlib.Path) -> str:
    """What a file is that is no readable safetensors, to follow its name in a message."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    for magic, name in OTHER_FORMATS.items():
        if start.startswith(magic):
            return (
                f"is {name}, not safetensors; if you trust it, load it with torch or numpy and "
                "write its tensors to another file with safetensors.torch.save_file"
            )
    return "is damaged or no safetensors file; use an undamaged copy or train again"


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
    """Turn what can go wrong with a folder into one line."""
    try:
        yield
    except (OSError, SafetensorError, NotImplementedError) as error:
        full = disk_is_full(error)
        reason = "no space left" if full else f"cannot write: {getattr(error, 'strerror', None) or error}"
        where = "on another disk" if full else "that can be written and locked"
        raise KdsecError(f"cache folder {folder}: {reason}; set KDSEC_CACHE to a folder {where}") from None


def home() -> pathlib.Path:
    """``KDSEC_CACHE`` if set, else ``~/.cache/kdsec``."""
    return pathlib.Path(os.environ.get("KDSEC_CACHE") or "~/.cache/kdsec").expanduser()


def check_folder(folder: pathlib.Path | None = None) -> None:
    """Try the cache folder before anything runs: make it, write a file, lock it, remove it.

    Raises:
        KdsecError: it is no folder, cannot be written, is full, or has no file locks.
    """
    folder = home() if folder is None else check_path("cache folder", folder)
    trial = folder / f".{uuid.uuid4().hex}.trial"
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            trial.write_bytes(bytes(4096))
            with FileLock(trial, timeout=5):
                pass
        finally:
            with contextlib.suppress(OSError):
                trial.unlink()


@dataclass
class Cache:
    """Trained models and computed tensors by content.

    Attributes:
        folder: of the entries; ``home()`` by default.
        fresh: train everything again and overwrite the entries.
        hits: how many entries were reused so far.
        misses: how many were made.
        seconds: what making all of them took, in this run or an earlier one.
        operations: floating-point operations of all trainings, in this run or an earlier one.
        answers: what teachers said to the students trained so far.
    """

    folder: pathlib.Path = field(default_factory=home)
    fresh: bool = False
    hits: int = 0
    misses: int = 0
    seconds: float = 0.0
    operations: int = 0
    answers: Memory = field(default_factory=Memory)
    _counted: dict[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.folder = check_path("cache folder", self.folder)

    @checked
    def fit(
        self,
        model: Model,
        data: ImageSet,
        recipe: Recipe,
        loss: Loss | None = None,
        *,
        seed: int = 0,
        label: str = "model",
    ) -> Model:
        """``kdsec.train.fit``, or its result from an earlier run: same arguments, same weights."""
        precision = autocast_dtype(recipe.precision, data.images.device)
        key = [fit, model, data, recipe, loss, seed, str(precision)]

        def train() -> Tensors:
            with recalling(self.answers):
                fit(model, data, recipe, loss, seed=seed, label=label)
            return model.state_dict()

        # A fetched model gets the memory format that training leaves: its outputs then agree to the bit.
        model.to(memory_format=torch.channels_last)

        def operations() -> int:
            alike = f"{model} {loss} {data.shape} {recipe.batch_size}"
            told = loss is None or (dataclasses.is_dataclass(loss) and "0x" not in alike)
            step = self._counted.get(alike) if told else None  # counting costs as much as several steps
            if step is None:
                step = self._counted[alike] = step_operations(model, data, recipe, loss, seed)
            return step * recipe.total_steps(len(data))

        like = model.state_dict()
        made = self.tensors(label, key, data.images.device, train, like, operations)
        model.load_state_dict(made)
        return model.eval()

    def tensors(
        self,
        label: str,
        key: Any,
        device: torch.device,
        make: Callable[[], Tensors],
        like: Mapping[str, Tensor | None] | None = None,
        operations: Callable[[], int] = int,
    ) -> Tensors:
        """The tensors that ``make()`` returns, made once per ``key``.

        When two processes want the same entry, one makes it and the other waits. An entry that is damaged or
        holds something else is made again, which is said on standard error; so is that a result was not kept
        because it depends on more than its key, on a shared random stream.

        Args:
            label: readable part of the file name; an entry made under another one serves as well.
            key: everything the result depends on; must have a fingerprint.
            device: where the tensors go; its type is part of the key, as the last bits depend on it.
            make: called when there is no usable entry.
            like: names of the tensors, each with one of the right shape and type, or None for any.
            operations: how many floating-point operations ``make()`` took, for the records.
        """
        recipe = fingerprint([key, device.type, torch.__version__, _training_code()])
        readable = re.sub(r"[^\w .,:;=+()%-]", "_", str(label))[:100]
        path = self.folder / f"{readable}-{recipe}.safetensors"
        with _locked(self.folder / f"{recipe}.lock"):  # the lock file stays: removing it would race
            path = self._entry(path)
            if not self.fresh and path.exists():
                try:
                    tensors, notes = load_checkpoint(path, recipe)
                    _check_names_and_shapes(path, tensors, like)
                except KdsecError as error:
                    print(f"kdsec: {error}; making it again", file=sys.stderr)
                else:
                    self.hits += 1
                    self.seconds += notes.get("seconds", 0.0)
                    self.operations += notes.get("operations", 0)
                    return {name: tensor.to(device) for name, tensor in tensors.items()}
            started, streams = time.monotonic(), random_streams(device)
            tensors = make()
            seconds, moved = time.monotonic() - started, streams != random_streams(device)
            counted = operations()
            if moved:
                print(f"kdsec: {label} {DREW}", file=sys.stderr)
            else:
                save_checkpoint(path, tensors, recipe, seconds=round(seconds, 4), operations=counted)
            self.misses += 1
            self.operations += counted
            self.seconds += seconds
        return tensors

    def _entry(self, path: pathlib.Path) -> pathlib.Path:
        """The file with the recipe of ``path``, under any label; beside ``path`` if that is a folder."""
        recipe = path.stem.rpartition("-")[2]
        found = [each for each in sorted(self.folder.glob(f"*-{recipe}.safetensors")) if each.is_file()]
        if not found and path.is_dir():
            print(f"kdsec: {path} is a folder; the entry gets another name", file=sys.stderr)
            return path.with_name(f"_{path.name}")
        return found[0] if found else path


def step_operations(
    model: nn.Module, data: ImageSet, recipe: Recipe, loss: Loss | None = None, seed: int = 0
) -> int:
    """Floating-point operations of one training step: convolutions and matrix products, two a multiplication.

    What the loss does beside counts too: an attack on each batch, a teacher's answers (even those that a
    training recalls). Nothing is changed, and an oracle is asked about images of the training only.
    """
    from torch.utils.flop_counter import FlopCounterMode  # not for those who only read the cache

    twin, batch = copy.deepcopy(model).train(), next(recipe.batches(data, seed))
    counter: Any = FlopCounterMode(display=False)
    # No count by module: torch's tracker of modules fails on a loss that calls autograd.grad on its input.
    nothing = types.SimpleNamespace(parents=("Global",), __enter__=lambda: None, __exit__=lambda: None)
    counter.mod_tracker = nothing
    with torch.random.fork_rng(), counter:
        (loss or CrossEntropy())(twin, batch).backward()
    return counter.get_total_flops()


def _check_names_and_shapes(
    path: pathlib.Path, tensors: Tensors, like: Mapping[str, Tensor | None] | None
) -> None:
    def form(tensor: Tensor) -> tuple[Any, ...]:
        return tensor.shape, tensor.dtype

    if like is not None and (
        tensors.keys() != like.keys()
        or any(wanted is not None and form(wanted) != form(tensors[name]) for name, wanted in like.items())
    ):
        raise KdsecError(f"checkpoint {path} holds other tensors than this result has")


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    lock = FileLock(path)
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
