"""Checkpoints as safetensors, and a cache of trained models keyed by content.

A trained model is looked up by *what it is made of*: initial weights, data, loss (with its teacher's
weights), recipe, seed, and the source of the code that trains. Change any of these and it is another entry;
change none and a rerun, or a run after a crash, loads it instead of training it again.
"""

from __future__ import annotations

import errno
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import kdsec
from kdsec.answers import Answers
from kdsec.data import ImageSet
from kdsec.errors import KdsecError
from kdsec.files import beside
from kdsec.fingerprint import fingerprint, source_fingerprint
from kdsec.train import Loss, Recipe, autocast_dtype, fit

Model = TypeVar("Model", bound=nn.Module)

PACKAGE = pathlib.Path(kdsec.__file__).parent
# The code that decides what training does. Losses and models carry their own source or weights in the key.
TRAINING_CODE = [
    PACKAGE / "train.py",
    PACKAGE / "distill.py",
    PACKAGE / "answers.py",
    PACKAGE / "muon.py",
    PACKAGE / "data" / "loader.py",
    PACKAGE / "models",
]


def save_checkpoint(
    path: pathlib.Path, tensors: dict[str, Tensor], recipe: str, **notes: Any
) -> pathlib.Path:
    """Write tensors (a state dict, say) and the fingerprint of how they were made; whole or not at all.

    Raises:
        KdsecError: no space left on the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with beside(path) as part:
            save_file(plain, part, metadata={"recipe": recipe, "notes": json.dumps(notes)})
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise KdsecError(
                f"no space left for {path}; free some or set KDSEC_CACHE to another disk"
            ) from None
        raise
    return path


def load_checkpoint(
    path: pathlib.Path, recipe: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and notes back.

    Args:
        path: a file written by ``save_checkpoint``.
        recipe: refuse the file unless it was made by this recipe (None: take any).

    Raises:
        KdsecError: the file is missing, damaged, or from another recipe.
    """
    advice = "delete it and train again"
    try:
        with safe_open(path, framework="pt") as stored:
            meta = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise KdsecError(f"no checkpoint at {path}; train first") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise KdsecError(f"checkpoint {path} is damaged ({type(error).__name__}); {advice}") from None
    if recipe is not None and meta.get("recipe") != recipe:
        raise KdsecError(f"checkpoint {path} was made by recipe {meta.get('recipe')}, not {recipe}; {advice}")
    return tensors, json.loads(meta.get("notes", "{}"))


def load_into(model: nn.Module, path: pathlib.Path, recipe: str | None = None) -> dict[str, Any]:
    """Load a checkpoint into ``model`` (eval mode afterwards) and return its notes.

    Raises:
        KdsecError: as ``load_checkpoint``, or the weights are those of another architecture.
    """
    tensors, notes = load_checkpoint(path, recipe)
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise KdsecError(
            f"checkpoint {path} holds the weights of another architecture than this {type(model).__name__}; "
            "build the model that was saved, or train again"
        ) from None
    model.eval()
    return notes


def home() -> pathlib.Path:
    """``KDSEC_CACHE`` if set, else ``~/.cache/kdsec``."""
    return pathlib.Path(os.environ.get("KDSEC_CACHE") or pathlib.Path.home() / ".cache" / "kdsec")


@dataclass
class Cache:
    """Trained models and computed tensors by content.

    Attributes:
        folder: where the entries lie; ``home()`` by default.
        fresh: train everything again and overwrite what is there.
        hits: how many entries were reused so far.
        misses: how many were made.
        seconds: what making all of them took, whenever that was.
        answers: what teachers said to the students trained so far.
    """

    folder: pathlib.Path = field(default_factory=home)
    fresh: bool = False
    hits: int = 0
    misses: int = 0
    seconds: float = 0.0
    answers: Answers = field(default_factory=Answers)

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
        key = [model, data, recipe, loss, seed, str(precision)]

        def train() -> dict[str, Tensor]:
            fit(model, data, recipe, loss, seed=seed, label=label, answers=self.answers)
            return model.state_dict()

        # A fetched model gets the memory format that training leaves: its outputs then agree to the bit.
        model.to(memory_format=torch.channels_last)
        model.load_state_dict(self.tensors(label, key, data.images.device, train))
        return model.eval()

    def tensors(
        self, label: str, key: Any, device: torch.device, make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The tensors that ``make()`` returns, made once per ``key``.

        When two processes want the same entry, one makes it and the other waits. A damaged entry is made
        again.

        Args:
            label: readable part of the file name; an entry made under another one serves as well.
            key: everything the result depends on; must have a fingerprint.
            device: where the tensors go; its type is part of the key, as the last bits depend on it.
            make: called when there is no usable entry.
        """
        recipe = fingerprint([key, device.type, torch.__version__, source_fingerprint(*TRAINING_CODE)])
        path = self.folder / f"{label}-{recipe}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{recipe}.lock"):  # the empty lock file stays: removing it would race
            path = next(self.folder.glob(f"*-{recipe}.safetensors"), path)
            if not self.fresh and path.exists():
                try:
                    tensors, notes = load_checkpoint(path, recipe)
                    self.hits += 1
                    self.seconds += notes.get("seconds", 0.0)
                    return {name: tensor.to(device) for name, tensor in tensors.items()}
                except KdsecError as error:
                    print(f"kdsec: {error}; making it again", file=sys.stderr)
            started = time.monotonic()
            tensors = make()
            seconds = time.monotonic() - started
            save_checkpoint(path, tensors, recipe, seconds=round(seconds, 4))
            self.misses += 1
            self.seconds += seconds
        return tensors
