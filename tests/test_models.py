"""kdsec.models: the nets are the papers' nets, and keep what the rest of the package relies on."""

from __future__ import annotations

import copy
import importlib
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import nn

from kdsec import models
from kdsec.errors import KdsecError
from kdsec.layered import flatten_layers, transfer

# 10, 100 and 200 classes of 3x32x32, as counted in the public code the docstrings name.
COUNTS = {
    "cnn": (357_514, 369_124, 382_024),
    "resnetc20": (272_282, 278_132, 284_632),
    "resnetc32": (466_714, 472_564, 479_064),
    "resnet18": (11_173_962, 11_220_132, 11_271_432),
    "resnet50": (23_520_842, 23_705_252, 23_910_152),
    "resnext29": (34_426_698, 34_518_948, 34_621_448),
    "mobilenetv2": (2_254_090, 2_369_380, 2_497_480),
    "shufflenetv2": (1_268_646, 1_360_896, 1_463_396),
}
# Counts at ten classes: He et al. with option A, WRN by its definition, kuangliu/pytorch-cifar, by hand.
COUNTS_AT_TEN = {
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet34": 21_282_122,
    "wrn16-1": 175_066,
    "wrn16-2": 691_674,
    "wrn40-1": 563_930,
    "wrn40-2": 2_243_546,
    "cnn-small": 90_186,
    "vgg11": 9_231_114,
    "vgg16": 14_728_266,
}
SMALLEST = {
    "digits-cnn": 4,
    "digits-medium": 4,
    "digits-small": 4,
    "digits-mlp": 1,
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "mobilenetv2", "shufflenetv2"), 16),
    **dict.fromkeys(("vgg11", "vgg16"), 32),
    **dict.fromkeys(("airbench-64", "airbench-32", "airbench-16"), 9),
}  # every other net: 8
IMAGENET = importlib.import_module("kdsec.models.imagenet")  # models.imagenet is the function
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
QUICK = ("digits-cnn", "digits-mlp", "cnn", "resnet8", "resnetc20", "wrn16-1", "shufflenetv2")


def side(name: str) -> int:
    """A small image side that ``name`` accepts, large enough for batch statistics."""
    return max(8, SMALLEST.get(name, 8))


def images(name: str, count: int = 4, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, side(name), side(name), generator=generator)


def make(name: str, channels: int = 3, seed: int | None = 0, **options: object) -> models.Classifier:
    return models.build(name, 7, (channels, side(name), side(name)), seed=seed, **options)


@pytest.fixture(scope="module", params=models.names())
def named(request: pytest.FixtureRequest) -> tuple[str, models.Classifier]:
    """Each net once, in eval mode, with batch statistics measured on random images.

    Without the measurement the deep nets' signal fades to nothing in eval mode, and every
    comparison of logits would pass. pytest groups the tests by net: one is in memory at a time.
    """
    net = make(request.param, mean=MEAN, std=STD)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # average over all batches seen
    with torch.no_grad():
        for seed in range(2):
            net(images(request.param, count=8, seed=1 + seed))
    return request.param, net.eval()


def same(left: torch.Tensor, right: torch.Tensor, within: float = 1e-3) -> bool:
    """Equal up to rounding, in units of how much the classes' logits differ from one another."""
    spread = (right - right.mean(dim=-1, keepdim=True)).norm()
    return bool((left - right).norm() <= within * spread)


# --- the architectures ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_those_of_the_authors_code(name: str) -> None:
    with torch.device("meta"):  # shapes without storage: the large nets cost nothing
        nets = [models.build(name, classes, (3, 32, 32)) for classes in (10, 100, 200)]
    assert tuple(map(models.count_parameters, nets)) == COUNTS[name]


@pytest.mark.parametrize("name", COUNTS_AT_TEN)
def test_parameter_counts_at_ten_classes(name: str) -> None:
    with torch.device("meta"):
        net = models.build(name, 10, (3, 32, 32))
    assert models.count_parameters(net) == COUNTS_AT_TEN[name]


def test_frozen_parameters_do_not_count() -> None:
    net = make("digits-small")
    before = models.count_parameters(net)
    net.head.requires_grad_(False)
    assert models.count_parameters(net) == before - sum(p.numel() for p in net.head.parameters())


@pytest.mark.parametrize(("large", "times"), [("digits-cnn", 20), ("digits-medium", 8)])
def test_the_digits_student_is_far_smaller_than_its_teacher_and_its_stages_match(
    large: str, times: int
) -> None:
    teacher, student = (models.build(name, 10, (1, 8, 8), seed=0) for name in (large, "digits-small"))
    assert models.count_parameters(student) < 4000
    assert models.count_parameters(teacher) > times * models.count_parameters(student)
    batch = torch.rand(2, 1, 8, 8)
    sizes = [[tuple(f.shape[2:]) for f in net.features(batch)] for net in (teacher, student)]
    assert sizes[0] == sizes[1]


# --- what every net keeps ------------------------------------------------------------------------


def test_logits_and_features(named: tuple[str, models.Classifier]) -> None:
    name, net = named
    batch = images(name)
    with torch.no_grad():
        logits, features = net(batch), net.features(batch)
        again = [feature.clone() for feature in features]
        from_features = net.head(features[-1])
    assert logits.shape == (4, 7)
    assert logits.isfinite().all()
    assert logits.std(dim=0).min() > 0.01 * logits.std()  # the images matter
    assert len(features) == len(net.stages) >= 2
    assert torch.equal(logits, from_features)
    assert all(map(torch.equal, features, again))


def test_a_stage_does_not_overwrite_the_one_before(named: tuple[str, models.Classifier]) -> None:
    name, net = named
    batch = images(name)
    with torch.no_grad():
        x = net.normalize(batch)
        for stage, feature in zip(net.stages, net.features(batch), strict=True):
            x = stage(x.clone())  # a copy for the stage to spoil, if it would
            assert torch.equal(x, feature)


def test_normalisation_is_inside(named: tuple[str, models.Classifier]) -> None:
    name, net = named
    twin = models.Classifier(models.Normalize(3), net.stages, net.head).eval()
    batch = images(name)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        assert same(net(batch), twin((batch - mean) / std))
        assert not same(net(batch), twin(batch), within=0.01)


def test_in_eval_mode_an_image_does_not_depend_on_its_batch(
    named: tuple[str, models.Classifier],
) -> None:
    name, net = named
    batch = images(name)
    with torch.no_grad():
        assert same(net(batch)[1:2], net(batch[1:2]))


def test_channels_last_gives_the_same_logits(named: tuple[str, models.Classifier]) -> None:
    name, net = named
    batch = images(name)
    with torch.no_grad():
        assert same(net(batch), net(batch.to(memory_format=torch.channels_last)))


def test_bfloat16_autocast_stays_close(named: tuple[str, models.Classifier]) -> None:
    """The yardstick is rounding only the pixels: an untrained deep net magnifies anything."""
    name, net = named
    batch = images(name, count=2)
    with torch.no_grad():
        exact = net(batch)
        yardstick = (net(batch.bfloat16().float()) - exact).norm()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = net(batch).float()
    assert rounded.isfinite().all()
    assert (rounded - exact).norm() < 10 * yardstick


def test_gradients_reach_every_parameter_and_the_pixels(
    named: tuple[str, models.Classifier],
) -> None:
    name, net = named
    batch = images(name).requires_grad_()
    net = copy.deepcopy(net).train()  # the shared net's statistics stay as they are
    nn.functional.cross_entropy(net(batch), torch.arange(4)).backward()
    assert batch.grad is not None and batch.grad.abs().sum() > 0
    trained = [(label, each) for label, each in net.named_parameters() if each.requires_grad]
    for label, parameter in trained:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), label
        # Biases in front of batch normalisation have an exact gradient of zero; weights do not.
        assert parameter.ndim < 2 or parameter.grad.abs().sum() > 0, label


@pytest.mark.parametrize("name", models.names())
def test_one_channel_and_unequal_sides(name: str) -> None:
    smallest = SMALLEST.get(name, 8)
    with torch.device("meta"):
        net = models.build(name, 2, (1, smallest, smallest + 5)).eval()
        assert net(torch.rand(3, 1, smallest, smallest + 5)).shape == (3, 2)


@pytest.mark.parametrize("name", ("digits-cnn", "resnetc20"))
def test_the_whole_net_is_one_graph_for_the_compiler(name: str) -> None:
    net = make(name).eval()
    batch = images(name)
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)  # raises on a graph break
    with torch.no_grad():
        assert same(compiled(batch), net(batch))


# --- seeds ---------------------------------------------------------------------------------------


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("name", QUICK)
def test_weights_are_a_pure_function_of_the_seed(name: str) -> None:
    torch.manual_seed(1)
    first = weights(make(name, seed=5))
    torch.manual_seed(2)
    assert torch.equal(first, weights(make(name, seed=5)))
    assert not torch.equal(first, weights(make(name, seed=6)))


def test_a_seed_leaves_the_global_generator_alone_and_none_uses_it() -> None:
    before = torch.random.get_rng_state()
    make("resnet8", seed=5)
    models.build_autoencoder("autoencoder-small", (1, 8, 8), seed=5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(weights(make("resnet8", seed=None)), weights(make("resnet8", seed=None)))
    torch.random.set_rng_state(before)
    first = weights(make("resnet8", seed=None))
    torch.random.set_rng_state(before)
    assert torch.equal(first, weights(make("resnet8", seed=None)))


def test_a_seeded_net_ignores_the_ambient_device() -> None:
    with torch.device("meta"):
        net = make("resnet8", seed=5, mean=MEAN, std=STD)
    assert torch.equal(weights(net), weights(make("resnet8", seed=5)))
    assert net.normalize.mean.device.type == "cpu"


def test_normalisation_travels_with_the_weights_and_is_not_trained() -> None:
    net, other = make("resnet8", mean=MEAN, std=STD), make("resnet8", seed=1)
    other.load_state_dict(net.state_dict())
    batch = images("resnet8")
    assert torch.equal(other.eval()(batch), net.eval()(batch))
    assert not any("normalize" in label for label, _ in net.named_parameters())


# --- mistakes ------------------------------------------------------------------------------------


def message(error: pytest.ExceptionInfo[KdsecError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_an_unknown_name_is_told_the_nearest_one() -> None:
    with pytest.raises(KdsecError, match=r"'mobilenetv3'; did you mean 'mobilenetv2'\?") as error:
        models.build("mobilenetv3", 10, (3, 32, 32))
    assert "resnetc32" in message(error)
    with pytest.raises(KdsecError, match=r"unknown autoencoder 'auto'.*autoencoder-small") as error:
        models.build_autoencoder("auto", (3, 32, 32))
    message(error)


@pytest.mark.parametrize("name", [n for n in models.names() if SMALLEST.get(n, 8) > 1])
def test_an_image_too_small_is_refused_with_what_would_fit(name: str) -> None:
    smallest = SMALLEST.get(name, 8)
    for shape in ((3, smallest - 1, 64), (3, 64, smallest - 1)):
        with pytest.raises(KdsecError, match=f"{name}.*at least {smallest}x{smallest}") as error:
            models.build(name, 10, shape)
        fitting = message(error).rpartition(": ")[2].split(", ")
        assert name not in fitting
        with torch.device("meta"):
            models.build(fitting[-1], 10, shape)


@pytest.mark.parametrize("classes", (1, 0, -3))
def test_fewer_than_two_classes_is_refused(classes: int) -> None:
    with pytest.raises(KdsecError, match=f"at least 2 classes, got {classes}") as error:
        models.build("resnet8", classes, (3, 32, 32))
    message(error)


@pytest.mark.parametrize("shape", ((32, 32), (3, 32), (0, 32, 32), (1, 3, 32, 32)))
def test_a_shape_that_is_not_one_image_is_refused(shape: tuple[int, ...]) -> None:
    for build in (
        lambda: models.build("resnet8", 10, shape),
        lambda: models.build_autoencoder("autoencoder", shape),
    ):
        with pytest.raises(KdsecError, match=r"\(channels, height, width\)") as error:
            build()
        message(error)


@pytest.mark.parametrize(
    ("options", "says"),
    (
        ({"mean": (0.5,)}, "mean has 1 values for 3 channels"),
        ({"std": (0.5, 0.5)}, "std has 2 values for 3 channels"),
        ({"mean": (125.3, 123.0, 113.9)}, "not in pixel units.*divide by 255"),
        ({"mean": (float("nan"),) * 3}, "not in pixel units"),
        ({"std": (0.2, 0.0, 0.2)}, "has a zero"),
    ),
)
def test_a_normalisation_that_cannot_be_right_is_refused(options: dict, says: str) -> None:
    with pytest.raises(KdsecError, match=says) as error:
        models.build("resnet8", 10, (3, 32, 32), **options)
    message(error)


def test_images_that_would_broadcast_to_nonsense_are_refused() -> None:
    net = make("resnet8")
    for batch in (torch.rand(2, 1, 8, 8), torch.rand(3, 8, 8), torch.rand(2, 8, 8, 3)):
        with pytest.raises(KdsecError, match=r"\(N, 3, H, W\)") as error:
            net(batch)
        message(error)
    with pytest.raises(KdsecError, match=r"uint8.*divide by 255") as error:
        net(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    message(error)


# --- autoencoders --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.autoencoder_names())
@pytest.mark.parametrize("shape", ((1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 12, 20)))
def test_an_autoencoder_keeps_shape_and_range(name: str, shape: tuple[int, int, int]) -> None:
    net = models.build_autoencoder(name, shape, seed=0)
    batch = torch.rand(4, *shape)
    for scale in (1, 1000):  # even when the last layer shouts, pixels stay pixels
        output = net(batch * scale)
        assert output.shape == batch.shape
        assert 0 <= output.min() <= output.max() <= 1
    assert torch.equal(weights(net), weights(models.build_autoencoder(name, shape, seed=0)))
    assert not torch.equal(weights(net), weights(models.build_autoencoder(name, shape, seed=1)))


def test_an_autoencoder_learns_to_copy_and_its_student_is_smaller() -> None:
    teacher, student = (
        models.build_autoencoder(name, (1, 8, 8), seed=0) for name in ("autoencoder", "autoencoder-small")
    )
    assert models.count_parameters(student) < models.count_parameters(teacher) / 3
    batch = images("digits-cnn", count=16, channels=1)
    optimizer = torch.optim.Adam(teacher.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = (teacher(batch) - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in teacher.parameters())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("shape", ((1, 30, 28), (3, 32, 33)))
def test_an_autoencoder_refuses_sides_it_cannot_halve_twice(shape: tuple[int, int, int]) -> None:
    with pytest.raises(KdsecError, match="divisible by 4, got") as error:
        models.build_autoencoder("autoencoder", shape)
    message(error)


# --- import --------------------------------------------------------------------------------------


def test_the_import_is_light() -> None:
    heavy = ("torchvision", "sklearn", "pandas", "matplotlib", "papermill")
    code = f"import sys, kdsec.models; print([m for m in {heavy} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


# --- nets as they are published -------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[torchvision.models.ResNet]:
    """torchvision's ResNet-50 with made-up weights, lying where torch keeps its downloads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
        torch.manual_seed(0)
        net = torchvision.models.resnet50()
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):  # no two of its four vectors alike, or an exchange passes
                for place, vector in enumerate((part.weight, part.bias, part.running_mean, part.running_var)):
                    nn.init.uniform_(vector, 0.3 + 0.1 * place, 0.5 + 0.1 * place)
        folder = pathlib.Path(torch.hub.get_dir()) / "checkpoints"
        folder.mkdir(parents=True)
        state = dict(reversed(net.state_dict().items()))  # files keep the order of the day they were saved
        torch.save({f"module.{key}": value for key, value in state.items()}, folder / "resnet50-0676ba61.pth")
        patch.setattr(IMAGENET, "file_sha256", lambda file: file.stem.rsplit("-", 1)[1])
        yield net.eval()


def test_the_published_net_computes_what_torchvisions_does(published: torchvision.models.ResNet) -> None:
    ours = models.imagenet("resnet50-imagenet")
    assert not ours.training and count(ours) == count(published)
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(2, 3, 64, 64, generator=generator)
    preset = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    with torch.no_grad():
        theirs = published(
            (batch - torch.tensor(preset.mean).view(3, 1, 1)) / torch.tensor(preset.std).view(3, 1, 1)
        )
        assert same(ours(batch), theirs, within=1e-4)
    student = transfer(ours, 5, keep=17, seed=0)
    assert student.depth == 17 and student(batch).shape == (2, 5)


@pytest.mark.slow
def test_the_published_vgg_computes_what_torchvisions_does(tmp_path: pathlib.Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path))
        theirs = torchvision.models.vgg16().eval()
        folder = pathlib.Path(torch.hub.get_dir()) / "checkpoints"
        folder.mkdir(parents=True)
        torch.save(theirs.state_dict(), folder / "vgg16-397923af.pth")
        patch.setattr(IMAGENET, "file_sha256", lambda file: file.stem.rsplit("-", 1)[1])
        ours = models.imagenet("vgg16-imagenet")
    assert count(ours) == count(theirs) and flatten_layers(ours).depth == 15
    batch = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert same(ours(batch), theirs(ours.normalize(batch)), within=1e-4)


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_fresh_weights_are_a_function_of_the_seed_and_need_no_download(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    one, again, other = (
        models.imagenet("resnet50-imagenet", 4, weights=False, seed=seed) for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.head[-1].weight, other.head[-1].weight)
    assert not list(tmp_path.iterdir())


def test_published_weights_that_cannot_be_had_end_in_one_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(KdsecError, match=r"no route to host.*put resnet50-0676ba61.pth") as error:
        models.imagenet("resnet50-imagenet")
    assert "\n" not in str(error.value)
    with pytest.raises(KdsecError, match="did you mean 'resnet50-imagenet'"):
        models.imagenet("resnet50_imagenet")
    with pytest.raises(KdsecError, match="1000 classes, not 10"):
        models.imagenet("resnet50-imagenet", 10)


class Runs:
    """An object whose unpickling runs code."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("hash_fits", [True, False])
@pytest.mark.parametrize("kind", ["half", "code", "other weights"])
def test_a_file_that_is_not_the_published_weights_is_refused_and_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, hash_fits: bool, kind: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = pathlib.Path(torch.hub.get_dir()) / "checkpoints" / "resnet50-0676ba61.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half of it")
    if kind != "half":
        torch.save({"code": Runs(tmp_path / "ran")} if kind == "code" else {"x": torch.zeros(1)}, file)
    if hash_fits:
        monkeypatch.setattr(IMAGENET, "file_sha256", lambda file: "0676ba61")
    with pytest.raises(KdsecError, match="resnet50-0676ba61.pth") as error:
        models.imagenet("resnet50-imagenet")
    assert "\n" not in str(error.value) and "delete" not in str(error.value)
    assert file.exists() and not (tmp_path / "ran").exists()
