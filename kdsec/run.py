"""One run of a chapter, as its notebook uses it: settings, data, cached training, records.

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

from kdsec import config, data, models
from kdsec.cache import Cache
from kdsec.data import ImageSet, Splits
from kdsec.errors import KdsecError, check_choice, check_number, check_path
from kdsec.fingerprint import fingerprint
from kdsec.report import claims
from kdsec.report.provenance import provenance
from kdsec.report.records import Records, recordings
from kdsec.train import Loss, Recipe, Score, evaluate

if TYPE_CHECKING:
    import pandas as pd

DEVICES = ("auto", "cpu", "cuda")
ROLES = ("teacher", "student", "shadow")  # each has initial weights of its own; shadows are the thief's


@dataclass
class Run:
    """One run of one chapter. Its results depend on chapter, profile, seed and code version alone.

    Attributes:
        chapter: its name.
        profile: one of ``kdsec.config.PROFILES``.
        seed: of the data split, the initial weights and the training.
        device: where tensors live.
        settings: of the chapter at this profile, frozen.
        data: train, validation and test, on the device.
        records: the rows measured so far.
        out: folder for the records, or None to keep them in memory.
        overrides: settings changed from the profile's.
        checksums: of all data, for the provenance.
        rules: the claims that were committed when the run started, as ``claims.rules`` has them.
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
    rules: dict[str, str] = field(default_factory=dict)
    threads: int = field(default_factory=torch.get_num_threads)
    started: float = field(default_factory=time.monotonic)

    @property
    def checksum(self) -> str:
        """Fingerprint of what a run is asked to do, for functions that read a ``Run`` as a global."""
        return fingerprint([self.chapter, self.settings, self.seed, self.device, self.data])

    def more_data(self, name: str) -> Splits:
        """Another data set, split by the same seed; ``data`` itself if it has this name.

        Raises:
            KdsecError: an unknown name, or data that cannot be read or downloaded.
        """
        if name == self.data.name:
            return self.data
        share = self.settings.validation
        splits = data.load(name, validation=share, seed=self.seed, device=self.device)
        self.checksums |= {f"{name} {part}": checksum for part, checksum in splits.checksums.items()}
        print(f"{name}: {_sizes(splits)}")
        return splits

    def build(self, name: str, role: str = "teacher") -> nn.Module:
        """A classifier for this run's data by name, with initial weights from this run's seed and its role.

        Two networks of one name and role start from the same weights, so that arms of an experiment differ
        only in what is compared; a student never starts as its teacher did. Normalisation constants come from
        the training images.

        Args:
            name: one of ``kdsec.models.names()``.
            role: one of ``ROLES``.
        """
        place = ROLES.index(check_choice("role", role, ROLES))
        train, seed = self.data.train, (self.seed + place * 1_000_003) % 2**32
        mean, std = train.mean_std()
        model = models.build(name, train.num_classes, train.shape, mean=mean, std=std, seed=seed)
        models.whiten(model, train.images[:5000].cpu())
        return model.to(self.device)

    def foreign(self, name: str, images: ImageSet, part: str = "train") -> ImageSet:
        """Unlabelled images of other things, as many as ``images``, for a thief without the right ones.

        Args:
            name: of another data set; ``rotated`` turns the images by a quarter, where there is no other set.
            images: gives the number.
            part: of the other set, ``train`` or ``val``.

        Raises:
            KdsecError: the other set has another shape, or fewer images.
        """
        if name == "rotated":
            return images.unlabelled().replace(images=images.images.rot90(1, (2, 3)).contiguous())
        other = getattr(self.more_data(name), part)
        if other.shape != images.shape or len(other) < len(images):
            raise KdsecError(
                f"{name} has {len(other)} images {tuple(other.shape)}, needed are {len(images)} of "
                f"{tuple(images.shape)}; choose another foreign set"
            )
        return images.unlabelled().replace(images=other.images[: len(images)])

    def fit(
        self, arm: str, model: nn.Module, on: ImageSet, recipe: Recipe, loss: Loss | None = None
    ) -> nn.Module:
        """Train ``model`` on ``on``, or fetch it from the cache if exactly this was trained before."""
        return self.cache.fit(model, on, recipe, loss, seed=self.seed, label=f"{self.chapter}-{arm}")

    def cached(self, label: str, make: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        """``make(*args, **options)``, computed once and then read from the cache."""

        def compute() -> dict[str, Tensor]:
            return {"tensor": make(*args, **options)}

        key = [make, args, options]
        tensors = self.cache.tensors(
            f"{self.chapter}-{label}", key, self.device, compute, like={"tensor": None}
        )
        return tensors["tensor"]

    def data_free(
        self, arm: str, attack: Callable[..., Tensor], student: nn.Module, teacher: nn.Module
    ) -> Tensor:
        """Train ``student`` by a data-free ``attack`` on ``teacher``; returns the images it generated."""

        def compute() -> dict[str, Tensor]:
            images = attack(student, teacher, self.data.train.shape, seed=self.seed)
            return {**student.state_dict(), "drawn images": images}

        key = [attack, student, teacher, self.seed]
        like = {**student.state_dict(), "drawn images": None}
        made = self.cache.tensors(f"{self.chapter}-{arm}", key, self.device, compute, like)
        images = made.pop("drawn images")
        student.load_state_dict(made)
        student.eval()
        return images

    def score(
        self,
        arm: str,
        name: str,
        model: nn.Module,
        on: tuple[ImageSet, ImageSet] | None = None,
        **setting: Any,
    ) -> Score:
        """Record accuracy on validation and test images (of this run, unless others are given).

        Returns:
            The test score.
        """
        validation, test = (evaluate(model, part) for part in on or (self.data.val, self.data.test))
        self.record(arm, name, {"validation accuracy": validation, "test accuracy": test}, **setting)
        return test

    def record(
        self,
        arm: str,
        model: str,
        metrics: Mapping[str, float | Score],
        n: int | None = None,
        **setting: Any,
    ) -> None:
        """Record several metrics of one arm; arguments as in ``Records.add``.

        A ``Score`` is recorded as its accuracy with the number of examples; one of no examples is left out.
        """
        for metric, value in metrics.items():
            if not isinstance(value, Score):
                self.records.add(arm, model, metric, value, n=n, **setting)
            elif value.total:
                self.records.add(arm, model, metric, value.accuracy, n=value.total, **setting)

    def deal(self, *counts: int, overlap: bool = False) -> tuple[ImageSet, ...]:
        """Disjoint parts of the training images, of these sizes, in one random order that the seed fixes.

        Args:
            counts: sizes of the parts.
            overlap: the second part is the start of the first, as if thief and owner had the same images.

        Raises:
            KdsecError: more images are asked for than there are.
        """
        train = self.data.train
        for count in counts:
            check_number("number of images", count, least=0, whole=True)
        sizes = [counts[0], *counts[2:]] if overlap else list(counts)
        if sum(sizes) > len(train) or (overlap and counts[1] > counts[0]):
            raise KdsecError(
                f"{sum(sizes)} training images were asked for and {train.name} has {len(train)}; "
                "lower the numbers of images"
            )
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.seed))
        parts = list(order[: sum(sizes)].to(self.device).split(sizes))
        if overlap:
            parts.insert(1, parts[0][: counts[1]])
        return tuple(train.subset(part) for part in parts)

    def recorded_results(self) -> dict[str, tuple[Any, pd.DataFrame]]:
        """Settings and rows of each profile that recorded runs of this chapter come with.

        Where there are none, those of this run.
        """
        return recordings(self.chapter) or self.this_run()

    def this_run(self) -> dict[str, tuple[Any, pd.DataFrame]]:
        """Settings and rows of this run, in the form of ``recorded_results``."""
        return {self.profile: (self.settings, self.records.frame())}

    def finish(self) -> pathlib.Path | None:
        """Write records and provenance to ``out`` (if given) and say how many rows there are."""
        print(f"{len(self.records)} records of {self.chapter}, profile {self.profile}, seed {self.seed}")
        path = None if self.out is None else self.records.save(self.out, self._facts())
        torch.set_num_threads(self.threads)
        return path

    def _facts(self) -> dict[str, Any]:
        """Provenance of the records."""
        facts = provenance(
            device=self.device,
            seconds=time.monotonic() - self.started,
            data=self.data.checksums | self.checksums,
            settings=self.settings,
            overrides=self.overrides,
        )
        facts["claims"] = self.rules
        # The seconds include those of models from the cache, when they were trained.
        facts["training"] = {
            "models": self.cache.hits + self.cache.misses,
            "from_cache": self.cache.hits,
            "seconds": round(self.cache.seconds, 1),
            "petaflop": round(self.cache.operations / 1e15, 6),
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
    """Begin a run: check every argument, read the data, print what will run.

    Raises:
        KdsecError: unknown chapter, profile, device or setting; an ``out`` that is not a path; a seed that is
            not a whole number >= 0; a GPU asked for where there is none; data that cannot be read or
            downloaded, or that has fewer images than the settings ask for.
    """
    if not isinstance(overrides or {}, Mapping):
        raise KdsecError(
            f"overrides={overrides!r} must be a dictionary of settings, such as {{'alpha': 0.5}}"
        )
    target = None if out is None else check_path("out", out)
    settings = config.settings(chapter, profile, overrides)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        # PyTorch's generator on the CPU looks at 32 bits: 2**32 would be seed 0 again, unnoticed.
        raise KdsecError(f"seed={seed!r} must be a whole number from 0 to {2**32 - 1}")
    where = resolve_device(device)
    splits = data.load(settings.dataset, validation=settings.validation, seed=seed, device=where)
    if settings.training_images > len(splits.train):
        raise KdsecError(
            f"chapter {chapter} uses {settings.training_images} training images with these settings and "
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
        device=where,
        settings=settings,
        data=splits,
        records=Records(chapter, profile, seed, settings.dataset),
        cache=Cache(fresh=os.environ.get("KDSEC_FRESH") == "1"),
        out=target,
        overrides=dict(overrides or {}),
        rules=claims.rules(chapter),
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
    check_choice("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise KdsecError(
            "device cuda asked for, but PyTorch sees no GPU here; use auto or cpu, "
            "or install a CUDA build of torch"
        )
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
