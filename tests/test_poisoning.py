"""Poisons, triggers and the measure of a backdoor: what must hold for each, and a student really taken."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsec import config, models
from kdsec.attacks import backdoor, crafting, poisoning
from kdsec.attacks.crafting import Crafting, craft
from kdsec.attacks.poisoning import distillation, implant, poison, random_signs
from kdsec.attacks.triggers import CORNERS, Trigger, trigger
from kdsec.data import UNLABELLED, Augment
from kdsec.data.imageset import to_bytes, to_float
from kdsec.errors import KdsecError
from kdsec.train import CrossEntropy, Recipe, fit, predict

SHAPE = (1, 8, 8)
RECIPE = Recipe(epochs=20, batch_size=64, lr=0.1, augment=Augment(crop=1), precision="float32")
TARGET = 3
HOW = Crafting(eps=76 / 255, step_size=19 / 255, confidence=0.9, stop_early=True)
MARK = trigger("checker 3", SHAPE)


@pytest.fixture(scope="module")
def parts(digits):
    return digits.train.subset(slice(0, 450)), digits.train.subset(slice(450, 1000))


@pytest.fixture(scope="module")
def teacher(digits, parts):
    mean, std = digits.train.mean_std()
    net = models.build("digits-medium", 10, SHAPE, mean=mean, std=std, seed=0)
    fit(net, parts[0], RECIPE)
    return net


@pytest.fixture(scope="module")
def poisoned(teacher, parts):
    return poison(parts[1].unlabelled(), teacher, MARK, TARGET, 0.1, HOW)


def student(digits, on, loss):
    mean, std = digits.train.mean_std()
    net = models.build("digits-small", 10, SHAPE, mean=mean, std=std, seed=0)
    fit(net, on, dataclasses.replace(RECIPE, epochs=37), loss)
    return net


# Triggers


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("name", ["square 1", "square 3", "checker 8", "checker 2"])
def test_a_patch_covers_its_corner_and_nothing_else(name, corner):
    mark = trigger(name, (3, 8, 8), corner)
    side = int(name.split()[1])
    assert mark.mask.sum() == 3 * side**2
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    stamped = mark.stamp(images)
    covered = mark.mask == 1
    assert (stamped[:, ~covered] == images[:, ~covered]).all()
    assert (stamped[:, covered] == (mark.pattern[covered] * 255).byte()).all()
    rows = covered.any(0).nonzero()[:, 0]
    assert (rows.min() == 0) if corner.startswith("top") else (rows.max() == 7)


def test_the_same_pixels_in_training_and_at_test_time():
    """A patch looks the same on every image, in bytes and in floats, and stamping twice changes nothing."""
    images = torch.randint(256, (7, 1, 8, 8), dtype=torch.uint8)
    stamped = MARK.stamp(images)
    covered = MARK.mask == 1
    assert (stamped[:, covered] == stamped[0, covered]).all()
    assert torch.equal(MARK.stamp(stamped), stamped)
    assert torch.equal(to_bytes(MARK.stamp(to_float(images))), stamped)


@given(st.integers(1, 100), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_a_blend_moves_each_pixel_by_its_share(percent, seed):
    mark = trigger(f"blend {percent}", SHAPE, seed=seed)
    images = torch.rand(3, *SHAPE)
    moved = mark.stamp(images) - images
    assert torch.allclose(moved, percent / 100 * (mark.pattern - images), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "corner", "message"),
    [
        ("checker 9", "top right", "larger than the 8x8 image"),
        ("square", "top right", "needs a size"),
        ("square 0", "top right", "needs a size"),
        ("circle 3", "top right", "unknown trigger"),
        ("blend 101", "top right", "from 1 to 100"),
        ("square 3", "middle", "unknown corner"),
    ],
)
def test_an_impossible_trigger_is_refused(name, corner, message):
    with pytest.raises(KdsecError, match=message):
        trigger(name, SHAPE, corner)


def test_any_mask_is_a_trigger_if_it_fits():
    cross = torch.eye(8)[None]
    assert Trigger(torch.ones(SHAPE), cross).stamp(torch.zeros(2, *SHAPE)).sum() == 16
    with pytest.raises(KdsecError, match=r"must both be \(C, H, W\)"):
        Trigger(torch.ones(3, 8, 8), cross)
    with pytest.raises(KdsecError, match="divide by 255"):
        Trigger(255 * torch.ones(SHAPE), cross)
    with pytest.raises(KdsecError, match="does not fit images"):
        MARK.stamp(torch.zeros(2, 3, 32, 32))


# Crafting

WAYS = {
    "fgsm": {"method": "fgsm"},
    "pgd": {},
    "pgd, all steps": {"stop_early": False},
    "cw": {"method": "cw"},
    "alternating": {"mode": "alternating"},
    "unbounded": {"mode": "unbounded"},
    "odd budget": {"eps": 0.2994, "step_size": 0.0331},
    "views": {"views": 2, "augment": Augment(crop=1, flip=True)},
}


@pytest.mark.parametrize("mark", [MARK, trigger("blend 30", SHAPE), None], ids=["patch", "blend", "none"])
@pytest.mark.parametrize("change", WAYS.values(), ids=WAYS)
def test_every_kept_poison_is_the_target_after_rounding_and_inside_the_budget(teacher, parts, change, mark):
    how = dataclasses.replace(HOW, **change)
    originals = parts[1].images[parts[1].labels != TARGET][:60]
    found = craft(teacher, originals, mark, TARGET, how)
    assert found.images.dtype == torch.uint8 and found.kept.any()
    probabilities = predict(teacher, found.images[found.kept]).softmax(1)
    assert (probabilities.argmax(1) == TARGET).all()
    assert (probabilities[:, TARGET] >= how.confidence).all()
    stamped = originals if mark is None else mark.stamp(originals)
    gap = (found.images.int() - stamped.int()).abs()
    rounds = how.rounds if how.mode == "unbounded" else 1
    assert gap.max() <= int(255 * how.eps + 1e-3) * rounds
    if mark is not None:
        assert (gap[:, mark.mask == 1] == 0).all()


@pytest.mark.parametrize(
    "change", [{}, {"method": "fgsm"}, {"method": "cw"}, {"mode": "alternating"}], ids=str
)
def test_a_poison_of_a_linear_teacher_is_the_known_optimum(change):
    """The corner of the box around the stamped original that the target's weights point to."""
    head = torch.nn.Linear(64, 2, bias=False)
    upper = torch.where(torch.arange(8.0) < 4, 1.0, -1.0)[:, None].expand(8, 8)
    head.weight.data = torch.stack([-upper.flatten(), upper.flatten()])
    images = torch.full((3, 1, 8, 8), 128, dtype=torch.uint8)
    how = dataclasses.replace(HOW, confidence=0.0, stop_early=False, steps=20, **change)
    made = craft(torch.nn.Sequential(torch.nn.Flatten(), head), images, MARK, 1, how)
    corner = to_float(images) + how.radius * upper
    wanted = torch.where(MARK.mask == 1, to_float(MARK.stamp(images)), corner)
    assert made.kept.all() and torch.allclose(to_float(made.images), wanted, atol=1e-6)


def test_an_image_is_left_alone_when_it_is_done(teacher, parts):
    originals = parts[1].images[parts[1].labels != TARGET][:60]
    stops = craft(teacher, originals, MARK, TARGET, HOW)
    goes_on = craft(teacher, originals, MARK, TARGET, dataclasses.replace(HOW, stop_early=False))
    assert (goes_on.steps == HOW.steps).all()
    assert (stops.steps[stops.kept] < HOW.steps).float().mean() > 0.9 and len(stops.steps.unique()) > 2
    assert goes_on.probability.mean() > stops.probability.mean()
    assert bool(
        (craft(teacher, originals[:5], MARK, TARGET, dataclasses.replace(HOW, steps=1)).steps <= 1).all()
    )


def test_batches_do_not_change_a_poison(teacher, parts):
    originals = parts[1].images[:40]
    whole, halves = (craft(teacher, originals, MARK, TARGET, HOW, batch_size=size) for size in (40, 7))
    assert (whole.images.int() - halves.images.int()).abs().float().mean() < 0.5


@pytest.mark.slow
def test_poisons_made_for_views_outlive_augmentation(teacher, parts):
    """The attacker who knows that the victim asks about augmented images: same budget, more labels kept."""
    originals = parts[1].subset(parts[1].labels != TARGET).subset(slice(0, 240))
    how = dataclasses.replace(HOW, stop_early=False)
    prepared = dataclasses.replace(how, views=4, augment=Augment(crop=1))
    kept = {}
    for each in (how, prepared):
        found = craft(teacher, originals.images, MARK, TARGET, each)
        poisons = originals.replace(images=found.images)
        kept[each.views] = backdoor.label_survival(teacher, poisons, TARGET, Augment(crop=1)).accuracy
        assert torch.equal(found.images, craft(teacher, originals.images, MARK, TARGET, each).images)
    assert kept[4] > kept[0] + 0.02, kept


def test_a_view_is_one_that_training_may_show():
    """Every view of the crafting is a crop, and perhaps a flip, of the padded image."""
    images = torch.rand(1, 1, 4, 5)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    allowed = [padded[..., top : top + 4, left : left + 5] for top in range(3) for left in range(3)]
    allowed += [view.flip(3) for view in allowed]
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(200):
        view = crafting.view(images, Augment(crop=1, flip=True), generator)
        seen.add(next(i for i, each in enumerate(allowed) if torch.equal(each, view)))
    assert len(seen) == 18


def test_unbounded_rounds_leave_the_budget_of_one(teacher, parts):
    """That is why the package tells the two apart: the paper's wording allows both."""
    originals = parts[1].images[parts[1].labels != TARGET][:60]
    how = dataclasses.replace(HOW, eps=20 / 255, step_size=10 / 255, confidence=0.5)
    bounded, unbounded = (
        craft(teacher, originals, MARK, TARGET, dataclasses.replace(how, mode=mode))
        for mode in ("alternating", "unbounded")
    )
    gap = (unbounded.images.int() - MARK.stamp(originals).int()).abs().max()
    assert gap > 20 and unbounded.kept.sum() > bounded.kept.sum()


def test_a_blended_trigger_is_not_blended_twice(teacher, parts):
    """Rounds put the trigger on again; the finished poison must carry it once, as a test image does."""
    mark = trigger("blend 30", SHAPE)
    originals = parts[1].images[parts[1].labels != TARGET][:30]
    how = dataclasses.replace(HOW, mode="alternating", eps=10 / 255, step_size=5 / 255)
    found = craft(teacher, originals, mark, TARGET, how)
    assert (found.images.int() - mark.stamp(originals).int()).abs().max() <= 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0.003}, r"must lie in \[1/255, 1\]"),
        ({"eps": 8.0}, r"must lie in \[1/255, 1\]"),
        ({"steps": 0}, "at least 1 step"),
        ({"rounds": 0}, "1 round"),
        ({"step_size": 0.0}, "step size above 0"),
        ({"confidence": 1.0}, "not a probability"),
        ({"method": "bim"}, "unknown crafting method"),
        ({"mode": "both"}, "unknown crafting mode"),
        ({"spread": 0.0}, "spread"),
        ({"spread": 0.5, "mode": "alternating"}, "spread=0.5 needs mode='joint'"),
        ({"views": 4}, "give augment a crop or a flip"),
        ({"views": -1, "augment": Augment(crop=1)}, "views=-1"),
    ],
)
def test_impossible_crafting_is_refused(change, message):
    with pytest.raises(KdsecError, match=message):
        dataclasses.replace(HOW, **change)


def test_only_bytes_are_poisoned(teacher, parts):
    with pytest.raises(KdsecError, match="give images as uint8"):
        craft(teacher, parts[1].float_images()[:3], MARK, TARGET, HOW)


def test_varied_perturbations_have_little_in_common(teacher, parts):
    """A share of the pixels moves, others in every image; the same image always becomes the same poison."""
    originals = parts[1].images[parts[1].labels != TARGET][:40]
    how = dataclasses.replace(HOW, spread=0.5)
    found = craft(teacher, originals, MARK, TARGET, how)
    moved = (found.images != MARK.stamp(originals))[:, MARK.mask == 0]
    assert 0.1 < moved.float().mean() < 0.55 and not moved.all(0).any()
    assert len(moved.unique(dim=0)) == 40 and found.kept.float().mean() > 0.1
    again = craft(teacher, originals.flip(0), MARK, TARGET, how, batch_size=7)
    assert (again.images.flip(0).int() - found.images.int()).abs().float().mean() < 0.5


# The poisoned set


def test_a_judge_keeps_only_what_the_teacher_itself_calls_the_target(digits, teacher, parts):
    """Poisons of a surrogate: each kept one has fooled the judge, and each one shown to it is counted."""
    mean, std = digits.train.mean_std()
    surrogate = models.build("digits-small", 10, SHAPE, mean=mean, std=std, seed=5)
    fit(surrogate, parts[1], dataclasses.replace(RECIPE, epochs=8))
    how = dataclasses.replace(HOW, stop_early=False)
    alone = poison(parts[1], surrogate, MARK, TARGET, 0.04, how)
    judged = poison(parts[1], surrogate, MARK, TARGET, 0.04, how, judge=teacher, needed=0)
    for made, least in ((alone, 0.0), (judged, HOW.confidence)):
        p = predict(teacher, made.data.images[made.index]).softmax(1)[:, TARGET]
        assert p.min() >= least
    assert predict(teacher, alone.data.images[alone.index]).softmax(1)[:, TARGET].min() < HOW.confidence
    assert alone.queries == 0 and judged.queries >= len(judged.index) > 0
    itself = poison(parts[1], teacher, MARK, TARGET, 0.04, HOW, judge=teacher)
    assert torch.equal(itself.index, poison(parts[1], teacher, MARK, TARGET, 0.04, HOW).index)


def test_an_ensemble_is_the_mean_of_log_probabilities(teacher, parts):
    images = parts[1].float_images()[:5]
    same = poisoning.Ensemble([teacher, teacher]).eval()
    assert torch.allclose(same(images), teacher(images).log_softmax(1), atol=1e-5)


def test_images_of_the_target_and_the_others_are_all_images(teacher, parts):
    found = [poisoning.candidates(parts[1], teacher, TARGET, 0, of_target=which) for which in (True, False)]
    assert (parts[1].labels[found[0]] == TARGET).all() and torch.cat(found).unique().numel() == 550


def test_the_rate_is_a_share_of_the_whole_set(teacher, parts, poisoned):
    assert poisoned.rate == 0.1 and len(poisoned.index) == 55 == len(poisoned.index.unique())
    assert len(poisoned.data) == len(parts[1])
    # Without labels, the teacher's answers tell which images are of another class.
    assert (predict(teacher, parts[1]).argmax(1)[poisoned.index] != TARGET).all()
    untouched = torch.ones(len(parts[1]), dtype=torch.bool)
    untouched[poisoned.index] = False
    assert torch.equal(poisoned.data.images[untouched], parts[1].images[untouched])
    assert (predict(teacher, poisoned.data).argmax(1)[poisoned.index] == TARGET).all()


def test_failures_are_dropped_counted_and_replaced(teacher, parts):
    how = dataclasses.replace(HOW, method="fgsm", confidence=0.5)
    found = poison(parts[1], teacher, MARK, TARGET, 0.1, how)
    assert found.failed > 0 and len(found.index) == 55
    assert torch.equal(found.data.labels, parts[1].labels)
    # So many cannot be had: all candidates are tried, and the rate says what came of it.
    scarce = poison(parts[1], teacher, MARK, TARGET, 0.85, how)
    assert scarce.rate < 0.85
    assert scarce.failed + len(scarce.index) == int((parts[1].labels != TARGET).sum())


def test_a_rate_of_zero_is_clean_distillation_to_the_bit(digits, teacher, parts):
    clean = parts[1].unlabelled()
    nothing = poison(clean, teacher, MARK, TARGET, 0.0, HOW)
    assert nothing.data is clean and nothing.rate == 0 and nothing.failed == 0
    one, other = (
        student(digits, on, distillation(teacher, on, "cached", 1.0)) for on in (clean, nothing.data)
    )
    for name, weights in one.state_dict().items():
        assert torch.equal(weights, other.state_dict()[name]), name


def test_a_larger_rate_poisons_the_same_images_and_more(teacher, parts):
    small, large = (poison(parts[1], teacher, MARK, TARGET, rate, HOW) for rate in (0.02, 0.05))
    assert set(small.index.tolist()) < set(large.index.tolist())


@pytest.mark.parametrize(
    ("target", "rate", "how", "message"),
    [
        (10, 0.1, HOW, "target class 10 is not in digits; choose a number from 0 to 9"),
        (-1, 0.1, HOW, "target class -1"),
        (True, 0.1, HOW, "target=True must be"),
        (3, -0.1, HOW, r"rate=-0.1 must lie in \[0, 1\]"),
        (3, 1.1, HOW, r"rate=1.1 must lie in \[0, 1\]"),
        (3, float("nan"), HOW, "rate=nan must be a finite number"),
        (3, 0.0005, HOW, "less than one"),
        (3, 1.0, HOW, "needs 550 images of other classes"),
        (
            3,
            0.1,
            dataclasses.replace(HOW, eps=1 / 255, confidence=0.999),
            "none of .* images became class 3 .* raise eps",
        ),
    ],
)
def test_an_impossible_attack_is_refused_in_one_line(teacher, parts, target, rate, how, message):
    before = parts[1].images.clone()
    with pytest.raises(KdsecError, match=message) as error:
        poison(parts[1], teacher, MARK, target, rate, how)
    assert "\n" not in str(error.value)
    assert torch.equal(parts[1].images, before)


def test_where_nobody_can_be_fooled_the_set_stays_clean_if_that_is_wanted(teacher, parts):
    hopeless = dataclasses.replace(HOW, eps=1 / 255, confidence=0.999)
    made = poison(parts[1], teacher, MARK, TARGET, 0.1, hopeless, needed=0)
    assert made.rate == 0 and made.failed > 0 and torch.equal(made.data.images, parts[1].images)


def test_alpha_needs_labels(teacher, parts):
    with pytest.raises(KdsecError, match="alpha=0.9 gives weight to labels and these images have none"):
        distillation(teacher, parts[1].unlabelled(), "cached", 4.0, alpha=0.9)
    assert distillation(teacher, parts[1], "online", 4.0, alpha=0.9).teacher is teacher
    with pytest.raises(KdsecError, match="unknown answers"):
        distillation(teacher, parts[1], "sometimes", 4.0)


def test_candidates_without_labels_are_what_the_teacher_calls_otherwise(teacher, parts):
    found = poisoning.candidates(parts[1].unlabelled(), teacher, TARGET, 0)
    assert (predict(teacher, parts[1].subset(found)).argmax(1) != TARGET).all()
    mixed = parts[1].replace(labels=parts[1].labels.index_fill(0, torch.arange(100), UNLABELLED))
    assert len(poisoning.candidates(mixed, teacher, TARGET, 0)) > 400


def test_the_noise_of_arm_g_has_the_size_of_the_perturbation_and_spares_the_trigger(parts):
    originals = parts[1].images[:20]
    noisy = random_signs(originals, MARK, HOW.radius, seed=1)
    gap = (noisy.int() - MARK.stamp(originals).int()).abs()
    assert (gap[:, MARK.mask == 1] == 0).all() and gap.max() == 76
    assert not torch.equal(noisy, random_signs(originals, MARK, HOW.radius, seed=2))


# Measures


class Says(torch.nn.Module):
    """Calls every image with a white top right pixel class 3, every other by its top left pixel."""

    def forward(self, images):
        marked = images[:, 0, 0, -1] > 0.5
        answer = torch.where(marked, 3, (images[:, 0, 0, 0] * 255).round().long())
        return torch.nn.functional.one_hot(answer, 10).float()


@pytest.fixture
def named(digits):
    """Thirty black images, three of each class, whose top left pixel names the class."""
    labels = torch.arange(30) % 10
    images = torch.zeros(30, *SHAPE, dtype=torch.uint8)
    images[:, 0, 0, 0] = labels.byte()
    return digits.test.replace(images=images, labels=labels)


def test_success_is_counted_on_other_classes_only(named):
    pixel = trigger("square 1", SHAPE)
    found = backdoor.measure(Says(), named, pixel, 3)
    assert found.accuracy == (30, 30) and found.floor == (0, 27) and found.success == (27, 27)
    elsewhere = backdoor.measure(Says(), named, trigger("square 1", SHAPE, "bottom left"), 3)
    assert elsewhere.success == (0, 27)
    assert backdoor.attack_success(Says(), named, pixel, 5) == (0, 27)
    assert elsewhere.floor == (0, 27)
    assert backdoor.response(Says(), named, pixel).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    with pytest.raises(KdsecError, match="nothing but class 3"):
        backdoor.others(named.subset(named.labels == 3), 3)
    with pytest.raises(KdsecError, match="target class 12"):
        backdoor.measure(Says(), named, pixel, 12)


def test_a_success_comes_with_its_floor(named):
    found = backdoor.measure(Says(), named, trigger("square 1", SHAPE), 3).named()
    assert set(found) == {"test accuracy", backdoor.FLOOR, backdoor.SUCCESS}
    assert found[backdoor.SUCCESS].accuracy == 1 and found[backdoor.FLOOR] == (0, 27)


def test_label_survival_is_whole_without_augmentation_and_less_with(teacher, poisoned):
    inside = poisoned.data.subset(poisoned.index)
    still = backdoor.label_survival(teacher, inside, TARGET, Augment(), views=2)
    moved = backdoor.label_survival(teacher, inside, TARGET, Augment(crop=2), views=2)
    assert still == (110, 110)
    assert moved.total == 110 and moved.correct < 100


def test_visibility_of_nothing_of_one_pixel_and_of_more():
    images = torch.randint(0, 200, (4, 3, 16, 16), dtype=torch.uint8)
    same = backdoor.visibility(images, images)
    assert same["linf"] == same["l2"] == 0 and same["ssim"] == pytest.approx(1) and same["psnr"] == 100
    pixel = images.clone()
    pixel[:, 0, 3, 3] += 51
    seen = backdoor.visibility(pixel, images)
    assert seen["linf"] == pytest.approx(0.2) and seen["l2"] == pytest.approx(0.2)
    assert seen["psnr"] == pytest.approx(-10 * torch.tensor(0.04 / 768).log10().item(), abs=1e-3)
    assert backdoor.visibility(255 - images, images)["ssim"] < seen["ssim"] < 1


# Does it happen?


def test_the_student_is_taken_and_the_teacher_is_not(digits, teacher, parts, poisoned):
    """With cached answers on the digits; clean, trigger-only and ordinary poisoning beside it."""
    clean = parts[1].unlabelled()
    stamped = MARK.stamp(clean.images[poisoned.index])
    wrong = implant(parts[1], poisoned.index, stamped, label=TARGET)
    assert (wrong.labels[poisoned.index] == TARGET).all()
    arms = {
        "clean": student(digits, clean, distillation(teacher, clean, "cached", 1.0)),
        "attack": student(digits, poisoned.data, distillation(teacher, poisoned.data, "cached", 1.0)),
        "trigger": None,
        "labels": student(digits, wrong, CrossEntropy()),
    }
    only = implant(clean, poisoned.index, stamped)
    arms["trigger"] = student(digits, only, distillation(teacher, only, "cached", 1.0))
    found = {arm: backdoor.measure(net, digits.test, MARK, TARGET) for arm, net in arms.items()}
    success = {arm: each.success.accuracy for arm, each in found.items()}
    assert success["attack"] > 0.1 > 0.05 > max(success["clean"], success["trigger"])
    assert success["labels"] > 0.8
    assert backdoor.attack_success(teacher, digits.test, MARK, TARGET).accuracy < 0.1
    assert found["attack"].accuracy.accuracy > found["clean"].accuracy.accuracy - 0.05
    assert found["attack"].floor.accuracy < 0.05


# Settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"target": 10}, "target=10 is not a class of digits"),
        ({"epsilons": (0.001,)}, "must lie in"),
        ({"student": "resnet9"}, "unknown model"),
        ({"triger": "square 1"}, "did you mean 'trigger'"),
    ],
)
def test_impossible_settings_are_refused(overrides, message):
    with pytest.raises(KdsecError, match=message):
        config.settings("poisoned-distillation", "quick", overrides)


@pytest.mark.parametrize("profile", config.profiles("poisoned-distillation"))
def test_the_triggers_of_every_profile_fit_its_images(profile):
    at = config.settings("poisoned-distillation", profile)
    shape = {"digits": SHAPE, "cifar10": (3, 32, 32)}[at.dataset]
    for name in (at.trigger, *at.triggers):
        trigger(name, shape)
