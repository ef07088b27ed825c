"""Which images of a set that is about to be distilled on look poisoned: the detectors of chapter 3.

Each gives one score an image. Where there are images that the user trusts, a score is *high* above 99 % of
theirs; else the highest 1 % are listed, as they would be in a clean set too.
"""

from __future__ import annotations

import base64
import io
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdsec.audit.asking import HINT, Answering, ask, quiet_training, shrunk
from kdsec.audit.copies import copy_network, recipe
from kdsec.audit.loading import Target, labels_for
from kdsec.audit.page import document, items, save, table, text
from kdsec.cache import Cache
from kdsec.data import UNLABELLED, Augment, ImageSet
from kdsec.data.imageset import to_float
from kdsec.defenses.backdoor_detection import (
    activation_clustering,
    label_disagreement,
    label_instability,
    penultimate,
    spectral_signatures,
)
from kdsec.distill import KD
from kdsec.errors import KdsecError
from kdsec.models import Classifier
from kdsec.train import predict

SHARE = 0.01  # of trusted images that each detector accuses
FEWEST = 50  # images of a set, and trusted ones
# Their features are read, and scores averaged: those of one copy change with the last digits of its training.
COPIES = 3
SHOWN = 12  # pictures on the page
MISSES = {
    "label disagreement": "Misses poisons that the model classifies as they are labelled, such "
    "as stamped images of the target class. Accuses honest images that the model gets wrong.",
    "label instability": "Misses perturbations that survive a shift by a pixel, and images that are stamped "
    "and not perturbed. Accuses images near a boundary.",
    "spectral signatures": "Misses a few poisons in a large class, and triggers that the copies have not "
    "learnt. Without trusted images the set is its own reference, and many poisons hide.",
    "activation clustering": "Misses poisons without a cluster of their own in the copies' features. Accuses "
    "rare but honest kinds of images.",
}


class Inspection(NamedTuple):
    """Scores of all images of a set, and what is high.

    Attributes:
        name, model: of the set and the model.
        images: the set, as given.
        scores: by detector ``(N,)``, larger for more suspicious.
        high: by detector a mask ``(N,)``.
        trusted: number of trusted images; 0 where there were none.
    """

    name: str
    model: str
    images: Tensor
    scores: dict[str, Tensor]
    high: dict[str, Tensor]
    trusted: int

    @property
    def accused(self) -> Tensor:
        """``(N,)``: how many detectors find an image suspicious."""
        return torch.stack([mask.long() for mask in self.high.values()]).sum(0)

    @property
    def order(self) -> list[int]:
        """Images that any detector accuses, by how many do, then by place."""
        count = self.accused
        ranked = count.argsort(descending=True, stable=True)
        return ranked[count[ranked] > 0].tolist()


def inspect(
    target: Target,
    images: ImageSet,
    labels: np.ndarray | None = None,
    trusted: ImageSet | None = None,
    cache: Cache | None = None,
) -> Inspection:
    """Score ``images`` by every detector that can be used.

    Args:
        target: the teacher that will be asked about them.
        images: the set in question.
        labels: as ``read_labels`` read them; None: the images' own.
        trusted: clean images of the same kind.
        cache: keeps the copies whose features are read.

    Raises:
        KdsecError: too few images, or other sizes.
    """
    for called, part in {"the distillation set has": images, "trusted images are": trusted}.items():
        if part is not None and len(part) < FEWEST:
            raise KdsecError(f"{called} {len(part)}; at least {FEWEST} are needed")
    if trusted is not None and trusted.shape != images.shape:
        raise KdsecError(f"trusted images are {trusted.shape} and the set {images.shape}; use --size")
    ask(target, images.images[:2], HINT)
    teacher, cache = Answering(target), cache or Cache()
    answers = predict(teacher, images)
    given = labels_for(images, answers.shape[1], labels)
    with quiet_training():
        copies = [_copy(images, answers, cache, seed) for seed in range(COPIES)]

    def scores(part: ImageSet, truth: Tensor | None, said: Tensor, clean: ImageSet) -> dict[str, Tensor]:
        groups, known = said.argmax(1), predict(teacher, clean).argmax(1)

        def averaged(score: Callable[..., Tensor]) -> Tensor:
            read = ([penultimate(copy, _seen(each)) for each in (part, clean)] for copy in copies)
            found = [score(features, groups, reference, known) for features, reference in read]
            return torch.stack(found).mean(0)

        found = {}
        if truth is not None:
            classes = tuple(map(str, range(answers.shape[1])))
            found["label disagreement"] = label_disagreement(
                teacher, ImageSet(part.images, truth, classes, part.name)
            )
        found["label instability"] = label_instability(teacher, part, Augment(crop=1), views=4)
        found["spectral signatures"] = averaged(spectral_signatures)
        found["activation clustering"] = averaged(lambda *given: activation_clustering(*given)[0])
        return found

    if trusted is None:
        mine = scores(images, given, answers, images)
        high = {name: _highest(score, SHARE) for name, score in mine.items()}
    else:
        half = len(trusted) // 2
        clean, honest = trusted.subset(slice(0, half)), trusted.subset(slice(half, None))
        mine = scores(images, given, answers, clean)
        said = predict(teacher, honest)
        own = None if given is None else labels_for(trusted, answers.shape[1])
        theirs = scores(honest, None if own is None else own[half:], said, clean)
        high = {
            name: score > theirs[name].quantile(1 - SHARE) if name in theirs else _highest(score, SHARE)
            for name, score in mine.items()
        }
    return Inspection(
        images.name, target.name, images.images, mine, high, 0 if trusted is None else len(trusted)
    )


def _seen(images: ImageSet) -> ImageSet:
    """As a copy sees them."""
    return images.unlabelled().replace(images=shrunk(images.images))


def _copy(images: ImageSet, answers: Tensor, cache: Cache, seed: int) -> Classifier:
    """A copy distilled on the set: what poisons would do to a student shows in its features."""
    classes = tuple(map(str, range(answers.shape[1])))
    small = shrunk(images.images)
    seen = ImageSet(small, torch.full((len(small),), UNLABELLED), classes, images.name)
    how = recipe(seen.shape, len(seen))
    net, loss = copy_network(None, seen, seed), KD(answers, 1.0, 1.0)
    return cache.fit(net, seen, how, loss, seed=seed, label="audit-set")


def _highest(score: Tensor, share: float) -> Tensor:
    count = max(1, math.ceil(share * len(score)))
    return torch.zeros(len(score), dtype=torch.bool).index_fill(0, score.topk(count).indices, True)


def summary(found: Inspection) -> str:
    """What was found, in a few lines."""
    counts = ", ".join(f"{name} {int(mask.sum())}" for name, mask in found.high.items())
    several, total = int((found.accused > 1).sum()), len(found.images)
    expected = f"a clean set would have about {SHARE * total:.0f} with each"
    if not found.trusted:
        expected = "the highest 1 % of each, whatever the set: give trusted images with --queries for a limit"
    return f"{total} images; suspicious: {counts} ({expected}); by two detectors or more: {several}"


def write(found: Inspection, folder: pathlib.Path, files: Sequence[str] | None = None) -> None:
    """Write ``poisons.html`` and ``poisons.json``, each whole or not at all.

    Args:
        found: what to write.
        folder: where to.
        files: names of the images; None where they have only numbers, counted from 0.
    """
    accusers = {place: [name for name, mask in found.high.items() if mask[place]] for place in found.order}
    called = [str(place) for place in range(len(found.images))] if files is None else files
    rows = [
        {"image": place} | ({} if files is None else {"file": files[place]}) | {"accused by": names}
        for place, names in accusers.items()
    ]
    values = {name: [round(each, 5) for each in score.tolist()] for name, score in found.scores.items()}
    facts = {"set": found.name, "model": found.model, "suspicious": rows, "scores": values, "misses": MISSES}
    save(folder / "poisons.json", json.dumps(facts, indent=1) + "\n")
    listed = [[called[place], ", ".join(names)] for place, names in accusers.items()]
    used = [f"{name}: {said}" for name, said in MISSES.items() if name in found.scores]
    parts = [
        f'<div class="card"><p>{text(summary(found))}</p></div>',
        '<div class="pictures">'
        + "".join(_picture(found, place, called[place]) for place in found.order[:SHOWN])
        + "</div>",
        "<h2>What each detector misses</h2>",
        items(used),
        "<p>An image that no detector accuses is not thereby clean.</p><h2>Suspicious images</h2>",
        table(["image (from 0)" if files is None else "image", "accused by"], listed),
    ]
    save(folder / "poisons.html", document(f"Does {found.name} look poisoned?", parts))


def _picture(found: Inspection, place: int, name: str) -> str:
    from PIL import Image

    pixels = (to_float(found.images[place]) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(buffer, "png")
    data = base64.b64encode(buffer.getvalue()).decode()
    alt = f"Image {text(name)}, accused by {int(found.accused[place])} detectors"
    image = f'<img src="data:image/png;base64,{data}" alt="{alt}">'
    return f"<figure>{image}<figcaption>{text(name)}</figcaption></figure>"
