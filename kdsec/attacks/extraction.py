"""Model extraction: ways to train a student from a teacher that does not want to be copied.

Every attack in ``EXTRACTION_ATTACKS`` is called alike,
``EXTRACTION_ATTACKS[name](student, oracle, data, recipe, ...) -> student``. What an attacker has:

* the **oracle**: the teacher, asked about every augmented view of an image, as in the papers
  (``kdsec.oracle`` counts the queries). White-box attacks also look inside.
* ``data``, the attacker's own images. All, some or none of their labels are known (``UNLABELLED``). With all
  labels no teacher is needed (``alpha=0``), so the settings of interest are few labels and none.
* a fresh **student**, trained in place.

No function here takes test images. An attacker who tries several ways (``run_attacks``) chooses among them,
and for each its temperature and learning rate (``kdsec.attacks.tuning``), on their own validation images
(``best_attack``); only the test accuracy of that one choice may be reported. ``POOL`` names what every
teacher of every chapter is attacked with.

Most attacks are plain distillation from post-processed answers: ``kdsec.attacks.postprocessing``, and
``kdsec.attacks.inverse_reversal`` for attackers who suspect reversed negatives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdsec.attacks.inverse_reversal import class_means_negated, inverse, power, sign_detected
from kdsec.attacks.postprocessing import averaged, class_mean_removed, keep_top, linear_map, mean_removed
from kdsec.attacks.skeptical import Branched, SkepticalLoss
from kdsec.attacks.tuning import Candidate, Search, successive_halving
from kdsec.data import UNLABELLED, ImageSet
from kdsec.distill import KD, AttentionTransfer, HardLabels, teacher_labels
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_number
from kdsec.models import count_parameters
from kdsec.oracle import Oracle, as_oracle
from kdsec.train import CrossEntropy, Recipe, ask, evaluate, fit, predict


class TrainSpec(NamedTuple):
    """What an attack wants trained: usually the student, on its own images, with a loss."""

    model: nn.Module
    data: ImageSet
    loss: Callable[..., Tensor]


@dataclass(frozen=True)
class ExtractionAttack:
    """One way to extract a model.

    Attributes:
        prepare: ``prepare(student, oracle, data, temperature, alpha, seed) -> TrainSpec``.
        needs_labels: whether some of the attacker's own images must be labelled.
        white_box: whether the teacher's inside must be readable.
        temperature: the only one it distils at; None: whichever is asked for.
        tempered: whether it has a temperature at all.
    """

    prepare: Callable[[Any, Any, ImageSet, float, float, int], TrainSpec]
    needs_labels: bool = False
    white_box: bool = False
    temperature: float | None = None
    tempered: bool = True

    def candidates(self, search: Search) -> list[Candidate]:
        """What this attack can choose among."""
        fixed = (self.temperature,) if self.temperature or not self.tempered else search.temperatures
        return [Candidate(temperature, rate) for temperature in fixed for rate in search.rates]

    @checked
    def __call__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        data: ImageSet,
        recipe: Recipe,
        *,
        temperature: float = 4.0,
        alpha: float = 0.9,
        seed: int = 0,
        fit: Callable[..., Any] = fit,
    ) -> nn.Module:
        """Train ``student`` from ``teacher`` in place and return it.

        Args:
            student: fresh, of as many classes as the teacher.
            teacher: images to logits, or an ``Oracle``, which then counts this attack's queries.
            data: the attacker's own images.
            recipe: how to train.
            temperature, alpha: as in ``kdsec.distill.KD``, for the attacks that leave these open.
            seed: of everything random.
            fit: what trains: ``kdsec.train.fit``, or ``run.cache.fit``, which keeps the result.

        Raises:
            KdsecError: the classes differ, labels are needed and there are none, the teacher's inside is
                needed and cannot be read, or the training does not fit into memory.
        """
        oracle = as_oracle(teacher)
        _check_classes(student, oracle.teacher, data)  # no query: an API says what its classes are
        if self.needs_labels and bool((data.labels == UNLABELLED).all()):
            raise KdsecError("this attack needs some labelled images; label a few, or leave it out")
        spec = self.prepare(student, oracle, data, self.temperature or temperature, alpha, seed)
        asked = oracle.asked
        try:
            fit(spec.model, spec.data, recipe, spec.loss, seed=seed, label="extraction")
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "memory" not in str(error):
                raise
            raise KdsecError(
                f"out of memory with a student of {count_parameters(student):,} parameters and batches of "
                f"{recipe.batch_size}; lower batch_size or choose a smaller student"
            ) from None
        if oracle.asked == asked:
            _count_training(oracle, spec, recipe, seed)
        return student


def _check_classes(student: nn.Module, teacher: nn.Module, data: ImageSet) -> None:
    if not len(data):
        raise KdsecError(f"{data.name} has no images to ask the teacher about; give at least a few batches")
    one = data.subset(slice(0, 1))
    counts = [predict(student, one).shape[1], predict(teacher, one).shape[1], data.num_classes]
    if len(set(counts)) > 1:
        raise KdsecError(
            f"the student has {counts[0]} classes, the teacher {counts[1]} and {data.name} {counts[2]}; "
            "they must agree: build the student for the teacher's classes and name them in the image set"
        )


def _count_training(oracle: Oracle, spec: TrainSpec, recipe: Recipe, seed: int) -> None:
    """Count the queries of a training that was fetched from a cache: deal its batches again, ask nobody."""
    teacher = getattr(spec.loss, "teacher", None)
    parts = teacher.modules() if isinstance(teacher, nn.Module) else ()
    if not any(isinstance(part, Oracle) and part.shares(oracle) for part in parts):
        return  # its loss asks no oracle: labels, or a look inside
    assert isinstance(teacher, nn.Module)
    with oracle.counting_only(spec.data.num_classes):
        for batch in recipe.batches(spec.data, seed):
            ask(teacher, batch.images)


def soft_labels(
    student: nn.Module,
    teacher: nn.Module,
    data: ImageSet,
    temperature: float,
    alpha: float,
    seed: int,
    post: Callable[..., nn.Module] | None = None,
    softened: bool = False,
) -> TrainSpec:
    """Distillation, the papers' attack; or from answers post-processed by ``post(teacher, data)``.

    With ``softened`` the post-processing is told the temperature.
    """
    told = {"temperature": temperature} if softened else {}
    return TrainSpec(student, data, KD(post(teacher, data, **told) if post else teacher, temperature, alpha))


def hard_labels(
    student: nn.Module,
    teacher: nn.Module,
    data: ImageSet,
    temperature: float,
    alpha: float,
    seed: int,
    smoothing: float = 0.0,
) -> TrainSpec:
    """The teacher's decisions, smoothed or not, and nothing else: no labels of one's own."""
    return TrainSpec(student, data, HardLabels(teacher, smoothing))


def features(
    student: nn.Module, teacher: nn.Module, data: ImageSet, temperature: float, alpha: float, seed: int
) -> TrainSpec:
    """Attention transfer from the teacher's inside, with its decisions where labels are missing.

    An attacker with the weights removes a wrapper such as ``Stingy`` first. (They could also just copy the
    weights: this measures what the *features* of a protected teacher are worth to a smaller network.)
    """
    inside: Any = teacher
    while not hasattr(inside, "features") and hasattr(inside, "teacher"):
        inside = inside.teacher
    return TrainSpec(student, with_decisions(teacher, data), AttentionTransfer(inside))


def skeptical(
    student: nn.Module, teacher: nn.Module, data: ImageSet, temperature: float, alpha: float, seed: int
) -> TrainSpec:
    """The skeptical student: only a side branch listens to the teacher. See ``kdsec.attacks.skeptical``."""
    branched = Branched(student, data, seed)
    return TrainSpec(branched, with_decisions(teacher, data), SkepticalLoss(teacher, temperature, alpha))


@checked
def labelled(smoothing: float = 0.1) -> ExtractionAttack:
    """The yardstick of every comparison: no teacher, but labels paid for, smoothed."""

    def prepare(student: nn.Module, teacher: nn.Module, data: ImageSet, *_: Any) -> TrainSpec:
        return TrainSpec(student, data, CrossEntropy(smoothing))

    return ExtractionAttack(prepare, needs_labels=True, tempered=False)


@checked
def with_decisions(teacher: nn.Module, data: ImageSet) -> ImageSet:
    """The same images, with the teacher's decision where there is no label."""
    decided = teacher_labels(teacher, data).argmax(1)
    return data.replace(labels=torch.where(data.labels == UNLABELLED, decided, data.labels))


def _distil(post: Callable[..., nn.Module], softened: bool = False, **settings: Any) -> Callable[..., Any]:
    """Soft labels from answers post-processed by ``post(teacher, data, **settings)``."""
    return partial(soft_labels, post=partial(post, **settings), softened=softened)


EXTRACTION_ATTACKS: dict[str, ExtractionAttack] = {
    "soft labels": ExtractionAttack(soft_labels),
    "hard labels": ExtractionAttack(hard_labels, tempered=False),
    "smoothed hard labels": ExtractionAttack(partial(hard_labels, smoothing=0.1), tempered=False),
    # At T = 1 only: softening would take away the confidence, all that is left of the answer.
    "negatives dropped": ExtractionAttack(_distil(keep_top, keep=1), temperature=1.0),
    "top 2": ExtractionAttack(_distil(keep_top, keep=2)),
    "top 3": ExtractionAttack(_distil(keep_top, keep=3)),
    "mean removed": ExtractionAttack(_distil(mean_removed)),
    "class means removed": ExtractionAttack(_distil(class_mean_removed)),
    "linear map": ExtractionAttack(_distil(linear_map), needs_labels=True),
    "averaged over shifts": ExtractionAttack(_distil(averaged)),
    "negatives negated": ExtractionAttack(_distil(inverse, True, reading="negate")),
    "ranks reversed": ExtractionAttack(_distil(inverse, True, reading="rank")),
    "complement undone": ExtractionAttack(_distil(inverse, True, reading="complement")),
    "class means negated": ExtractionAttack(_distil(class_means_negated, True)),
    "sign detected": ExtractionAttack(_distil(sign_detected, True)),
    "skeptical student": ExtractionAttack(skeptical),
    "features": ExtractionAttack(features, white_box=True, tempered=False),
}
RECOVERY = "learned recovery"  # made for one defence: ``kdsec.attacks.recovery``
# One pool for every teacher of every chapter. All ask one query an image and step.
POOL = (
    "soft labels",
    "hard labels",
    "smoothed hard labels",
    "negatives dropped",
    "top 3",
    "class means removed",
    "negatives negated",
    RECOVERY,
)


def powers(exponents: Iterable[float], temperature: float = 4.0) -> dict[str, ExtractionAttack]:
    """Attacks that raise the negatives to a signed power, by the name ``power -1``; 1 is soft labels.

    Args:
        exponents: s, see ``kdsec.attacks.inverse_reversal.Power``.
        temperature: of the distillation, at which the decision keeps its probability.
    """
    exponents = list(exponents)
    for each in exponents:
        check_number("exponent", each)
    posts = {each: _distil(power, True, exponent=each) for each in exponents}
    return {f"power {s:g}": ExtractionAttack(post, temperature=temperature) for s, post in posts.items()}


class ExtractionResult(NamedTuple):
    """What one attack reached.

    Attributes:
        name: of the attack.
        student: the trained student.
        validation: its accuracy on the attacker's validation images.
        queries: different images the teacher was asked about, search included, without those for validation
            (as many for every attack as there are validation images).
        chosen: temperature and factor on the learning rate.
    """

    name: str
    student: nn.Module
    validation: float
    queries: int
    chosen: Candidate = Candidate(None, 1.0)

    @property
    def metrics(self) -> dict[str, float]:
        """What was chosen and asked, for ``run.record``."""
        chosen = {
            f"chosen {name}": value for name, value in self.chosen._asdict().items() if value is not None
        }
        return {**chosen, "queries": self.queries}


@checked
def run_attacks(
    attacks: Mapping[str, Callable[..., nn.Module]],
    build: Callable[[], nn.Module],
    teacher: nn.Module,
    data: ImageSet,
    validation: ImageSet,
    recipe: Recipe,
    *,
    search: Search | None = None,
    **options: Any,
) -> list[ExtractionResult]:
    """Run every attack on the teacher: same student, same images, same number of steps, same search.

    Args:
        attacks: by name: ``EXTRACTION_ATTACKS`` or a part of it.
        build: ``build() -> fresh student``.
        teacher, data, recipe: as for an attack.
        validation: images the attacker set aside. Where one has no label, the teacher's decision counts.
        search: what temperature and learning rate are chosen among; by default there is no choice.
        options: ``seed``, ``fit``, ``temperature``, ``alpha``, passed on; ``temperature`` is that of all
            attacks when there is no ``search``.
    """
    if not attacks:
        raise KdsecError("there are no attacks to run; choose some from EXTRACTION_ATTACKS")
    if search is None:
        search = Search(temperatures=(options.get("temperature", 4.0),))
    checked = with_decisions(teacher, validation)
    return [
        _tuned(name, attack, build, Oracle(teacher), data, checked, recipe, search, options)
        for name, attack in attacks.items()
    ]


def _tuned(
    name: str,
    attack: Callable[..., nn.Module],
    build: Callable[[], nn.Module],
    oracle: Oracle,
    data: ImageSet,
    checked: ImageSet,
    recipe: Recipe,
    search: Search,
    options: Mapping[str, Any],
) -> ExtractionResult:
    """One attack, at the temperature and learning rate that do best on the images ``checked``."""

    def train(candidate: Candidate, steps: int) -> nn.Module:
        given = (
            dict(options)
            if candidate.temperature is None
            else {**options, "temperature": candidate.temperature}
        )
        how = dataclasses.replace(recipe, lr=candidate.rate * recipe.lr)
        if steps != recipe.total_steps(len(data)):
            how = dataclasses.replace(how, steps=steps)
        return attack(build(), oracle, data, how, **given)

    def score(student: nn.Module) -> float:
        return evaluate(student, checked).accuracy

    candidates = [Candidate(None, rate) for rate in search.rates]
    if isinstance(attack, ExtractionAttack):
        candidates = attack.candidates(search)
    steps = recipe.total_steps(len(data))
    chosen, student = successive_halving(candidates, train, score, steps, search.share)
    return ExtractionResult(name, student, score(student), oracle.queries, chosen)


def best_attack(results: Iterable[ExtractionResult]) -> ExtractionResult:
    """The result of the highest validation accuracy; of equals, the first."""
    results = list(results)
    if not results:
        raise KdsecError("there are no results to choose from; run at least one attack")
    return max(results, key=lambda result: result.validation)
