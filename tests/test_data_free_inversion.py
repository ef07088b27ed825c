"""Images drawn by moving pixels: what they are drawn for, and that no real one is needed."""

import inspect

import pytest
import torch
from torch import nn

from kdsec import models
from kdsec.attacks.data_free_fast import Statistics
from kdsec.attacks.data_free_inversion import Inversion
from kdsec.data import UNLABELLED, Augment, ImageSet
from kdsec.distill import KD
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint
from kdsec.train import Recipe, evaluate, fit, predict
from tests.small import build, trained

SHAPE = (1, 8, 8)
SHORT = Inversion(batches=2, batch_size=40, steps=5, jitter=1)
LONG = Inversion(batches=2, batch_size=250, steps=80, lr=0.2, jitter=0)


@pytest.fixture(scope="module")
def teacher(digits):
    return trained(digits)


@pytest.fixture(scope="module")
def drawn(teacher):
    return LONG(teacher, SHAPE)


def distance(teacher, images):
    with Statistics(teacher, momentum=0.0) as statistics:
        teacher(images.float() / 255)
        return statistics.distance().item()


def student_of(digits, teacher, images):
    pool = ImageSet(images, torch.full((len(images),), UNLABELLED), digits.train.classes, "pool")
    recipe = Recipe(epochs=20, batch_size=64, lr=0.05, augment=Augment(crop=1), precision="float32")
    student = build(digits, seed=1)
    fit(student, pool, recipe, KD(teacher, 4.0, 1.0))
    return evaluate(student, digits.test).accuracy


def test_a_student_learns_from_inverted_images_and_not_from_noise(digits, teacher, drawn):
    noise = torch.randint(256, drawn.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    learnt, guessed = (student_of(digits, teacher, images) for images in (drawn, noise))
    assert learnt > 0.9 and learnt > guessed + 0.05, (learnt, guessed)


def test_images_have_the_statistics_and_the_classes_asked_for(digits, teacher, drawn):
    noise = torch.randint(256, drawn.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    real = distance(teacher, digits.test.images)
    assert real < distance(teacher, drawn) < 0.1 * distance(teacher, noise)
    wanted = torch.arange(250).repeat(2) % 10
    assert (predict(teacher, drawn).argmax(1) == wanted).float().mean() > 0.9


def test_without_the_class_term_the_classes_are_not_the_wanted_ones(teacher):
    plan = Inversion(batches=1, batch_size=100, steps=40, lr=0.2, jitter=0, class_weight=0.0)
    said = predict(teacher, plan(teacher, SHAPE)).argmax(1)
    assert (said == torch.arange(100) % 10).float().mean() < 0.4


def test_there_is_no_place_for_images():
    assert list(inspect.signature(Inversion.__call__).parameters) == ["self", "teacher", "shape", "seed"]
    for setting in inspect.signature(Inversion).parameters.values():
        assert not any(kind in str(setting.annotation) for kind in ("Tensor", "ImageSet"))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 10, 14)])
def test_as_many_images_as_asked_for_of_any_size(shape):
    teacher = models.build("digits-cnn", 4, shape, mean=[0.5] * shape[0], std=[0.2] * shape[0], seed=0)
    images = SHORT(teacher, shape)
    assert images.shape == (80, *shape) and images.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in images}) == 80


def test_the_teacher_is_only_asked(teacher):
    before, numbers = fingerprint(teacher), torch.get_rng_state()
    first, again, other = (fingerprint(SHORT(teacher, SHAPE, seed=seed)) for seed in (3, 3, 4))
    assert first == again != other
    assert fingerprint(teacher) == before and not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert torch.equal(numbers, torch.get_rng_state())


def test_a_teacher_without_batch_normalisation():
    with pytest.raises(KdsecError, match="no batch normalisation"):
        SHORT(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), SHAPE)


def test_an_explosion_names_the_rate(teacher):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = teacher

        def forward(self, images):
            return self.network(images) * (float("inf") if len(images) > 2 else 1.0)  # not on the trial batch

    with pytest.raises(KdsecError, match=r"lower lr \(now 0.05\)"):
        SHORT(Broken(), SHAPE)
