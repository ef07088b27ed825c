"""The audit itself: every attack of the pool at every budget, on the model as it is and behind each defence.

**What a thief has.** A number of the user's images without labels. Each is asked once and unchanged; the
answers are stored, and a copy is trained from the stored answers under augmentation. A tenth of the images is
set aside to choose the temperature and the attack, by agreement with the answers: the budget counts all.

**Order.** A *block* is one budget and one seed with all ways of serving: first the plain attacks, smallest
budget first, then the rest of the pool, then further seeds. Only finished blocks are reported, so all ways of
serving have met the same attacks. Trainings are kept by content (``kdsec.cache``): an audit that was stopped
goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec import models
from kdsec.attacks.extraction import (
    EXTRACTION_ATTACKS,
    POOL,
    RECOVERY,
    ExtractionAttack,
    ExtractionResult,
    labelled,
    run_attacks,
)
from kdsec.attacks.tuning import Search
from kdsec.audit.asking import HINT, answers, ask, distinct, quiet_training, say, shrunk
from kdsec.audit.copies import Stored, check_student, copy_network, on_stored, recipe
from kdsec.audit.loading import Target
from kdsec.audit.serving import AS_IS, BY_HAND, LABELS, Serving, cost, serving
from kdsec.cache import Cache
from kdsec.data import UNLABELLED, ImageSet
from kdsec.errors import KdsecError, check_choice, check_number
from kdsec.fingerprint import fingerprint
from kdsec.train import predict

PLAIN = ("soft labels", "smoothed hard labels")
REST = tuple(name for name in POOL if name not in (*PLAIN, RECOVERY))
DECISIONS = ("smoothed hard labels", "hard labels")  # all that there is to do with labels
# Both temperatures are trained to the end: short trainings often chose the worse one, and a leak was missed.
SEARCH = Search(temperatures=(1.0, 4.0), share=2.0)
MOST_TEST = 2000


@dataclass(frozen=True)
class Plan:
    """What an audit tries.

    Attributes:
        budgets: numbers of queries, validation included; those beyond the images are left out.
        defences: see ``kdsec.audit.serving``.
        student: name of the copies' network; None chooses by the images' size.
        seeds: of the thief's images, initial weights and training.
        minutes: begin no block that would end later; None tries all.
        flip: mirror images in training; for photographs, not for digits or signs.
        device: where copies are trained.
    """

    budgets: tuple[int, ...] = (500, 2000, 10_000)
    defences: tuple[str, ...] = ("top-1", "top-3", "round-1", LABELS)
    student: str | None = None
    seeds: int = 3
    minutes: float | None = None
    flip: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        for budget in self.budgets:
            check_number("budgets", budget, least=40, whole=True)
        if not self.budgets:
            raise KdsecError("budgets are empty; give some, such as 500,2000")
        check_number("seeds", self.seeds, least=1, below=100, whole=True)
        if self.student is not None:
            check_choice("student", self.student, models.names())
        if self.minutes is not None:
            check_number("minutes", self.minutes, above=0)


class Block(NamedTuple):
    """One budget and one seed, all ways of serving, these attacks."""

    seed: int
    budget: int
    attacks: tuple[str, ...]


@dataclass
class Audit:
    """An audit under way: what it works on, and what it has found."""

    name: str  # of the model
    plan: Plan  # with the budgets that fit the images
    thief: ImageSet  # as many as the largest budget, without labels, on the plan's device
    test: ImageSet  # images that only measure
    servings: list[Serving]  # ways of answering; their rows: the thief's images, then the test images
    labels: Tensor | None  # the truth of all of them
    notes: list[str]  # what a reader must know of the model and the images
    costs: dict[str, dict[str, float | None]] = field(default_factory=dict)  # by way of serving
    rows: list[dict[str, Any]] = field(default_factory=list)  # one a copy
    done: list[Block] = field(default_factory=list)
    left: list[Block] = field(default_factory=list)
    seconds: float = 0.0  # of training, that of earlier runs included

    @property
    def decisions(self) -> Tensor:
        """Of the model as it is, for the test images."""
        return self.servings[0].table[len(self.thief) :].argmax(1)


def blocks(plan: Plan) -> list[Block]:
    """What is tried, in order."""
    first = [Block(0, budget, attacks) for attacks in (PLAIN, REST) for budget in plan.budgets]
    return first + [Block(seed, each, PLAIN + REST) for seed in range(1, plan.seeds) for each in plan.budgets]


def audit(
    target: Target,
    images: ImageSet,
    labels: Callable[[int], Tensor | None],
    plan: Plan,
    cache: Cache | None = None,
    protected: Sequence[Target] = (),
    report: Callable[[Audit], None] = lambda _: None,
) -> Audit:
    """Attack ``target`` and all its ways of serving.

    Args:
        target: the model.
        images: those a thief could have; labels in it are not looked at.
        labels: ``labels(classes)``: the truth for ``images``, or None.
        plan: what is tried.
        cache: keeps answers and trainings; ``KDSEC_CACHE`` by default.
        protected: versions of the model that were trained to be copied badly.
        report: called after each block.

    Raises:
        KdsecError: a model that gives no logits or probabilities, too few images, one class only.
    """
    cache = cache or Cache()
    with quiet_training():
        state = prepare(target, images, labels, plan, cache, protected)
        todo, work, before = blocks(state.plan), 0.0, cache.seconds
        for place, block in enumerate(todo):
            coming, rate = _work(state, block), state.seconds / work if work else 0.0
            if plan.minutes is not None and place and state.seconds + coming * rate > 60 * plan.minutes:
                break
            ahead = rate * sum(_work(state, each) for each in todo[place:])
            guess = f"; all that is left: about {max(1, round(ahead / 60))} min" if work else ""
            say(f"block {place + 1} of {len(todo)}: {block.budget:,} queries, seed {block.seed}{guess}")
            _run(state, block, cache)
            work += coming
            state.done.append(block)
            state.left, state.seconds = todo[place + 1 :], cache.seconds - before
            report(state)
    return state


def prepare(
    target: Target,
    images: ImageSet,
    labels: Callable[[int], Tensor | None],
    plan: Plan,
    cache: Cache,
    protected: Sequence[Target] = (),
) -> Audit:
    """Split the images, ask the model, and post-process its answers; see ``audit``."""
    notes = []
    index = distinct(images.images)
    if len(index) < len(images):
        notes.append(f"{len(images) - len(index):,} images that occur twice were left out.")
    order = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))]
    held = min(MOST_TEST, len(order) // 4)
    fitting = tuple(each for each in sorted(set(plan.budgets)) if each <= len(order) - held)
    if not fitting:
        raise KdsecError(
            f"{len(order):,} different images, less {held:,} that are set aside to measure with, are fewer "
            f"than the smallest budget of {min(plan.budgets):,}; give more images or smaller --budgets"
        )
    if out := sorted(set(plan.budgets) - set(fitting)):
        notes.append(f"Budgets of {', '.join(f'{each:,}' for each in out)}: too few images, not tried.")
    chosen = torch.cat([order[held : held + max(fitting)], order[:held]])
    pixels = images.images[chosen]
    every = _look([target, *protected], pixels, plan, images.name)
    truth = labels(every.num_classes)
    truth = None if truth is None else truth[chosen]
    tables = [answers(each, pixels, cache, notes) for each in (target, *protected)]
    honest = tables[0]
    if len(honest.argmax(1).unique()) < 2:
        raise KdsecError("the model gives every image the same class; give images of at least two classes")
    servings = [Serving(AS_IS, honest)]
    servings += [serving(name, honest) for name in plan.defences if ".py:" not in name]
    if LABELS not in plan.defences:
        servings.append(serving(LABELS, honest))
    servings += [Serving(each.name, table) for each, table in zip(protected, tables[1:], strict=True)]
    budget, plan = max(fitting), dataclasses.replace(plan, budgets=fitting)
    state = Audit(
        target.name,
        plan,
        every.subset(slice(0, budget)),
        every.subset(slice(budget, None)),
        servings,
        truth,
        notes,
    )
    last = slice(budget, None)
    known = None if truth is None else truth[last]
    for served in servings:
        part = dataclasses.replace(served, table=served.table[last])
        state.costs[served.name] = cost(part, honest[last], known)
    accuracy = state.costs[AS_IS]["accuracy"]
    if accuracy is not None and accuracy < 2 / honest.shape[1]:
        notes.append(
            f"The model is right on {accuracy:.1%} of the images, near chance: are the labels in its order, "
            "and are --mean and --std what it expects?"
        )
    return state


def _look(targets: Sequence[Target], pixels: Tensor, plan: Plan, name: str) -> ImageSet:
    """The images as copies see them. Two are asked about: mistakes show before the long wait."""
    first, *others = [ask(each, pixels[:2], HINT) for each in targets]
    for each, look in zip(targets[1:], others, strict=True):
        if look.shape != first.shape:
            raise KdsecError(f"{each.name} has {look.shape[1]} classes and the model {first.shape[1]}")
    for defence in plan.defences:
        if ".py:" not in defence:
            serving(defence, first)
    shown = shrunk(pixels).to(plan.device)
    classes = tuple(map(str, range(first.shape[1])))
    every = ImageSet(shown, torch.full((len(shown),), UNLABELLED, device=plan.device), classes, name)
    check_student(plan.student, every.subset(slice(0, 64)))
    return every


def _run(state: Audit, block: Block, cache: Cache) -> None:
    """All copies of one block, added to ``state.rows``."""
    thief, budget = state.thief, block.budget
    order = torch.randperm(len(thief), generator=torch.Generator().manual_seed(block.seed))[:budget]
    mine = thief.subset(order)
    held = max(budget // 10, min(20, budget // 2))
    train, check = mine.subset(slice(held, None)), mine.subset(slice(0, held))
    how = recipe(thief.shape, len(train), state.plan.flip)

    def build() -> nn.Module:
        return copy_network(state.plan.student, mine, block.seed)

    made: dict[Any, ExtractionResult] = {}
    for served, name, attack, key in _tried(state, block):
        if key not in made:
            say(f"  {served}: {name}", end="\r")
            if served == BY_HAND:
                assert state.labels is not None
                known = mine.replace(labels=state.labels[: len(thief)][order].to(state.plan.device))
                parts = known.subset(slice(held, None)), known.subset(slice(0, held))
                answer = 10.0 * F.one_hot(known.labels, thief.num_classes)
            else:
                table = next(each.table for each in state.servings if each.name == served)
                parts, answer = (train, check), table[: len(thief)][order]
            rest: dict[str, Any] = {"search": SEARCH, "seed": block.seed, "alpha": 1.0, "fit": cache.fit}
            teacher = Stored(mine.images, answer)
            (made[key],) = run_attacks({name: attack}, build, teacher, *parts, how, **rest)
        _record(state, block, served, made[key])


def _tried(state: Audit, block: Block) -> Iterator[tuple[str, str, ExtractionAttack, Any]]:
    """Way of serving, name and attack of each copy of a block, and a key: equal for equal trainings."""
    if state.labels is not None and PLAIN[0] in block.attacks:
        yield BY_HAND, BY_HAND, labelled(), BY_HAND
    for each in state.servings:
        decisions = fingerprint(each.table.argmax(1))
        for name in block.attacks:
            attack = on_stored(EXTRACTION_ATTACKS[name])
            if name in DECISIONS:
                yield each.name, name, attack, (name, decisions)
            elif each.name != LABELS:
                yield each.name, name, attack, (name, each.name)


def _work(state: Audit, block: Block) -> float:
    """Training steps of a block; a choice of temperature costs half a training more."""
    steps = recipe(state.thief.shape, block.budget).total_steps(block.budget)
    different = {key: attack for _, _, attack, key in _tried(state, block)}
    return steps * sum(1.5 if len(each.candidates(SEARCH)) > 1 else 1.0 for each in different.values())


def _record(state: Audit, block: Block, served: str, found: ExtractionResult) -> None:
    decided = predict(found.student, state.test).argmax(1).cpu()
    agrees = decided == state.decisions
    truth = None if state.labels is None else state.labels[len(state.thief) :]
    state.rows.append(
        {
            "budget": block.budget,
            "seed": block.seed,
            "served": served,
            "attack": found.name,
            "validation": found.validation,
            "agreement": agrees.float().mean().item(),
            "accuracy": None if truth is None else (decided == truth).float().mean().item(),
            "temperature": found.chosen.temperature,
            "agrees": agrees,  # image by image; not written to a file
        }
    )
