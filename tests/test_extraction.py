"""Thieves: each uses what it says and no more, all learn, and none can have seen the test images."""

import inspect
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdsec import models
from kdsec.attacks import extraction
from kdsec.attacks.extraction import (
    EXTRACTION_ATTACKS,
    ExtractionResult,
    best_attack,
    run_attacks,
    with_decisions,
)
from kdsec.attacks.postprocessing import (
    FLOOR,
    Averaged,
    class_mean_removed,
    keep_top,
    linear_map,
    mean_removed,
    postprocess,
)
from kdsec.attacks.skeptical import Branched, SkepticalLoss
from kdsec.cache import Cache
from kdsec.data import UNLABELLED, Batch
from kdsec.defenses.stingy import Stingy
from kdsec.distill import KD, HardLabels
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint
from kdsec.train import Recipe, evaluate, fit, predict
from tests.small import build, trained

RECIPE = Recipe(epochs=6, batch_size=64, lr=0.1, precision="float32")
SHORT = Recipe(epochs=1, batch_size=64, lr=0.05, precision="float32")


@pytest.fixture(scope="module")
def teacher(digits):
    return trained(digits)


def few_labels(images, count=100):
    labels = images.labels.clone()
    labels[count:] = UNLABELLED
    return images.replace(labels=labels)


# All of them


@pytest.mark.parametrize("name", EXTRACTION_ATTACKS)
def test_every_thief_learns_without_a_label_or_from_few_where_it_needs_them(digits, teacher, name):
    student, before, thief = build(digits), fingerprint(teacher), EXTRACTION_ATTACKS[name]
    own = few_labels(digits.train) if thief.needs_labels else digits.train.unlabelled()
    stolen = thief(student, teacher, own, RECIPE, temperature=1.0, alpha=0.9 if thief.needs_labels else 1.0)
    assert stolen is student and not student.training
    assert evaluate(student, digits.test).accuracy > 0.85
    assert fingerprint(teacher) == before and not teacher.training


@pytest.mark.parametrize("name", EXTRACTION_ATTACKS)
def test_every_thief_can_be_set_on_every_answer(digits, teacher, name):
    """Zero probabilities, and a service that returns real minus infinity, end in no NaN."""

    class Infinite(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = teacher

        def forward(self, images):
            logits = teacher(images)
            return logits.masked_fill(logits < logits.topk(2).values[:, 1:], -torch.inf)

    for answers in (Stingy(teacher, 2), Infinite().eval()):
        if isinstance(answers, Infinite) and name in ("soft labels", "skeptical student"):
            continue  # those take the logits as they come
        student = EXTRACTION_ATTACKS[name](build(digits), answers, few_labels(digits.train), SHORT)
        assert predict(student, digits.val).isfinite().all()


def test_same_seed_same_student(digits, teacher):
    for name in ("soft labels", "skeptical student", "linear map"):
        first, second = (
            fingerprint(EXTRACTION_ATTACKS[name](build(digits), teacher, digits.train, SHORT, seed=3))
            for _ in range(2)
        )
        assert first == second


def test_a_cache_can_train(digits, teacher, tmp_path):
    cache = Cache(folder=tmp_path)
    for name in ("negatives dropped", "skeptical student"):
        first, second = (
            EXTRACTION_ATTACKS[name](build(digits), teacher, few_labels(digits.train), SHORT, fit=cache.fit)
            for _ in range(2)
        )
        assert fingerprint(first) == fingerprint(second)
        plain = EXTRACTION_ATTACKS[name](build(digits), teacher, few_labels(digits.train), SHORT)
        assert torch.allclose(predict(plain, digits.val), predict(first, digits.val), atol=1e-5)
    assert (cache.hits, cache.misses) == (2, 2)
    EXTRACTION_ATTACKS["top 2"](build(digits), teacher, few_labels(digits.train), SHORT, fit=cache.fit)
    assert cache.misses == 3  # another view is another entry


# What they see


def test_no_thief_has_a_place_for_test_images():
    for function in (extraction.ExtractionAttack.__call__, run_attacks, best_attack):
        assert not [name for name in inspect.signature(function).parameters if "test" in name]


def test_thieves_see_their_own_images_and_labels_only(digits, teacher):
    """Every image the teacher is asked about is the thief's own, and test labels make no difference."""
    asked = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = teacher

        def forward(self, images):
            asked.append(images.detach().clone())
            return teacher(images)

    own, validation = few_labels(digits.train), digits.val.unlabelled()
    thieves = {name: thief for name, thief in EXTRACTION_ATTACKS.items() if name != "averaged over shifts"}
    thefts = run_attacks(thieves, lambda: build(digits), Spy().eval(), own, validation, SHORT)
    pixels = {image.numpy().tobytes() for image in torch.cat(asked).mul(255).round().byte()}
    known = {image.contiguous().numpy().tobytes() for image in torch.cat([own.images, validation.images])}
    secret = {image.contiguous().numpy().tobytes() for image in digits.test.images} - known
    assert secret and pixels <= known and not pixels & secret
    assert all(isinstance(theft.student, nn.Module) for theft in thefts)


def test_unknown_labels_are_never_read(digits, teacher):
    """Labels that the thief does not have cannot change the student."""
    own = few_labels(digits.train)
    trained = [
        fingerprint(EXTRACTION_ATTACKS["linear map"](build(digits), teacher, images, SHORT))
        for images in (own, few_labels(digits.train.replace(labels=_but(digits.train.labels, 100))))
    ]
    assert trained[0] == trained[1]


def _but(labels, count):
    """The first labels as they are, all others wrong."""
    wrong = (labels + 1) % 10
    wrong[:count] = labels[:count]
    return wrong


def test_soft_and_hard_labels_are_the_losses_of_that_name(digits, teacher):
    pairs = {"soft labels": KD(teacher, 2.0, 0.5), "hard labels": HardLabels(teacher)}
    for name, loss in pairs.items():
        plain = build(digits)
        fit(plain, digits.train, SHORT, loss, seed=1)
        stolen = EXTRACTION_ATTACKS[name](
            build(digits), teacher, digits.train, SHORT, temperature=2.0, alpha=0.5, seed=1
        )
        assert fingerprint(plain) == fingerprint(stolen)


# Views


def test_keep_top_keeps_the_largest_and_levels_the_rest(digits, teacher):
    honest = predict(teacher, digits.val).log_softmax(1)
    for keep in (1, 3):
        seen = predict(keep_top(teacher, digits.train, keep), digits.val)
        assert torch.allclose(seen.exp().sum(1), torch.ones(len(seen)), atol=1e-4)
        inside = torch.zeros_like(seen, dtype=torch.bool).scatter(1, honest.topk(keep).indices, True)
        assert torch.allclose(seen[inside], honest[inside], atol=1e-4)
        rest = seen[~inside].view(len(seen), -1)
        assert torch.allclose(rest, rest[:, :1].expand_as(rest))
        assert torch.equal(seen.argmax(1), honest.argmax(1))


def test_mean_removed_has_mean_zero(digits, teacher):
    seen = predict(mean_removed(teacher, digits.train), digits.train)
    assert seen.mean(0).abs().max() < 1e-3
    again = predict(postprocess(teacher), digits.train)
    assert torch.allclose(again - seen, (again - seen)[:1].expand_as(seen), atol=1e-4)


def test_class_means_removed_levels_the_others_and_keeps_the_decision(digits, teacher):
    honest = predict(postprocess(teacher), digits.train)
    seen = predict(class_mean_removed(teacher, digits.train), digits.train)
    decided = honest.argmax(1)
    assert torch.allclose(seen.gather(1, decided[:, None]), honest.gather(1, decided[:, None]))
    for k in range(10):
        profile = seen[decided == k].mean(0)
        others = torch.cat([profile[:k], profile[k + 1 :]])
        assert others.max() - others.min() < 1e-2
        gap = honest[decided == k].mean(0)
        assert others.mean().item() == pytest.approx(
            torch.cat([gap[:k], gap[k + 1 :]]).mean().item(), abs=1e-2
        )


def test_a_bias_on_all_answers_is_removed(digits, teacher):
    """A teacher that adds the same vector to every answer misleads nobody who takes the mean off."""

    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = teacher

        def forward(self, images):
            return teacher(images) + 3 * torch.arange(10.0).cos()

    seen, honest = (
        predict(mean_removed(each, digits.train), digits.val) for each in (Biased().eval(), teacher)
    )
    assert (
        predict(Biased().eval(), digits.val).log_softmax(1) - predict(postprocess(teacher), digits.val)
    ).abs().max() > 2
    centred = (seen - seen.mean(1, keepdim=True)) - (honest - honest.mean(1, keepdim=True))
    assert centred.abs().max() < 1e-2


def test_linear_map_undoes_a_permutation(digits, teacher):
    """Answers dealt to the wrong classes are put right with a hundred labels."""

    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = teacher

        def forward(self, images):
            return teacher(images).roll(1, dims=1)

    rotated = Rotated().eval()
    assert evaluate(rotated, digits.test).accuracy < 0.2
    assert evaluate(linear_map(rotated, few_labels(digits.train), ridge=0.001), digits.test).accuracy > 0.9
    before = torch.get_rng_state()
    linear_map(teacher, few_labels(digits.train))
    assert torch.equal(before, torch.get_rng_state())


def test_averaging_asks_five_times_and_averages():
    calls = []

    class Sum(nn.Module):
        def forward(self, images):
            calls.append(len(images))
            return torch.stack([images.sum((1, 2, 3)), images[:, 0, 0, 0]], dim=1)

    images = torch.rand(3, 1, 4, 4)
    answer = Averaged(Sum())(images)
    padded = F.pad(images, (1, 1, 1, 1))
    moved = [padded[:, :, t : t + 4, c : c + 4] for t, c in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))]
    wanted = sum(Sum()(each).log_softmax(1) for each in moved) / 5
    assert calls[0] == 15 and torch.allclose(answer, wanted, atol=1e-5)


def test_views_see_nothing_below_the_floor(digits, teacher):
    assert predict(postprocess(Stingy(teacher, 1)), digits.val).min() == FLOOR


# The skeptical student and the white-box thief


def test_skeptical_loss_is_its_equation(digits, teacher):
    branched = Branched(build(digits), digits.train, seed=0).eval()
    batch = Batch(digits.train.float_images(slice(0, 20)), digits.train.labels[:20], torch.arange(20))
    own, late, early = branched.answers(batch.images)
    assert torch.allclose(own, branched.student(batch.images))

    def kl(p, q):
        p, q = (p / 3).softmax(1), (q / 3).softmax(1)
        return (p * (p / q).log()).sum(1).mean()

    def ce(logits):
        return F.cross_entropy(logits, batch.labels)

    wanted = (
        0.8 * 9 * kl(teacher(batch.images), early)
        + 0.2 * ce(early)
        + 0.3 * kl(own, late)
        + 0.7 * ce(late)
        + ce(own)
    )
    assert SkepticalLoss(teacher, 3.0, 0.8)(branched, batch).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_skeptical_student_needs_stages(digits, teacher):
    with pytest.raises(KdsecError, match="at least three stages"):
        EXTRACTION_ATTACKS["skeptical student"](build(digits, "digits-mlp"), teacher, digits.train, SHORT)


def test_feature_thief_takes_the_wrapper_off_or_says_it_cannot(digits, teacher):
    plain, wrapped = (
        EXTRACTION_ATTACKS["features"](build(digits), each, digits.train.unlabelled(), SHORT)
        for each in (teacher, Stingy(teacher, 2))
    )
    assert fingerprint(plain) == fingerprint(wrapped)
    with pytest.raises(KdsecError, match="this Sequential has not"):
        EXTRACTION_ATTACKS["features"](build(digits), nn.Sequential(teacher), digits.train, SHORT)


def test_decisions_fill_in_missing_labels_only(digits, teacher):
    filled = with_decisions(teacher, few_labels(digits.train, 50))
    assert torch.equal(filled.labels[:50], digits.train.labels[:50])
    assert torch.equal(filled.labels[50:], predict(teacher, digits.train).argmax(1)[50:])


# Choosing


def test_the_best_thief_is_chosen_on_validation_images(digits, teacher):
    soft = EXTRACTION_ATTACKS["soft labels"]
    thieves = {f"T={tau:g}": partial(soft, temperature=tau) for tau in (1.0, 2.0, 4.0)}
    thefts = run_attacks(thieves, lambda: build(digits), teacher, digits.train, digits.val, SHORT, seed=2)
    for theft in thefts:
        assert theft.validation == evaluate(theft.student, digits.val).accuracy
    assert len({fingerprint(theft.student) for theft in thefts}) == 3
    assert best_attack(thefts).validation == max(theft.validation for theft in thefts)
    same = [
        ExtractionResult(name, nn.Identity(), accuracy, 0)
        for name, accuracy in (("a", 0.5), ("b", 0.7), ("c", 0.7))
    ]
    assert best_attack(same).name == "b"


def test_without_validation_labels_agreement_counts(digits, teacher):
    thefts = run_attacks(
        {"soft": EXTRACTION_ATTACKS["soft labels"]},
        lambda: build(digits),
        teacher,
        digits.train.unlabelled(),
        digits.val.unlabelled(),
        SHORT,
    )
    agreement = predict(thefts[0].student, digits.val).argmax(1) == predict(teacher, digits.val).argmax(1)
    assert thefts[0].validation == pytest.approx(agreement.float().mean().item())


# Bad input


def test_other_class_count(digits, teacher):
    student = models.build("digits-small", 7, (1, 8, 8), seed=0)
    with pytest.raises(KdsecError, match="the student has 7 classes, the teacher 10 and digits 10") as error:
        EXTRACTION_ATTACKS["soft labels"](student, teacher, digits.train, SHORT)
    assert "\n" not in str(error.value)
    with pytest.raises(KdsecError, match="the student has 10 classes, the teacher 7"):
        EXTRACTION_ATTACKS["hard labels"](build(digits), student, digits.train, SHORT)


def test_linear_map_without_labels(digits, teacher):
    with pytest.raises(KdsecError, match="needs some labelled images"):
        EXTRACTION_ATTACKS["linear map"](build(digits), teacher, digits.train.unlabelled(), SHORT)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError(),
    ],
)
def test_a_student_larger_than_memory(digits, teacher, error):
    def full(*_, **__):
        raise error

    with pytest.raises(
        KdsecError, match=r"out of memory with a student of [\d,]+ parameters and batches of 64"
    ):
        EXTRACTION_ATTACKS["soft labels"](build(digits), teacher, digits.train, SHORT, fit=full)


def test_other_errors_are_not_hidden(digits, teacher):
    def broken(*_, **__):
        raise RuntimeError("something else broke")

    with pytest.raises(RuntimeError, match="something else broke"):
        EXTRACTION_ATTACKS["soft labels"](build(digits), teacher, digits.train, SHORT, fit=broken)
