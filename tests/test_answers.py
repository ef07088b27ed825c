"""A teacher asked once for all of its students: they end where they would have ended, to the bit."""

import dataclasses

import pytest
import torch
from torch import nn

from kdsec.answers import Answers
from kdsec.attacks.stealing import THIEVES
from kdsec.attacks.views import keep_top
from kdsec.cache import Cache
from kdsec.data import Augment
from kdsec.defenses.stingy import Stingy
from kdsec.defenses.transformations import RandomNoise
from kdsec.distill import KD, DecoupledKD, HardLabels, View
from kdsec.train import Recipe, fit
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


def student(digits, loss, answers=None, *, recipe=RECIPE, seed=0, data=None, net="digits-mlp"):
    model = build(digits, net)
    fit(model, data or digits.train.stratified(IMAGES, seed=0), recipe, loss, seed=seed, answers=answers)
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_students_end_where_they_would_have_ended(digits, teacher, precision):
    recipe = dataclasses.replace(RECIPE, precision=precision)
    answers = Answers()
    losses = [
        KD(teacher),
        KD(teacher, temperature=2.0, alpha=1.0),
        HardLabels(teacher),
        DecoupledKD(teacher),
        KD(keep_top(teacher, digits.train, keep=2)),
    ]
    for loss in losses:
        alone = student(digits, loss, recipe=recipe)
        assert torch.equal(alone, student(digits, loss, answers, recipe=recipe))
    assert answers.asked == BATCHES
    assert answers.recalled == BATCHES * (len(losses) - 1)


def test_labels_networks_and_epochs_do_not_matter(digits, images, teacher):
    answers = Answers()
    student(digits, KD(teacher), answers)
    student(digits, KD(teacher, alpha=1.0), answers, data=images.unlabelled(), net="digits-small")
    assert answers.asked == BATCHES
    longer = dataclasses.replace(RECIPE, epochs=3)
    alone = student(digits, KD(teacher), recipe=longer)
    assert torch.equal(alone, student(digits, KD(teacher), answers, recipe=longer))
    assert answers.asked == BATCHES // 2 * 3  # the third epoch is new


@pytest.mark.parametrize("change", ["seed", "batch size", "augmentation", "images", "precision", "teacher"])
def test_other_pixels_or_another_teacher_are_asked_anew(digits, images, teacher, change):
    answers = Answers()
    student(digits, KD(teacher), answers)
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
    with_answers = student(digits, KD(other), answers, **options)
    assert answers.recalled == 0
    assert torch.equal(with_answers, student(digits, KD(other), **options))


def test_a_teacher_trained_further_is_another_one(digits):
    moving, answers = trained(digits), Answers()
    student(digits, KD(moving), answers)
    fit(moving, digits.train, dataclasses.replace(RECIPE, epochs=1))
    again = student(digits, KD(moving), answers)
    assert answers.recalled == 0
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
    answers = Answers()
    start = trained(digits)
    state = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    for _ in range(2):
        start.load_state_dict(state)
        student(digits, Shifting(start), answers)
    # The first batch alone sees the teacher as it was when the training began.
    assert (answers.asked, answers.recalled) == (2 * BATCHES - 1, 1)


class Dropping(nn.Module):
    """A service that drops features even when it answers."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, images):
        return self.teacher(nn.functional.dropout(images, 0.5, training=True))


@pytest.mark.parametrize("kind", ["own generator", "global generator", "training"])
def test_random_teachers_are_asked_every_time(digits, teacher, kind):
    if kind == "own generator":
        random = nn.Sequential(RandomNoise(0.1), teacher).eval()
    else:
        random = Dropping(teacher).train(kind == "training")
    answers = Answers()
    for _ in range(2):
        student(digits, KD(random), answers)
    teacher.eval()
    assert (answers.asked, answers.recalled) == (2 * BATCHES, 0)


def test_changing_an_answer_in_place_changes_nothing_that_is_kept(images, teacher):
    stream = Answers().stream("a stream")
    batch = images.float_images(slice(0, 8))
    first = stream.ask(teacher, batch, 0)
    wanted = first.clone()
    first.zero_()
    stream.ask(teacher, batch, 0).zero_()
    assert torch.equal(stream.ask(teacher, batch, 0), wanted)


def test_no_more_is_kept_than_allowed(digits, teacher):
    answer = 64 * 10 * 4
    answers = Answers(limit=BATCHES * answer)
    student(digits, KD(teacher), answers)
    student(digits, KD(teacher), answers, seed=1)  # takes the place of the first
    student(digits, KD(teacher), answers, seed=1)
    assert (answers.asked, answers.recalled) == (2 * BATCHES, BATCHES)
    student(digits, KD(teacher), answers, seed=0)
    assert answers.asked == 3 * BATCHES
    half = Answers(limit=BATCHES // 2 * answer)
    for _ in range(2):
        student(digits, KD(teacher), half)
    assert (half.asked, half.recalled) == (BATCHES + BATCHES // 2, BATCHES // 2)
    none = Answers(limit=0)
    assert torch.equal(student(digits, KD(teacher), none), student(digits, KD(teacher)))
    assert none.asked == BATCHES


def test_a_view_is_its_teacher_and_layers(digits, teacher):
    view = keep_top(teacher, digits.train, keep=1)
    assert isinstance(view, View) and view[0] is teacher


def test_thieves_through_the_cache_ask_once(digits, images, teacher, tmp_path):
    cache = Cache(tmp_path)
    for name in ("soft labels", "hard labels", "negatives dropped", "class means removed", "sign detected"):
        THIEVES[name](build(digits), teacher, images.unlabelled(), RECIPE, fit=cache.fit)
    assert (cache.answers.asked, cache.answers.recalled) == (BATCHES, 4 * BATCHES)
    THIEVES["soft labels"](build(digits), Stingy(teacher, keep=2), images, RECIPE, fit=cache.fit)
    assert cache.answers.asked == 2 * BATCHES  # another service, another answer
