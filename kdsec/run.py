"""What a chapter's notebook holds in its hand: settings, data, cached training, records.

>>> run = start("opening", profile="quick", seed=0)
>>> teacher = run.fit("teacher", run.build(run.settings.teacher), run.data.train, run.settings.recipe)
>>> run.score("teacher", run.settings.teacher, teacher)
>>> run.finish()
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdsec import chapters, data, models
from kdsec.cache import Cache
from kdsec.data import ImageSet, Splits
from kdsec.errors import KdsecError, choose
from kdsec.report.provenance import provenance
from kdsec.report.records import Records, recorded
from kdsec.train import Loss, Recipe, Score, evaluate

if TYPE_CHECKING:
    import pandas as pd

DEVICES = ("auto", "cpu", "cuda")


@dataclass
class Run:
    """One execution of one chapter: a pure function of chapter, profile, seed and code version.

    Attributes:
        chapter: its name.
        profile: one of ``kdsec.chapters.PROFILES``.
        seed: of the data split, the initial weights and the training.
        device: where tensors live.
        settings: the chapter's frozen settings at this profile.
        data: train, validation and test, on the device.
        records: the rows measured so far.
        out: folder for the records, or None to keep them in memory.
        overrides: settings changed from the profile's.
        checksums: of all data, for the provenance.
        threads: what ``finish`` sets the number of threads back to.
    """

    chapter: str
    profile: str
    seed: int
    device: torch.device
    settings: Any
    data: Splits
    records: Records
    cache: Cache
    out: pathlib.Path | None
    overrides: dict[str, Any]
    checksums: dict[str, str] = field(default_factory=dict)
    threads: int = field(default_factory=torch.get_num_threads)
    started: float = field(default_factory=time.monotonic)

    def more_data(self, name: str) -> Splits:
        """Another data set beside ``data``, split by the same seed; the same one again is ``data`` itself.

        Raises:
            KdsecError: an unknown name, or data that is neither here nor to be had.
        """
        if name == self.data.name:
            return self.data
        share = self.settings.validation
        splits = data.load(name, validation=share, seed=self.seed, device=self.device)
        self.checksums |= {f"{name} {part}": checksum for part, checksum in splits.checksums.items()}
        print(f"{name}: {_sizes(splits)}")
        return splits

    def build(self, name: str) -> nn.Module:
        """A classifier for this run's data by name, with initial weights from this run's seed.

        Two nets of one name start from the same weights, so that arms of an experiment differ in nothing but
        what they are compared for. Normalisation constants come from the training images.
        """
        mean, std = self.data.train.mean_std()
        train = self.data.train
        return models.build(name, train.num_classes, train.shape, mean=mean, std=std, seed=self.seed).to(
            self.device
        )

    def fit(
        self, arm: str, model: nn.Module, on: ImageSet, recipe: Recipe, loss: Loss | None = None
    ) -> nn.Module:
        """Train ``model``, or fetch it from the cache if exactly this was trained before."""
        return self.cache.fit(model, on, recipe, loss, seed=self.seed, label=f"{self.chapter}-{arm}")

    def once(self, label: str, make: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        """``make(*args, **options)``, computed once; all of it must have a fingerprint."""

        def compute() -> dict[str, Tensor]:
            return {"tensor": make(*args, **options)}

        key = [make, args, options]
        return self.cache.tensors(f"{self.chapter}-{label}", key, self.device, compute)["tensor"]

    def steal(
        self, arm: str, attack: Callable[..., Tensor], student: nn.Module, teacher: nn.Module
    ) -> Tensor:
        """Train ``student`` by a data-free ``attack`` on ``teacher``, once; returns the images it drew."""

        def compute() -> dict[str, Tensor]:
            images = attack(student, teacher, self.data.train.shape, seed=self.seed)
            return {**student.state_dict(), "drawn images": images}

        key = [attack, student, teacher, self.seed]
        made = self.cache.tensors(f"{self.chapter}-{arm}", key, self.device, compute)
        images = made.pop("drawn images")
        student.load_state_dict(made)
        student.eval()
        return images

    def score(self, arm: str, name: str, model: nn.Module, **setting: Any) -> Score:
        """Record validation and test accuracy of a trained model, and return the test score."""
        for part, metric in (
            (self.data.val, "validation accuracy"),
            (self.data.test, "test accuracy"),
        ):
            score = evaluate(model, part)
            self.records.add(arm, name, metric, score.accuracy, n=score.total, **setting)
        return score

    def recordings(self) -> dict[str, tuple[Any, pd.DataFrame]]:
        """Settings and rows of each profile that recorded runs of this chapter come with.

        A copy without any shows this run itself instead.
        """
        recordings = {}
        for name in chapters.profiles(self.chapter):
            rows = recorded(self.chapter, name)
            if not rows.empty:
                recordings[name] = chapters.settings(self.chapter, name), rows
        return recordings or {self.profile: (self.settings, self.records.frame())}

    def finish(self) -> pathlib.Path | None:
        """Write records and provenance to ``out`` (if given) and say how many rows there are."""
        print(f"{len(self.records)} records of {self.chapter}, profile {self.profile}, seed {self.seed}")
        path = None if self.out is None else self.records.save(self.out, self._facts())
        torch.set_num_threads(self.threads)
        return path

    def _facts(self) -> dict[str, Any]:
        """Where the records come from."""
        facts = provenance(
            device=self.device,
            seconds=time.monotonic() - self.started,
            data=self.data.checksums | self.checksums,
            settings=self.settings,
            overrides=self.overrides,
        )
        # A rerun takes its models from the cache; what they cost is what they cost when they were trained.
        facts["training"] = {
            "models": self.cache.hits + self.cache.misses,
            "from_cache": self.cache.hits,
            "seconds": round(self.cache.seconds, 1),
            "batches_asked": self.cache.answers.asked,
            "batches_recalled": self.cache.answers.recalled,
        }
        return facts


def start(
    chapter: str,
    *,
    profile: str = "quick",
    seed: int = 0,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Run:
    """Open a chapter: check every argument, read its data, say what will run.

    Raises:
        KdsecError: unknown chapter, profile, device or setting; an ``out`` that is no path; a seed that is
            not a whole number >= 0; a GPU asked for where there is none; data that is neither here nor to be
            had, or less of it than the settings deal out.
    """
    if not isinstance(overrides or {}, Mapping):
        raise KdsecError(
            f"overrides={overrides!r} must be a dictionary of settings, such as {{'alpha': 0.5}}"
        )
    if not isinstance(out, str | os.PathLike | None):
        raise KdsecError(f"out={out!r} must be the path of a folder, or None to write nothing")
    settings = chapters.settings(chapter, profile, overrides)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        # PyTorch's generator on the CPU looks at 32 bits: 2**32 would be seed 0 again, unnoticed.
        raise KdsecError(f"seed={seed!r} must be a whole number from 0 to {2**32 - 1}")
    target = resolve_device(device)
    splits = data.load(settings.dataset, validation=settings.validation, seed=seed, device=target)
    if settings.training_images > len(splits.train):
        raise KdsecError(
            f"chapter {chapter} deals out {settings.training_images} training images with these settings and "
            f"{settings.dataset} has {len(splits.train)} beside {len(splits.val)} for validation; lower the "
            "settings that are numbers of images, or choose another data set"
        )
    threads = torch.get_num_threads()
    if splits.train.images[0, 0].numel() <= 64:
        torch.set_num_threads(1)  # on 8x8 images a second thread costs more than it gains
    torch.manual_seed(seed)  # for code in exercises that draws from the global generator
    print(f"chapter {chapter}, profile {profile}, seed {seed}")
    print(f"{settings.dataset}: {_sizes(splits)}")
    return Run(
        chapter=chapter,
        profile=profile,
        seed=seed,
        device=target,
        settings=settings,
        data=splits,
        records=Records(chapter, profile, seed, settings.dataset),
        cache=Cache(fresh=os.environ.get("KDSEC_FRESH") == "1"),
        out=None if out is None else pathlib.Path(out),
        overrides=dict(overrides or {}),
        threads=threads,
    )


def _sizes(splits: Splits) -> str:
    """One line. The split is seeded: its fingerprint tells a reader, and nbval, which run this is."""
    counts = f"{len(splits.train)} training, {len(splits.val)} validation, {len(splits.test)} test images"
    return f"{counts}; split {splits.train.checksum[:8]}"


def resolve_device(device: str) -> torch.device:
    """``auto`` is the GPU if there is one.

    Raises:
        KdsecError: an unknown name, or ``cuda`` where PyTorch sees no GPU.
    """
    choose("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise KdsecError(
            "device cuda asked for, but PyTorch sees no GPU here; use auto or cpu, "
            "or install a CUDA build of torch"
        )
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
