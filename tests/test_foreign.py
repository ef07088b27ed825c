"""Networks, answers and settings that come from outside: asked without a trace, or refused in one line."""

import re
import types
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdsec import models
from kdsec.attacks.data_free import DFAD
from kdsec.attacks.data_free_fast import FastDFKD
from kdsec.attacks.data_free_inversion import Inversion
from kdsec.attacks.extraction import EXTRACTION_ATTACKS
from kdsec.data import UNLABELLED, Augment, Batch, ImageSet
from kdsec.defenses import backdoor_detection as detection
from kdsec.defenses import backdoor_removal as removal
from kdsec.defenses.nasty import NastyLoss
from kdsec.defenses.reversed_maximization import ReversedMaximizationLoss
from kdsec.defenses.stingy import Stingy
from kdsec.distill import KD, AttentionTransfer, HardLabels, teacher_labels
from kdsec.errors import KdsecError
from kdsec.layered import flatten_layers, transfer
from kdsec.logits import NOTHING, READINGS, as_logits
from kdsec.oracle import Oracle
from kdsec.train import CrossEntropy, Recipe, ask, evaluate, fit, predict

SHAPE = (1, 8, 8)
SHORT = Recipe(epochs=1, batch_size=16, lr=0.01, precision="float32")
SMALL = {"rounds": 2, "batch_size": 16, "latent": 8, "width": 8, "student_steps": 1}


@pytest.fixture(scope="module")
def images(digits):
    return digits.train.stratified(48, seed=0)


def batch_of(data):
    return Batch(data.float_images(), data.labels, torch.arange(len(data)))


def losses(teacher):
    """Every loss of this package that takes a teacher which is not trained."""
    return {
        "KD": KD(teacher),
        "hard labels": HardLabels(teacher),
        "nasty": NastyLoss(teacher),
        **{f"RML {reading}": ReversedMaximizationLoss(teacher, reading) for reading in READINGS},
    }


def questions(network, data):
    """Everything else that asks a network: name to a function without arguments."""
    marked = data.images[:4]
    pool = {
        "predict": lambda: predict(network, data),
        "evaluate": lambda: evaluate(network, data),
        "teacher_labels": lambda: teacher_labels(network, data),
        "oracle": lambda: Oracle(network).query(data),
        "stingy": lambda: predict(Stingy(network, 2), data),
        "label disagreement": lambda: detection.label_disagreement(network, data),
        "label instability": lambda: detection.label_instability(network, data, Augment(crop=1), views=1),
        "STRIP": lambda: detection.strip(network, marked, data.images, blends=2),
        "trigger inversion": lambda: detection.invert_trigger(network, data.images, 0, steps=2),
        "DFAD": lambda: DFAD(**SMALL)(student(data), network, data.shape),
        "FastDFKD": lambda: FastDFKD(**SMALL, warmup=1, statistics_weight=0.0)(
            student(data), network, data.shape
        ),
    }
    for name in EXTRACTION_ATTACKS:
        pool[name] = lambda name=name: EXTRACTION_ATTACKS[name](student(data), network, data, SHORT)
    for name, loss in losses(network).items():
        pool[f"loss {name}"] = lambda loss=loss: loss(student(data), batch_of(data))
    return pool


def white_box(network, data):
    """What reads the inside of a kdsec classifier."""
    return {
        "attention transfer": lambda: AttentionTransfer(network)(student(data), batch_of(data)),
        "attention distillation": lambda: removal.attention_distillation(network)(
            student(data), batch_of(data)
        ),
        "pruning": lambda: removal.prune_dormant(network, data),
        "penultimate": lambda: detection.penultimate(network, data),
        "inversion": lambda: Inversion(batches=1, batch_size=10, steps=2)(network, data.shape),
        "neural cleanse": lambda: detection.neural_cleanse(network, data.images, 2, steps=2),
        "transfer": lambda: transfer(network, 4, keep=2),
    }


def student(data):
    small = "digits-small" if data.shape == SHAPE else "cnn-small"
    return models.build(small, data.num_classes, data.shape, seed=1)


# Asking changes nothing


class Everything(models.Classifier):
    """A classifier with batch normalisation and dropout, whose parts are in different modes."""

    def __init__(self):
        super().__init__(
            nn.Identity(),
            [
                nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
                nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)),
            ],
            nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(512, 10)),
        )
        self.train()
        self.stages[0][1].eval()


def state(network):
    return (
        [layer.training for layer in network.modules()],
        {name: tensor.clone() for name, tensor in network.state_dict().items()},
        [parameter.grad for parameter in network.parameters()],
        [parameter.requires_grad for parameter in network.parameters()],
    )


def check_unchanged(network, ask_it, name=""):
    modes, tensors, *others = state(network)
    ask_it()
    now = state(network)
    assert modes == now[0] and others == list(now[2:]), name
    assert all(torch.equal(tensor, now[1][key]) for key, tensor in tensors.items()), name


def test_asking_changes_no_mode_no_buffer_no_weight(images):
    torch.manual_seed(0)
    network = Everything()
    for name, question in (questions(network, images) | white_box(network, images)).items():
        check_unchanged(network, question, name)
    # In train mode or not, the answer is the one of eval mode.
    assert torch.equal(predict(network, images), predict(network.eval(), images))


def test_a_loss_in_training_leaves_its_teacher_as_it_was(images):
    for name, loss in losses(network := Everything()).items():
        check_unchanged(network, lambda loss=loss: fit(student(images), images, SHORT, loss), name)


def test_modes_are_restored_after_an_error_too():
    class Broken(Everything):
        def forward(self, images):
            raise RuntimeError("broken")

    network = Broken()
    modes = state(network)[0]
    with pytest.raises(RuntimeError, match="broken"):
        ask(network, torch.zeros(2, *SHAPE))
    assert state(network)[0] == modes


# What a network returns


class Returns(nn.Module):
    """A network that returns ``wrap(logits)``."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap, self.layer = wrap, nn.Linear(64, 10)

    def forward(self, images):
        return self.wrap(self.layer(images.flatten(1)))


WRONG = {
    "dict": (lambda z: {"logits": z}, r"model\(x\)\['logits'\]"),
    "other dict": (lambda z: {"scores": z}, r"model\(x\)\['scores'\]"),
    "tuple": (lambda z: (z, z), r"model\(x\)\[0\]"),
    "list": (lambda z: [z], r"model\(x\)\[0\]"),
    "object": (lambda z: types.SimpleNamespace(logits=z), r"model\(x\)\.logits"),
    "None": (lambda z: None, "returned None"),
    "array": (lambda z: z.detach().numpy(), "a ndarray"),
    "decisions": (lambda z: z.argmax(1), "must be real numbers of shape"),
    "one image": (lambda z: z[:1], "must be real numbers of shape"),
    "maps": (lambda z: z[:, :, None, None], "must be real numbers of shape"),
    "complex": (lambda z: z.to(torch.complex64), "must be real numbers of shape"),
    "not a number": (lambda z: z * float("nan"), "not a number"),
    "one not a number": (lambda z: z.index_fill(1, torch.tensor([3]), float("nan")), "not a number"),
    "infinite": (lambda z: z.index_fill(1, torch.tensor([3]), float("inf")), "infinite"),
    "nothing left": (lambda z: z - float("inf"), "infinite"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_logits_is_refused_wherever_a_network_is_asked(images, kind):
    wrap, message = WRONG[kind]
    for name, question in questions(Returns(wrap), images).items():
        if name == "features":
            continue  # looks inside, where there is nothing to look at
        try:
            question()
        except KdsecError as error:
            assert re.search(message, str(error)) and "\n" not in str(error), name
        else:
            pytest.fail(f"{name} took {kind}")


@pytest.mark.parametrize("kind", ["dict", "tuple", "object", "None", "decisions", "maps"])
def test_a_student_that_returns_no_logits_is_refused(images, kind):
    teacher = build_teacher()
    for loss in [CrossEntropy(), *losses(teacher).values()]:
        with pytest.raises(KdsecError):
            fit(Returns(WRONG[kind][0]), images, SHORT, loss)


def build_teacher():
    return models.build("digits-small", 10, SHAPE, seed=0).eval()


def test_probabilities_are_taken_with_a_warning_that_names_the_softmax(images):
    with pytest.warns(UserWarning, match="softmax"):
        predict(Returns(lambda z: z.softmax(1)), images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(Returns(lambda z: z), images)
        predict(Returns(lambda z: z.log_softmax(1)), images)


@given(st.lists(st.lists(st.floats(width=32), min_size=2, max_size=5), min_size=1, max_size=4))
def test_as_logits_takes_finite_rows_and_minus_infinity_only(rows):
    width = min(map(len, rows))
    tensor = torch.tensor([row[:width] for row in rows])
    fits = not tensor.isnan().any() and bool((tensor < torch.inf).all()) and tensor.isfinite().any(1).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if fits:
            assert as_logits(tensor, len(rows)) is tensor
        else:
            with pytest.raises(KdsecError):
                as_logits(tensor, len(rows))


@pytest.mark.parametrize("keep", [1, 2])
def test_minus_infinity_is_a_probability_of_zero(images, keep):
    """0 log 0 = 0: the same values and gradients as with a finite logit far below all others."""

    def fill(value):
        def wrap(z):
            return z.masked_fill(z < z.topk(keep).values[:, -1:], value)

        return wrap

    finite, infinite = Returns(fill(NOTHING)), Returns(fill(-torch.inf))
    infinite.load_state_dict(finite.state_dict())
    for name, loss in losses(finite).items():
        if name in ("nasty", "RML away", "RML negate"):
            continue  # the divergence itself is infinite there, or its target is no distribution
        model = student(images)
        values = []
        for each in (loss, losses(infinite)[name]):
            model.zero_grad()
            value = each(model, batch_of(images))
            value.backward()
            gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
            assert gradient.isfinite().all(), name
            values.append((value.item(), gradient))
        assert values[0][0] == pytest.approx(values[1][0], rel=1e-4), name
        assert torch.allclose(values[0][1], values[1][1], atol=1e-4), name


def test_no_gradient_to_the_input_is_refused_before_a_data_free_attack(images):
    for wrap in (torch.Tensor.detach, torch.round):
        network = Returns(wrap)
        if wrap is torch.round:
            network.forward = torch.no_grad()(network.forward)
        for attack in (DFAD(**SMALL), FastDFKD(**SMALL, warmup=0, statistics_weight=0.0)):
            learner = student(images)
            before = state(learner)[1]
            with pytest.raises(KdsecError, match="no gradient reaches the teacher's input"):
                attack(learner, network, SHAPE)
            assert all(torch.equal(tensor, before[name]) for name, tensor in learner.state_dict().items())


# torchvision


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_networks_work_or_are_refused_in_one_line(name):
    import torchvision

    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None, num_classes=4)
    pixels = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    data = ImageSet(pixels, torch.arange(8) % 4, tuple("abcd"), "noise")
    refused, asked = [], questions(network, data) | white_box(network, data)
    for label, question in asked.items():
        if label in ("top 2", "top 3", "ranks reversed", "complement undone") or label.startswith("loss RML"):
            continue  # as others, and slow
        try:
            check_unchanged(network, question, label)
        except KdsecError as error:
            assert "\n" not in str(error)
            refused.append(label)
    inside = {
        "features",
        "attention transfer",
        "attention distillation",
        "pruning",
        "penultimate",
        "transfer",
    }
    assert set(refused) == inside
    for make in (
        lambda: EXTRACTION_ATTACKS["skeptical student"](network, build_like(data), data, SHORT),
        lambda: flatten_layers(network),
        lambda: fit(network, data, SHORT, AttentionTransfer(build_like(data))),
        lambda: AttentionTransfer(nn.DataParallel(build_like(data))),
    ):
        with pytest.raises(KdsecError) as error:
            make()
        assert "\n" not in str(error.value)


def build_like(data):
    return models.build("cnn-small", data.num_classes, data.shape, seed=0)


# Settings and data


WHOLE = st.one_of(st.integers(-3, 0), st.floats(), st.text(max_size=3), st.booleans(), st.none())
NOT_POSITIVE = st.one_of(
    st.floats(max_value=0), st.sampled_from([float("nan"), float("inf"), "0.1", None, True, [0.1]])
)
BAD = {
    "epochs": WHOLE,
    "batch_size": WHOLE,
    "lr": NOT_POSITIVE,
    "gamma": NOT_POSITIVE,
    "grad_clip": NOT_POSITIVE.filter(lambda value: value is not None),
    "momentum": st.one_of(st.floats(min_value=1), st.floats(max_value=-1e-9), st.just(float("nan"))),
    "weight_decay": st.one_of(st.floats(max_value=-1e-9), st.sampled_from([float("nan"), float("inf"), "1"])),
    "milestones": st.tuples(st.one_of(st.integers(-2, 0), st.floats())),
    "optimizer": st.text(max_size=4),
    "augment": st.one_of(st.none(), st.dictionaries(st.text(max_size=2), st.integers(), max_size=1)),
}


@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("field", BAD)
@given(data=st.data())
def test_no_recipe_with_a_value_that_cannot_be_used(field, data):
    value = data.draw(BAD[field])
    with pytest.raises(KdsecError) as error:
        Recipe(**{field: value})
    assert "\n" not in str(error.value) and field in str(error.value)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan"), "0.1", None])
def test_smoothing_is_a_share_below_one(smoothing):
    with pytest.raises(KdsecError, match="smoothing="):
        CrossEntropy(smoothing)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda net, bad: KD(net, temperature=bad), "temperature"),
        (lambda net, bad: KD(net, alpha=bad), "alpha"),
        (lambda net, bad: AttentionTransfer(net, weight=bad), "weight"),
        (lambda net, bad: NastyLoss(net, weight=bad), "weight"),
        (lambda net, bad: ReversedMaximizationLoss(net, binary_weight=bad), "binary_weight"),
        (lambda net, bad: Stingy(net, bad), "keep"),
        (lambda net, bad: DFAD(student_lr=bad), "student_lr"),
        (lambda net, bad: FastDFKD(noise_lr=bad), "noise_lr"),
        (lambda net, bad: Inversion(lr=bad), "lr"),
        (lambda net, bad: DFAD(rounds=bad), "rounds"),
        (lambda net, bad: FastDFKD(momentum=bad), "momentum"),
        (lambda net, bad: FastDFKD(warmup=bad), "warmup"),
        (lambda net, bad: Inversion(batch_size=bad), "batch_size"),
    ],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, "1", None])
def test_losses_and_attacks_refuse_settings_that_are_no_number_in_range(make, name, bad):
    with pytest.raises(KdsecError, match=f"{name}=") as error:
        make(build_teacher(), bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "0", None, True])
def test_seeds_are_32_bits(images, seed):
    for call in (
        lambda: fit(student(images), images, SHORT, seed=seed),
        lambda: DFAD(**SMALL)(student(images), build_teacher(), SHAPE, seed=seed),
        lambda: Inversion(batches=1, batch_size=2, steps=1)(build_teacher(), SHAPE, seed=seed),
    ):
        with pytest.raises(KdsecError, match="seed="):
            call()


@pytest.mark.parametrize("kind", ["none", "alpha 0", "attention", "nasty", "a function", "skeptical"])
def test_a_loss_that_needs_labels_refuses_a_set_without_any(images, kind):
    from kdsec.attacks.skeptical import Branched, SkepticalLoss

    teacher, model = build_teacher(), student(images)
    loss = {
        "none": None,
        "alpha 0": KD(teacher, alpha=0.0),
        "attention": AttentionTransfer(teacher),
        "nasty": NastyLoss(teacher),
        "a function": lambda model, batch: 3 * CrossEntropy()(model, batch),
        "skeptical": SkepticalLoss(teacher),
    }[kind]
    if kind == "skeptical":
        model = Branched(model, images, 0)
    with pytest.raises(KdsecError, match="has no labels and the loss .* learns from labels"):
        fit(model, images.unlabelled(), SHORT, loss)


@pytest.mark.parametrize("kind", ["unlabelled", "half labelled", "empty", "other classes"])
def test_accuracy_needs_a_label_for_each_image(images, kind):
    half = images.labels.clone()
    half[::2] = UNLABELLED
    data = {
        "unlabelled": images.unlabelled(),
        "half labelled": images.replace(labels=half),
        "empty": images.subset(slice(0, 0)),
        "other classes": ImageSet(images.images, images.labels, tuple("0123456789ab"), "twelve"),
    }[kind]
    with pytest.raises(KdsecError, match="classes" if kind == "other classes" else "have no label"):
        evaluate(build_teacher(), data)


@pytest.mark.parametrize("loss", [KD, HardLabels])
@pytest.mark.parametrize("shape", [(47, 10), (49, 10), (48, 1), (48, 9), (48,), (1, 10), (0, 10)])
def test_cached_logits_fit_the_set_and_the_classes(images, loss, shape):
    if loss is HardLabels and shape in ((48, 1), (48, 9)):
        return  # fewer classes than the student are decisions all the same
    with pytest.raises(KdsecError):
        fit(student(images), images, SHORT, loss(torch.zeros(shape)))
    with pytest.raises(KdsecError, match="must be an nn.Module or a tensor"):
        loss(lambda images: images)


def test_weights_that_are_no_numbers_end_the_training(images):
    """One step with a finite loss, after which no weight is finite."""
    huge = Recipe(epochs=1, batch_size=48, lr=1e300, schedule="constant", precision="float32")
    with pytest.raises(KdsecError, match=r"infinite or not a number; lower lr \(now 1e\+300\)") as error:
        fit(build_teacher(), images, huge)
    assert "\n" not in str(error.value)
