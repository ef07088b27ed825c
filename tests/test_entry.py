"""Every public entry: each kind of wrong argument is one line, and no question changes a network."""

from __future__ import annotations

import copy
import inspect
import math
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdsec import data, entry, layered, models, pgd, train
from kdsec.attacks import adaptive, backdoor, gradient_masking, mimicry, poisoning, similarity
from kdsec.attacks.constrained_search import Linf
from kdsec.attacks.crafting import Crafting, craft
from kdsec.attacks.extraction import EXTRACTION_ATTACKS, with_decisions
from kdsec.attacks.recovery import fit_recovery
from kdsec.attacks.triggers import trigger
from kdsec.data import UNLABELLED, Augment, ImageSet
from kdsec.defenses import backdoor_detection as detection
from kdsec.defenses import differentiators, rejection
from kdsec.defenses.backdoor_removal import prune_dormant
from kdsec.defenses.sparse_teacher import perturb
from kdsec.defenses.stingy import Stingy
from kdsec.defenses.verifiers import Confidence, InputDropout, Squeezing
from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.models.wrapping import wrap
from kdsec.oracle import Oracle
from kdsec.report import metrics
from kdsec.train import Recipe, evaluate, predict

DIGITS = data.load("digits").train.subset(slice(0, 32))
X, Y = DIGITS.float_images(slice(0, 8)), DIGITS.labels[:8]
Z = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
SHORT = Recipe(epochs=1, batch_size=16, lr=0.01, precision="float32")
MARK = trigger("square 2", (1, 8, 8))


def net() -> models.Classifier:
    return models.build("digits-small", 10, (1, 8, 8), seed=0).eval()


def student() -> models.Classifier:
    return models.build("digits-small", 10, (1, 8, 8), seed=1)


def layers() -> layered.LayeredClassifier:
    return layered.flatten_layers(net())


def rejects(images: Any, model: Any) -> Any:
    return Confidence(model).predict_with_score(images)


# Entries by the kinds of their arguments: name to a function of valid arguments, which a test replaces.
ENTRIES: dict[str, tuple[Callable[..., Any], dict[str, Callable[[], Any]]]] = {
    "predict": (predict, {"model": net, "images": lambda: X, "batch_size": lambda: 5}),
    "ask": (train.ask, {"model": net, "images": lambda: X}),
    "evaluate": (evaluate, {"model": net, "data": lambda: DIGITS}),
    "fit": (
        train.fit,
        {"model": student, "data": lambda: DIGITS, "recipe": lambda: SHORT, "seed": lambda: 0},
    ),
    "oracle": (
        lambda teacher, images: Oracle(teacher).query(images),
        {"teacher": net, "images": lambda: X},
    ),
    "pgd": (
        pgd.pgd,
        {
            "model": net,
            "images": lambda: X,
            "labels": lambda: Y,
            "eps": lambda: 0.1,
            "steps": lambda: 2,
            "seed": lambda: 0,
            "batch_size": lambda: 5,
        },
    ),
    "harm": (adaptive.harm, {"model": net, "images": lambda: X, "labels": lambda: Y, "draws": lambda: 1}),
    "is_correct": (
        gradient_masking.is_correct,
        {"model": net, "images": lambda: X, "labels": lambda: Y},
    ),
    "measure": (
        backdoor.measure,
        {"model": net, "data": lambda: DIGITS, "mark": lambda: MARK, "target": lambda: 3},
    ),
    "candidates": (
        poisoning.candidates,
        {"data": lambda: DIGITS, "target": lambda: 3, "seed": lambda: 0, "teacher": net},
    ),
    "craft": (
        craft,
        {
            "teacher": net,
            "images": lambda: DIGITS.images[:4],
            "mark": lambda: MARK,
            "target": lambda: 3,
            "how": lambda: Crafting(eps=0.1, steps=1),
        },
    ),
    "soft labels": (
        EXTRACTION_ATTACKS["soft labels"],
        {
            "student": student,
            "teacher": net,
            "data": lambda: DIGITS,
            "recipe": lambda: SHORT,
            "temperature": lambda: 4.0,
            "alpha": lambda: 0.9,
            "seed": lambda: 0,
        },
    ),
    "with decisions": (with_decisions, {"teacher": net, "data": lambda: DIGITS}),
    "recovery": (
        fit_recovery,
        {
            "protected": lambda: Z,
            "honest": lambda: Z + 1,
            "temperature": lambda: 4.0,
            "steps": lambda: 1,
            "seed": lambda: 0,
        },
    ),
    "mimic": (
        lambda **given: mimicry.mimic(budget=Linf(eps=0.1, steps=1), **given),
        {"teacher": net, "layer": lambda: 1, "sources": lambda: X[:2], "targets": lambda: X[2:4]},
    ),
    "strip": (
        detection.strip,
        {"model": net, "images": lambda: X[:2], "overlays": lambda: X, "blends": lambda: 2},
    ),
    "instability": (
        detection.label_instability,
        {
            "teacher": net,
            "data": lambda: DIGITS,
            "augment": lambda: Augment(crop=1),
            "views": lambda: 1,
            "seed": lambda: 0,
        },
    ),
    "prune dormant": (prune_dormant, {"model": net, "data": lambda: DIGITS, "tolerance": lambda: 0.04}),
    "perturb": (perturb, {"model": net, "data": lambda: DIGITS, "eps": lambda: 0.1, "steps": lambda: 1}),
    "stingy": (
        lambda teacher, keep: predict(Stingy(teacher, keep), X),
        {"teacher": net, "keep": lambda: 2},
    ),
    "confidence": (rejects, {"images": lambda: X, "model": net}),
    "dropout": (
        lambda student, images, passes: InputDropout(student, passes=passes).predict_with_score(images),
        {"student": net, "images": lambda: X, "passes": lambda: 2},
    ),
    "squeezing": (
        lambda student, images: Squeezing(student).predict_with_score(images),
        {"student": net, "images": lambda: X},
    ),
    "scores": (metrics.probability_scores, {"logits": lambda: Z, "labels": lambda: Y}),
    "calibration": (
        metrics.calibration_error,
        {"logits": lambda: Z, "labels": lambda: Y, "bins": lambda: 5},
    ),
    "transfer": (
        layered.transfer,
        {"teacher": net, "num_classes": lambda: 4, "keep": lambda: 1, "seed": lambda: 0},
    ),
    "build": (
        lambda **given: models.build("digits-small", **given),
        {"num_classes": lambda: 10, "shape": lambda: (1, 8, 8), "seed": lambda: 0},
    ),
}


class Returns(nn.Module):
    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.change = net(), change

    def forward(self, images: Tensor) -> Any:
        return self.change(self.net(images))


NO_NETWORK = [None, "resnet18", nn.Linear, abs, 3, torch.zeros(2), [net()]]
NO_IMAGES = [
    None,
    "photo",
    X * 255,
    X - 0.5,
    X * math.nan,
    X[:, 0],
    X.permute(0, 2, 3, 1),
    X.to(torch.cfloat),
]
NO_LABELS = [
    None,
    "one",
    Y + 0.5,
    Y > 3,
    torch.full_like(Y, -1),
    Y[:3],
    nn.functional.one_hot(Y, 10),
    Y[None],
]
NO_LOGITS = [None, "z", Z * math.nan, Z[0], Z[None], (Z,), Z.to(torch.cfloat), Z + math.inf]
NO_SET = [None, "cifar10", DIGITS.images, (X, Y), torch.utils.data.TensorDataset(X, Y), 3]
NO_NUMBER = [None, "1", math.nan, math.inf, -math.inf, 1j, [1], torch.zeros(2)]
NO_COUNT = [*NO_NUMBER, 1.5, True, -1]
NO_SEED = [*NO_COUNT, 2**32]
NO_SHAPE = [None, "1x8x8", 8, (8, 8), (1, 0, 8), (1.0, 8, 8), (1, 1, 8, 8), (-1, 8, 8)]
WRONG = {
    **dict.fromkeys(("model", "teacher", "student"), NO_NETWORK),
    **dict.fromkeys(("images", "sources", "targets", "overlays"), NO_IMAGES),
    "labels": NO_LABELS,
    **dict.fromkeys(("logits", "protected", "honest"), NO_LOGITS),
    "data": NO_SET,
    **{key: [*NO_NUMBER, -0.1] for key in ("eps", "temperature", "alpha", "tolerance")},
    **dict.fromkeys(
        ("batch_size", "draws", "bins", "blends", "num_classes", "target", "keep", "layer"), NO_COUNT
    ),
    **{key: [*NO_COUNT, 0] for key in ("steps", "passes", "views")},
    "seed": NO_SEED,
    "shape": NO_SHAPE,
    "recipe": [None, {"epochs": 1}, Recipe, 3],
    "mark": ["square", 3],
    "how": [None, "pgd", Crafting],
    "augment": ["flip", 3],
}
CASES = [
    (name, argument, place)
    for name, (_, arguments) in ENTRIES.items()
    for argument in arguments
    for place in range(len(WRONG[argument]))
    if not (argument == "seed" and name == "build" and WRONG["seed"][place] is None)  # draws new ones
]


@pytest.mark.parametrize(("name", "argument", "place"), CASES)
def test_a_wrong_argument_is_one_line(name, argument, place):
    function, arguments = ENTRIES[name]
    given_arguments = {each: make() for each, make in arguments.items()} | {argument: WRONG[argument][place]}
    with pytest.raises(KdsecError) as refusal:
        function(**given_arguments)
    message = str(refusal.value)
    assert "\n" not in message and 10 < len(message) < 400


@pytest.mark.parametrize("name", ENTRIES)
def test_right_arguments_pass_and_the_network_is_as_it_was(name):
    function, arguments = ENTRIES[name]
    given_arguments = {each: make() for each, make in arguments.items()}
    asked = [each for each in ("model", "teacher", "student") if each in given_arguments]
    for each in asked:
        network = given_arguments[each] = copy.deepcopy(given_arguments[each]).train()
        next(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)).eval()
    before = {each: _state(given_arguments[each]) for each in asked}
    function(**given_arguments)
    for each in asked:
        if not (name == "fit" or (name == "soft labels" and each == "student")):
            modes, tensors = _state(given_arguments[each])
            assert modes == before[each][0]
            assert all(torch.equal(tensors[key], before[each][1][key]) for key in tensors)


def _state(network: nn.Module) -> tuple[list[bool], dict[str, Tensor]]:
    return [layer.training for layer in network.modules()], {
        key: tensor.clone() for key, tensor in network.state_dict().items()
    }


def test_differentiators_leave_the_student_in_its_mode():
    protected = layered.transfer(net(), 10, keep=1, seed=0).train()
    modes = [layer.training for layer in protected.modules()]
    making = differentiators.DifferentiatorConfig(SHORT, alpha=0.5)
    differentiators.build(protected, DIGITS, [(0, 1)], making)
    assert [layer.training for layer in protected.modules()] == modes


SAME = {
    "numpy": X.numpy(),
    "double": X.double(),
    "a list": X.tolist(),
    "half": X.half().float().double(),
    "a set": DIGITS.subset(slice(0, 8)),
    "rounding": X + 1e-7 * (X == 1),
}


@pytest.mark.parametrize("kind", SAME)
def test_images_of_one_meaning_are_converted(kind):
    assert torch.allclose(predict(net(), SAME[kind]), predict(net(), X), atol=1e-3)


@pytest.mark.parametrize("labels", [Y.numpy(), Y.tolist(), Y.int(), Y.float(), Y[:, None]])
def test_labels_of_one_meaning_are_converted(labels):
    assert metrics.brier_score(Z, labels) == metrics.brier_score(Z, Y)
    assert torch.equal(pgd.fgsm(net(), X, labels, eps=0.1), pgd.fgsm(net(), X, Y, eps=0.1))


LABELLED: dict[str, Callable[[ImageSet], Any]] = {
    "evaluate": lambda some: evaluate(net(), some),
    "backdoor": lambda some: backdoor.measure(net(), some, MARK, 3),
    "threshold": lambda some: rejection.choose_threshold(Confidence(net()), some, 0.1),
    "nearest mean": lambda some: layered.nearest_mean(net(), some, 1),
}


@pytest.mark.parametrize("name", LABELLED)
@settings(max_examples=5, deadline=None)
@given(missing=st.sets(st.integers(0, 31), min_size=1))
def test_measures_need_a_label_for_each_image(name, missing):
    labels = DIGITS.labels.clone()
    labels[list(missing)] = UNLABELLED
    for some in (DIGITS.replace(labels=labels), DIGITS.subset(slice(0, 0))):
        with pytest.raises(KdsecError, match="have no label"):
            LABELLED[name](some)


@pytest.mark.parametrize("change", [lambda z: z[:, :5], lambda z: z[:, :1]])
def test_a_network_of_other_classes_measures_nothing(change):
    for measure in (
        lambda model: evaluate(model, DIGITS),
        lambda model: backdoor.measure(model, DIGITS, MARK, 3),
        lambda model: gradient_masking.is_correct(model, X, torch.full_like(Y, 7)),
        lambda model: adaptive.harm(model, X, torch.full_like(Y, 7)),
        lambda model: backdoor.taken_for(model, X, 7),
        lambda model: detection.label_disagreement(model, DIGITS.replace(labels=DIGITS.labels * 0 + 7)),
    ):
        with pytest.raises(KdsecError, match="class|fit together"):
            measure(Returns(change))


@pytest.mark.parametrize("size", [4, 16])
def test_images_of_another_size_are_said_in_one_line(size):
    images = torch.rand(32, 1, size, size)
    other = ImageSet(images, DIGITS.labels, DIGITS.classes, "other")
    for call in (
        lambda: predict(net(), images),
        lambda: train.fit(student(), other, SHORT),
        lambda: pgd.fgsm(net(), images, other.labels, eps=0.1),
        lambda: EXTRACTION_ATTACKS["soft labels"](student(), net(), other, SHORT),
    ):
        with pytest.raises(KdsecError, match="does not fit together") as refusal:
            call()
        assert "\n" not in str(refusal.value)


def test_what_the_users_own_network_raises_is_not_hidden():
    def fails(z: Tensor) -> Tensor:
        raise RuntimeError("something of the user's broke")

    with pytest.raises(RuntimeError, match=r"^something of the user's broke$"):
        predict(Returns(fails), X)


def test_an_attack_on_logits_that_are_no_numbers_does_not_stand_still():
    from kdsec.data import Batch
    from kdsec.defenses.adversarial_training import attack_batch

    batch = Batch(X, Y, torch.arange(8))
    for change in (lambda z: z * math.nan, lambda z: z / 0 * 0):
        with pytest.raises(KdsecError, match="not numbers"):
            attack_batch(Returns(change), batch, 0.1, 1)


def test_similarity_is_between_images_in_the_unit_range():
    for first, second in (
        (X * 255, X),
        (X, X - 0.5),
        (X, X[:2]),
        (X, X.double()),
        (X[:, 0], X[:, 0]),
        (3, X),
    ):
        with pytest.raises(KdsecError):
            similarity.ssim(first, second)


def test_a_function_is_wrapped_and_a_class_is_not():
    assert predict(wrap(lambda images: Z[: len(images)], 10), X).shape == (8, 10)
    for model in (nn.Linear, None, 3):
        with pytest.raises(KdsecError, match="cannot be called"):
            wrap(model, 10)
    with pytest.raises(KdsecError, match="wrap"):
        predict(lambda images: Z, X)


# The mechanism


@checked
def example(number: float, count: int = 1, network: nn.Module | None = None, *, seed: int = 0) -> tuple:
    return number, count, network, seed


FLOATS = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.just(np.float32(0.5)))
ANYTHING = st.one_of(
    FLOATS, st.none(), st.text(), st.booleans(), st.just(math.nan), st.just(Y), st.complex_numbers()
)


@given(number=ANYTHING, count=ANYTHING, seed=ANYTHING)
def test_numbers_pass_as_they_are_or_are_refused(number, count, seed):
    def is_number(value: Any) -> bool:
        return (
            isinstance(value, int | float | np.floating)
            and not isinstance(value, bool)
            and math.isfinite(value)
        )

    fits = is_number(number) and is_number(count) and is_number(seed) and isinstance(count, int)
    if fits and isinstance(seed, int) and 0 <= seed < 2**32:
        assert example(number, count, seed=seed) == (number, count, None, seed)
    else:
        with pytest.raises(KdsecError) as refusal:
            example(number, count, seed=seed)
        assert "\n" not in str(refusal.value)


def test_wrong_calls_stay_what_python_says():
    for call in (lambda: example(), lambda: example(1, other=2), lambda: example(1, 1, None, 4)):
        with pytest.raises(TypeError):
            call()
    assert inspect.signature(example).parameters.keys() == {"number", "count", "network", "seed"}


def test_every_decorated_entry_has_checks_that_can_be_read():
    """Annotations that cannot be resolved would fail at the first call only."""
    import gc
    import types

    found = [
        each.__wrapped__
        for each in gc.get_objects()
        if isinstance(each, types.FunctionType)
        and each.__globals__ is vars(entry)
        and hasattr(each, "__wrapped__")
    ]
    assert len(found) > 100
    for function in found:
        typing.get_type_hints(function)
        entry._checks(function, True)


def test_module_of_a_cut_network_is_named():
    with pytest.raises(KdsecError, match="flatten_layers"):
        layered.fit_above(net(), DIGITS, SHORT, lambda *given: net())
    assert layers().depth >= 1
