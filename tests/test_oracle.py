"""A teacher asked once for all of its students: the same students, to the bit, and counted queries."""

import contextlib
import copy
import dataclasses
import random

import numpy as np
import pytest
import torch
from torch import nn

from kdsec.attacks.extraction import EXTRACTION_ATTACKS, run_attacks
from kdsec.attacks.postprocessing import averaged, keep_top
from kdsec.cache import Cache
from kdsec.data import Augment, Loader
from kdsec.defenses.stingy import Stingy
from kdsec.defenses.transformations import RandomNoise
from kdsec.distill import KD, HardLabels
from kdsec.fingerprint import fingerprint
from kdsec.oracle import Memory, Oracle, answer, pixel_hashes, recalling
from kdsec.train import Recipe, fit, predict
from tests.small import build, trained

RECIPE = Recipe(epochs=2, batch_size=64, lr=0.05, augment=Augment(crop=1, flip=True), precision="float32")
IMAGES = 256
BATCHES = IMAGES // 64 * RECIPE.epochs


@pytest.fixture(scope="module")
def images(digits):
    return digits.train.stratified(IMAGES, seed=0)


@pytest.fixture(scope="module")
def teacher(digits):
    return trained(digits)


def student(digits, loss, memory=None, *, recipe=RECIPE, seed=0, data=None, net="digits-mlp"):
    model = build(digits, net)
    with recalling(memory) if memory else contextlib.nullcontext():
        fit(model, data or digits.train.stratified(IMAGES, seed=0), recipe, loss, seed=seed)
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])


# Recalling


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_students_end_where_they_would_have_ended(digits, teacher, precision):
    recipe = dataclasses.replace(RECIPE, precision=precision)
    memory = Memory()
    losses = [
        KD(teacher),
        KD(teacher, temperature=2.0, alpha=1.0),
        HardLabels(teacher),
        KD(keep_top(teacher, digits.train, keep=2)),
    ]
    for loss in losses:
        alone = student(digits, loss, recipe=recipe)
        assert torch.equal(alone, student(digits, loss, memory, recipe=recipe))
    assert (memory.asked, memory.recalled) == (BATCHES, BATCHES * (len(losses) - 1))


def test_labels_networks_and_epochs_do_not_matter(digits, images, teacher):
    memory = Memory()
    student(digits, KD(teacher), memory)
    student(digits, KD(teacher, alpha=1.0), memory, data=images.unlabelled(), net="digits-small")
    assert memory.asked == BATCHES
    longer = dataclasses.replace(RECIPE, epochs=3)
    alone = student(digits, KD(teacher), recipe=longer)
    assert torch.equal(alone, student(digits, KD(teacher), memory, recipe=longer))
    assert memory.asked == BATCHES // 2 * 3  # the third epoch is new


@pytest.mark.parametrize("change", ["seed", "batch size", "augmentation", "images", "precision", "teacher"])
def test_other_pixels_or_another_teacher_are_asked_again(digits, images, teacher, change):
    memory = Memory()
    student(digits, KD(teacher), memory)
    other, options = teacher, {}
    match change:
        case "seed":
            options["seed"] = 1
        case "batch size":
            options["recipe"] = dataclasses.replace(RECIPE, batch_size=32)
        case "augmentation":
            options["recipe"] = dataclasses.replace(RECIPE, augment=Augment(crop=1))
        case "precision":
            options["recipe"] = dataclasses.replace(RECIPE, precision="bf16")
        case "images":
            options["data"] = images.replace(images=images.images.flip(3))
        case "teacher":
            other = build(digits, "digits-cnn", seed=5).eval()
    with_memory = student(digits, KD(other), memory, **options)
    assert memory.recalled == 0
    assert torch.equal(with_memory, student(digits, KD(other), **options))


@pytest.mark.parametrize("how", ["training", "data"])
def test_a_teacher_changed_between_trainings_is_another_one(digits, how):
    moving, memory = trained(digits), Memory()
    student(digits, KD(moving), memory)
    if how == "training":
        fit(moving, digits.train, dataclasses.replace(RECIPE, epochs=1))
    else:  # leaves no trace in the tensor's version
        next(moving.parameters()).data.mul_(1.1)
    again = student(digits, KD(moving), memory)
    assert memory.recalled == 0
    assert torch.equal(again, student(digits, KD(moving)))


@dataclasses.dataclass(frozen=True)
class Shifting:
    """Changes the teacher's last bias after every batch."""

    teacher: nn.Module

    def __call__(self, model, batch):
        value = KD(self.teacher)(model, batch)
        with torch.no_grad():
            list(self.teacher.parameters())[-1][0] += 0.01
        return value


def test_a_teacher_that_changes_during_the_training_is_asked_every_time(digits):
    memory = Memory()
    start = trained(digits)
    state = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    for _ in range(2):
        start.load_state_dict(state)
        student(digits, Shifting(start), memory)
    # The first batch alone sees the teacher as it was when the training began.
    assert (memory.asked, memory.recalled) == (2 * BATCHES - 1, 1)


class Counts(nn.Module):
    """A teacher with side effects of its own, of the kind ``how``."""

    def __init__(self, teacher, how):
        super().__init__()
        self.teacher, self.how = teacher, how
        self.calls, self.log, self.stats = 0, [], {"calls": 0}
        self.register_buffer("counter", torch.zeros(()))
        self.random = np.random.default_rng(0)

    def forward(self, images):
        match self.how:
            case "counts":
                self.calls += 1
            case "logs":
                self.log.append(len(images))
            case "keeps statistics":
                self.stats["calls"] += 1
            case "counts in a buffer":
                self.counter += 1
            case "draws, torch":
                images = nn.functional.dropout(images, 0.5, training=True)
            case "draws, numpy":
                images = images + 0.1 * np.random.rand()
            case "draws, Python":
                images = images + 0.1 * random.random()
            case "draws, own generator":
                images = images + 0.1 * self.random.random()
        return self.teacher(images)


@pytest.mark.parametrize(
    "how",
    [
        *("counts", "logs", "keeps statistics", "counts in a buffer"),
        *("draws, torch", "draws, numpy", "draws, Python", "draws, own generator"),
    ],
)
def test_teachers_with_side_effects_are_asked_every_time(digits, teacher, how):
    memory = Memory()
    for _ in range(2):
        student(digits, KD(Counts(teacher, how).eval()), memory)
    assert (memory.asked, memory.recalled) == (2 * BATCHES, 0)
    student(digits, KD(nn.Sequential(RandomNoise(0.1), teacher).eval()), memory)
    assert memory.recalled == 0


def test_changing_an_answer_in_place_changes_nothing_that_is_kept(images, teacher):
    batch = images.float_images(slice(0, 8))
    with torch.no_grad(), recalling(Memory()) as memory:
        first = memory.answer(teacher, batch)
        wanted = first.clone()
        first.zero_()
        memory.answer(teacher, batch).zero_()
        assert torch.equal(memory.answer(teacher, batch), wanted)


def test_no_more_is_kept_than_allowed(digits, teacher):
    answer = 64 * 10 * 4
    memory = Memory(limit=BATCHES * answer)
    other = build(digits, "digits-cnn", seed=5).eval()
    for each, recalled in ((teacher, 0), (other, 0), (other, BATCHES), (teacher, BATCHES)):
        student(digits, KD(each), memory)
        assert memory.recalled == recalled  # the second took the place of the first
    half = Memory(limit=BATCHES // 2 * answer)
    for _ in range(2):
        student(digits, KD(teacher), half)
    assert (half.asked, half.recalled) == (BATCHES + BATCHES // 2, BATCHES // 2)
    none = Memory(limit=0)
    assert torch.equal(student(digits, KD(teacher), none), student(digits, KD(teacher)))
    assert none.asked == BATCHES


def test_attacks_through_the_cache_ask_once(digits, images, teacher, tmp_path):
    cache = Cache(tmp_path)
    for name in ("soft labels", "hard labels", "negatives dropped", "class means removed", "sign detected"):
        EXTRACTION_ATTACKS[name](build(digits), teacher, images.unlabelled(), RECIPE, fit=cache.fit)
    assert (cache.answers.asked, cache.answers.recalled) == (BATCHES, 4 * BATCHES)
    EXTRACTION_ATTACKS["soft labels"](build(digits), Stingy(teacher, keep=2), images, RECIPE, fit=cache.fit)
    assert cache.answers.asked == 2 * BATCHES  # another service, another answer


# Counting


def test_the_same_pixels_are_one_query_and_other_pixels_another(images, teacher):
    oracle = Oracle(teacher)
    batch = images.float_images(slice(0, 10))
    for shown, queries in ((batch, 10), (batch, 10), (batch[:4].contiguous(), 10), (batch.flip(3), 20)):
        with torch.no_grad():
            oracle(shown)
        assert oracle.queries == queries
    assert torch.equal(oracle.query(images.subset(slice(0, 10))), predict(teacher, batch))
    further = keep_top(oracle, images, keep=2)
    further.query(images.subset(slice(0, 30)))
    assert oracle.queries == further.queries == 40
    further(batch + 0.5).sum().backward()  # who looks inside asks nothing
    assert oracle.queries == 40


def test_hashes_tell_images_apart_whatever_their_order_in_memory():
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(500, 3, 8, 8, generator=generator).mul(255).round() / 255
    changed = rows.clone()
    changed[:, 0, 0, 0] += 1 / 255
    hashes = pixel_hashes(torch.cat([rows, changed]))
    assert len(hashes.unique()) == 1000
    assert torch.equal(pixel_hashes(rows), pixel_hashes(rows.contiguous(memory_format=torch.channels_last)))


def test_the_queries_of_an_attack_are_its_different_views_cached_or_not(digits, images, teacher, tmp_path):
    """By hand: the un-augmented images that the attack looks at, and every augmented view of the training."""
    own = images.unlabelled()
    loader = Loader(own, RECIPE.batch_size, augment=RECIPE.augment, seed=3)
    views = {
        image.numpy().tobytes() for _ in range(RECIPE.epochs) for batch in loader for image in batch.images
    }
    plain = [image.numpy().tobytes() for image in own.float_images()]
    wanted = {
        "soft labels": len(views),
        "mean removed": len(views | set(plain)),
        "features": len(set(plain)),
    }
    attacks = {name: EXTRACTION_ATTACKS[name] for name in (*wanted, "averaged over shifts")}
    cache = Cache(tmp_path)
    counts = []
    for _ in range(2):
        results = run_attacks(
            attacks, lambda: build(digits), teacher, own, digits.val, RECIPE, seed=3, fit=cache.fit
        )
        counts.append({result.name: result.queries for result in results})
    assert cache.hits == len(attacks)
    assert counts[0] == counts[1]
    assert {name: counts[0][name] for name in wanted} == wanted
    assert counts[0]["averaged over shifts"] > 2 * len(views)


def test_what_was_asked_is_no_part_of_what_an_oracle_is(images, teacher):
    oracle = averaged(teacher, images)
    before = fingerprint(oracle)
    predict(oracle, images)
    assert fingerprint(oracle) == before
    assert oracle.teacher.queries > 0 == copy.deepcopy(oracle).teacher.queries


HIDDEN = {
    "clock": lambda: __import__("time").perf_counter_ns() % 1000,
    "system": lambda: int.from_bytes(__import__("os").urandom(2), "little"),
    "a fresh generator": lambda: float(np.random.default_rng().random()),
}


@pytest.mark.parametrize("source", HIDDEN)
def test_answers_that_differ_for_hidden_reasons_are_not_recalled(source):
    """No shared stream moves; the first batch is asked twice."""

    class Noisy(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :3] + HIDDEN[source]()

    memory = Memory()
    for _ in range(2):
        with recalling(memory):
            answer(Noisy(), torch.rand(4, 1, 4, 4))
    assert memory.recalled == 0
    teacher, images = Noisy(), torch.rand(4, 1, 4, 4)
    for _ in range(3):
        with recalling(memory):
            answer(teacher, images)
    assert memory.recalled == 0
