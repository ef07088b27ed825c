"""Foreign images, files and networks: converted, or refused in one line, never wrong in silence."""

from __future__ import annotations

import io
import os
import pathlib
import re
import struct
import zipfile
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdsec import data, models
from kdsec.attacks.adaptive import adaptive_pgd
from kdsec.attacks.data_free import DFAD
from kdsec.attacks.data_free_fast import FastDFKD
from kdsec.attacks.data_free_inversion import Inversion
from kdsec.attacks.extraction import EXTRACTION_ATTACKS
from kdsec.attacks.gradient_masking import masking_checks
from kdsec.data import Augment, ImageSet, Loader, Splits
from kdsec.data.convert import as_labels
from kdsec.data.npz import read_arrays
from kdsec.data.sources import home
from kdsec.defenses.backdoor_detection import penultimate
from kdsec.defenses.backdoor_removal import prune_dormant
from kdsec.distill import AttentionTransfer
from kdsec.errors import KdsecError
from kdsec.layered import flatten_layers, transfer
from kdsec.models import wrap
from kdsec.pgd import fgsm, pgd
from kdsec.train import Recipe, predict

BYTES = torch.randint(256, (6, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FLOATS = BYTES.float() / 255
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
CLASSES = ("a", "b", "c")


def refused(call, *words):
    with pytest.raises(KdsecError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert "delete" not in message


# Arrays


@pytest.mark.parametrize(
    "images",
    [
        BYTES.numpy(),
        BYTES.tolist(),
        list(BYTES),
        BYTES.int(),
        BYTES.numpy().astype(np.uint16),
        BYTES.numpy().astype(">i4"),
        FLOATS,
        FLOATS.numpy(),
        FLOATS.double(),
        (FLOATS + 5e-6).clamp(5e-6),
        FLOATS.numpy().astype(np.longdouble),
        FLOATS.clone().requires_grad_(),
    ],
)
def test_images_of_other_types_are_converted(images):
    made = ImageSet(images, LABELS, CLASSES, "x")
    assert made.images.dtype in (torch.uint8, torch.float32) and not made.images.requires_grad
    assert torch.allclose(made.float_images(), FLOATS, atol=1e-5)
    assert float(made.float_images().min()) >= 0 and float(made.float_images().max()) <= 1


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.numpy(),
        LABELS.tolist(),
        LABELS.float(),
        LABELS.double().numpy(),
        LABELS.to(torch.uint8),
        LABELS[:, None],
        torch.nn.functional.one_hot(LABELS),
        torch.nn.functional.one_hot(LABELS).float().numpy(),
    ],
)
def test_labels_of_other_types_are_converted(labels):
    made = ImageSet(BYTES, labels, CLASSES, "x").labels
    assert made.dtype == torch.int64 and torch.equal(made, LABELS)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (FLOATS * 255, ["divide by 255"]),
        (FLOATS * 2 - 1, ["(images + 1) / 2"]),
        ((FLOATS - 0.4) / 0.2, ["model"]),
        (FLOATS.where(FLOATS > 0.5, torch.nan), ["finite"]),
        (FLOATS.where(FLOATS > 0.5, torch.inf), ["finite"]),
        (FLOATS + 1e-3, ["[0, 1]"]),
        (BYTES.int() * 2, ["0..255"]),
        (-BYTES.int(), ["0..255"]),
        (BYTES.int() % 2, ["floats if 1 means white"]),
        (BYTES > 100, ["bool"]),
        (FLOATS.to(torch.complex64), ["complex"]),
        (BYTES.permute(0, 2, 3, 1), ["transpose"]),
        (BYTES[:, 0], ["[:, None]"]),
        (BYTES[0, 0], ["(N, C, H, W)"]),
        (BYTES.to_sparse(), ["to_dense"]),
        ([BYTES[0], BYTES[1, :, :2]], ["differ"]),
        ([[1, 2], [3]], ["array"]),
        ("images", ["numbers"]),
        (None, ["numbers"]),
        (object(), ["numbers"]),
        (TensorDataset(BYTES, LABELS), ["ImageSet.from_dataset(dataset"]),
        (DataLoader(TensorDataset(BYTES, LABELS)), ["ImageSet.from_dataset(loader.dataset"]),
    ],
)
def test_images_that_mean_something_else_are_refused(images, words):
    refused(lambda: ImageSet(images, LABELS, CLASSES, "x"), *words)
    refused(lambda: ImageSet(images), *words)
    refused(lambda: ImageSet(BYTES), "labels")
    whole = ImageSet(BYTES, LABELS, CLASSES, "x")
    if images is not None:
        refused(lambda: whole.replace(images=images), *words)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS + 0.5,
        LABELS.float() * torch.nan,
        LABELS.float() * 1e30,
        LABELS + 1,
        LABELS - 2,
        LABELS[:5],
        torch.full((6, 3), 1 / 3),
        torch.zeros(6, 3),
        torch.zeros(6, 2),
        ["a"] * 6,
        [None] * 6,
        LABELS.to(torch.complex64),
        torch.tensor(1),
    ],
)
def test_labels_that_mean_something_else_are_refused(labels):
    refused(lambda: ImageSet(BYTES, labels, CLASSES, "x"))


@pytest.mark.parametrize("classes", [3, "abc", (), (1, 2, 3), None])
def test_class_names_are_names(classes):
    refused(lambda: ImageSet(BYTES, LABELS, classes, "x"), "x")


@given(st.integers(0, 5), st.sampled_from([-0.1, 1.1, float("nan"), float("inf"), -float("inf"), 255.0]))
def test_one_wrong_pixel_is_enough(place, value):
    pixels = FLOATS.clone()
    pixels[place, 1, 2, 3] = value
    refused(lambda: ImageSet(pixels, LABELS, CLASSES, "x"))


def test_subsets_share_what_was_checked_and_refuse_what_is_not_there():
    whole = ImageSet(FLOATS, LABELS, CLASSES, "x")
    assert whole.subset(slice(0, 2)).images.data_ptr() == whole.images.data_ptr()
    assert whole.subset(LABELS == 1).labels.tolist() == [1, 1] and whole.subset(LABELS == 1).checksum
    refused(lambda: whole.subset(torch.tensor([6])), "6 images")
    refused(lambda: whole.subset(torch.ones(5, dtype=torch.bool)))
    refused(lambda: whole.subset(slice(0, 0)).mean_std(), "no images")


def test_splits_agree():
    whole = ImageSet(BYTES, LABELS, CLASSES, "x")
    refused(lambda: Splits("x", whole, whole, ImageSet(BYTES, LABELS, ("a", "c", "b"), "x")), "class")
    refused(lambda: Splits("x", whole, ImageSet(BYTES[:, :1], LABELS, CLASSES, "x"), whole), "shape")


# Sets of torch and torchvision


def pictures(kinds):
    return [(PIL.Image.fromarray(np.asarray(pixels)), label) for label, pixels in enumerate(kinds)]


def test_classification_sets_of_any_kind_are_converted():
    arrays = BYTES.permute(0, 2, 3, 1).numpy()
    for items in (
        TensorDataset(BYTES, LABELS),
        TensorDataset(FLOATS, LABELS),
        [(PIL.Image.fromarray(each), int(label)) for each, label in zip(arrays, LABELS, strict=True)],
        [(each, np.int64(label)) for each, label in zip(arrays, LABELS, strict=True)],
        ((each, label) for each, label in zip(arrays, LABELS.float(), strict=True)),
    ):
        made = ImageSet.from_dataset(items, classes=CLASSES, name="x")
        assert torch.allclose(made.float_images(), FLOATS) and torch.equal(made.labels, LABELS)


def test_torchvision_sets_name_their_own_classes():
    from torchvision.datasets import FakeData

    made = ImageSet.from_dataset(FakeData(4, (3, 8, 8), 2), classes=("a", "b"))
    assert made.shape == (3, 8, 8) and made.name == "FakeData"
    refused(lambda: ImageSet.from_dataset(FakeData(4, (3, 8, 8), 2)), "classes=")


@pytest.mark.parametrize(
    "items",
    [
        [],
        [BYTES[0]],
        [(BYTES[0], 0, 1)],
        [(BYTES[0], "cat")],
        [(BYTES[0], 0.5)],
        [(BYTES[0], torch.tensor([0, 1]))],
        [(BYTES[0], 7)],
        [("file.png", 0)],
        [(BYTES[0, 0], 0)],
        [(BYTES[0], 0), (BYTES[0, :, :2], 1)],
        [(BYTES[0], 0), (FLOATS[0], 1)],
        [(FLOATS[0] - 1, 0)],
        [(PIL.Image.fromarray(np.zeros((4, 4), np.int32)), 0)],
        5,
        DataLoader(TensorDataset(BYTES, LABELS)),
    ],
)
def test_sets_for_other_tasks_are_refused(items):
    refused(lambda: ImageSet.from_dataset(items, classes=CLASSES, name="x"))


# Folders


@pytest.fixture
def folder(tmp_path):
    for label in CLASSES[:2]:
        (tmp_path / "own" / label).mkdir(parents=True)
        for place in range(2):
            PIL.Image.fromarray(BYTES[place].permute(1, 2, 0).numpy()).save(
                tmp_path / "own" / label / f"{place}.png"
            )
    return tmp_path / "own"


def test_a_folder_of_images_is_a_set(folder):
    (folder / "a" / ".DS_Store").write_bytes(b"")
    made = data.from_folder(folder)
    assert made.name == "own" and made.classes == ("a", "b") and made.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(made.images, BYTES[[0, 1, 0, 1]])
    assert data.from_folder(folder, size=(8, 6)).shape == (3, 8, 6)


def test_a_grey_image_among_colours_becomes_rgb(folder):
    PIL.Image.fromarray(BYTES[0, 0].numpy()).save(folder / "b" / "grey.png")
    made = data.from_folder(folder)
    assert made.shape[0] == 3 and torch.equal(made.images[-1, 2], BYTES[0, 0])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "a" / "notes.txt").write_text("no image"),
        lambda folder: (folder / "a" / "0.png").write_bytes((folder / "a" / "0.png").read_bytes()[:60]),
        lambda folder: (folder / "c").mkdir(),
        lambda folder: (folder / "a" / "deeper").mkdir(),
        lambda folder: PIL.Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "a" / "2.png"),
        lambda folder: PIL.Image.fromarray(np.zeros((5, 4), np.uint16)).save(folder / "a" / "2.png"),
    ],
)
def test_folders_with_something_else_are_refused(folder, spoil):
    spoil(folder)
    refused(lambda: data.from_folder(folder), str(folder.name))


def test_no_folder_is_refused(folder):
    refused(lambda: data.from_folder(folder / "nowhere"), "not a folder")
    refused(lambda: data.from_folder(folder / "a"), "no subfolders")


# Files


def saved(path: pathlib.Path, compressed: bool = False, **arrays: np.ndarray) -> pathlib.Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("layout", [(0, 2, 3, 1), (0, 1, 2, 3)])
def test_a_file_of_arrays_is_a_set(tmp_path, compressed, layout):
    path = saved(tmp_path / "own.npz", compressed, x=BYTES.permute(layout).numpy(), y=LABELS.numpy())
    made = data.from_npz(path, images="x", labels="y")
    assert torch.equal(made.images, BYTES) and made.classes == ("class 0", "class 1", "class 2")
    assert torch.equal(made.labels, LABELS) and made.name == "own"
    refused(lambda: data.from_npz(path), "lacks images, labels", "x, y")


def member(header: bytes, body: bytes = b"") -> bytes:
    """A zip file with one array ``images.npy`` of a header written by hand."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        text = header + b" " * (-(len(header) + 11) % 64) + b"\n"
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body)
        archive.writestr("labels.npy", _npy(np.zeros(2, int)))
    return stream.getvalue()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _zip(method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name in ("images.npy", "labels.npy"):
            archive.writestr(name, _npy(np.zeros((2, 8, 8), np.uint8)))
    return stream.getvalue()


def _encrypted() -> bytes:
    content = bytearray(_zip(zipfile.ZIP_STORED))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(signature)
        while place >= 0:
            content[place + offset] |= 1
            place = content.find(signature, place + 1)
    return bytes(content)


SHAPED = b"{'descr': '|u1', 'fortran_order': False, 'shape': %s, }"
HOSTILE = {
    "lying header": (member(SHAPED % b"(1000000, 32, 32, 3)", b"12"), "announces"),
    "negative shape": (member(SHAPED % b"(-2, 8, 8)", b"12"), ""),
    "nested header": (member(b"(" * 5000, b"12"), ""),
    "header of objects": (
        member(b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", b"12"),
        "objects",
    ),
    "bomb": (member(SHAPED % b"(8000, 32, 32, 3)", bytes(8000 * 3072)), "would unpack"),
    "encrypted": (_encrypted(), "encrypted"),
    "other compression": (_zip(zipfile.ZIP_LZMA), "method"),
    "npy": (_npy(np.zeros((2, 8, 8))), "np.savez"),
    "pickle": (b"\x80\x04K\x01.", "pickle"),
    "text": (b"hello", "no zip"),
    "empty": (b"", "no zip"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_end_in_one_line(tmp_path, kind):
    content, word = HOSTILE[kind]
    path = tmp_path / "images.npz"
    path.write_bytes(content)
    refused(lambda: data.from_npz(path), str(path), word)
    assert path.read_bytes() == content


def test_objects_are_not_unpickled(tmp_path):
    path = saved(tmp_path / "x.npz", images=np.array([{"a": 1}], dtype=object), labels=np.zeros(1, int))
    refused(lambda: data.from_npz(path), "objects")
    refused(lambda: data.from_npz(tmp_path / "nowhere.npz"), "does not exist")
    refused(lambda: data.from_npz(tmp_path), "folder")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 10**6), value=st.integers(1, 255), compressed=st.booleans())
def test_a_changed_byte_is_noticed_or_harmless(tmp_path, place, value, compressed):
    path = saved(tmp_path / "x.npz", compressed, images=BYTES.numpy(), labels=LABELS.numpy())
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= value
    path.write_bytes(content)
    try:
        made = data.from_npz(path)
    except KdsecError as error:
        assert "\n" not in str(error)
    else:
        assert torch.equal(made.images, BYTES) and torch.equal(made.labels, LABELS)


def test_check_compares_with_the_published_set(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSEC_DATA", str(tmp_path))
    images, labels = np.zeros((20, 28, 28), np.uint8), np.arange(20) % 10
    parts = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    saved(tmp_path / "mnist.npz", **parts)
    refused(lambda: data.check("mnist"), "60000", "20 train")
    data.load("mnist")  # it can still be used
    saved(tmp_path / "mnist.npz", **parts | {"test_labels": labels // 2})
    refused(lambda: data.check("mnist"), "class 5")


# Networks


class Plain(nn.Module):
    """Logits, in whatever form ``form`` gives them."""

    def __init__(self, form=lambda logits: logits):
        super().__init__()
        self.linear, self.form = nn.Linear(60, 3), form

    def forward(self, images):
        return self.form(self.linear(images.flatten(1)))


class Output(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


@pytest.mark.parametrize(
    ("form", "options"),
    [
        (lambda z: z, {}),
        (lambda z: {"logits": z, "loss": None}, {}),
        (lambda z: Output(z), {}),
        (lambda z: {"scores": z}, {"output": "scores"}),
        (lambda z: (None, z), {"output": lambda answer: answer[1]}),
        (lambda z: z.softmax(1), {"probabilities": True}),
    ],
)
def test_networks_of_any_output_become_teachers(form, options):
    net = Plain(form)
    for model in (net, nn.DataParallel(net)):
        teacher = wrap(model, 3, **options)
        expected = Plain.forward(net, FLOATS) if not options else net.linear(FLOATS.flatten(1))
        if isinstance(expected, torch.Tensor):
            assert torch.allclose(teacher(FLOATS).softmax(1), expected.softmax(1), atol=1e-5)
        images = FLOATS.clone().requires_grad_()
        teacher(images).sum().backward()
        assert images.grad is not None and predict(teacher, FLOATS).shape == (6, 3)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        (lambda z: {"scores": z}, {}),
        (lambda z: (z, z), {}),
        (lambda z: None, {}),
        (lambda z: z[:, :2], {}),
        (lambda z: z[:1], {}),
        (lambda z: z.sum(), {}),
        (lambda z: z, {"probabilities": True}),
    ],
)
def test_other_outputs_are_refused(form, options):
    refused(lambda: wrap(Plain(form), 3, **options)(FLOATS))


def test_what_cannot_be_a_teacher_is_refused():
    refused(lambda: wrap(5, 3), "network or a function")
    refused(lambda: wrap(Plain(), 1), "2 or more")
    refused(lambda: wrap(Plain(), 3, mean=[0.5] * 3), "std")
    refused(lambda: wrap(Plain(), 3)(BYTES), "float")


def test_normalisation_is_inside_the_wrapped_network():
    net = Plain()
    teacher = wrap(net, 3, mean=[0.5] * 3, std=[0.2] * 3)
    assert torch.allclose(teacher(FLOATS), net((FLOATS - 0.5) / 0.2), atol=1e-5)


def test_a_function_is_a_teacher_without_gradients():
    net = Plain()

    def api(images):
        return net(images).softmax(1).numpy().tolist()

    teacher = wrap(api, 3, probabilities=True)
    assert torch.allclose(predict(teacher, FLOATS).softmax(1), predict(net, FLOATS).softmax(1), atol=1e-5)
    refused(lambda: pgd(teacher, FLOATS, LABELS, eps=0.1, steps=1), "without gradients")
    refused(lambda: wrap(lambda images: "no", 3)(FLOATS), "array")


def foreign(kind):
    torch.manual_seed(0)
    return wrap(getattr(torchvision.models, kind)(num_classes=5), 5, mean=[0.5] * 3, std=[0.25] * 3).eval()


@pytest.fixture(scope="module")
def photographs():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(8) % 5, tuple("abcde"), "noise")


@pytest.mark.parametrize("kind", ["resnet18", "mobilenet_v2"])
def test_methods_that_look_inside_refuse_foreign_networks(kind, photographs):
    teacher = foreign(kind)
    for net in (teacher, teacher.model):
        refused(lambda net=net: flatten_layers(net), "stages")
        refused(lambda net=net: transfer(net, 3, keep=0), "stages")
        refused(lambda net=net: penultimate(net, photographs), "stages")
        refused(lambda net=net: prune_dormant(net, photographs), "stages")
        refused(lambda net=net: AttentionTransfer(net)(net, next(iter(Loader(photographs, 4)))), "stages")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resnet18", "mobilenet_v2"])
def test_every_extraction_attack_takes_foreign_networks(kind, photographs):
    teacher, recipe = foreign(kind), Recipe(epochs=1, batch_size=4, lr=0.01, precision="float32")
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    for name, attack in EXTRACTION_ATTACKS.items():
        for student in (models.build("cnn-small", 5, (3, 32, 32), seed=1), foreign("resnet18")):
            try:
                attack(student, teacher, photographs, recipe)
            except KdsecError as error:
                assert "\n" not in str(error) and name in ("features", "skeptical student"), (name, error)
            else:
                assert predict(student, photographs).isfinite().all()
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("kind", ["resnet18", "mobilenet_v2"])
def test_every_evasion_attack_takes_foreign_networks(kind, photographs):
    teacher, labels = foreign(kind), photographs.labels
    images = photographs.float_images()
    for found in (
        fgsm(teacher, images, labels, eps=0.03),
        pgd(teacher, images, labels, eps=0.03, steps=2),
        pgd(teacher, images, labels, eps=1.0, steps=2, norm="l2"),
        adaptive_pgd(teacher, images, labels, eps=0.03, steps=2, restarts=1),
    ):
        assert found.shape == images.shape and float(found.min()) >= 0 and float(found.max()) <= 1
    assert masking_checks(teacher, images, labels, eps=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resnet18", "mobilenet_v2"])
def test_every_data_free_attack_takes_foreign_networks(kind, photographs):
    teacher, small = foreign(kind), {"batch_size": 8, "latent": 8, "width": 8}
    api = wrap(lambda images: teacher(images), 5)
    for attack in (
        DFAD(rounds=1, **small),
        FastDFKD(rounds=2, warmup=1, student_steps=1, augment=Augment(crop=1), **small),
    ):
        student = models.build("cnn-small", 5, (3, 32, 32), seed=1)
        attack(student, teacher, (3, 32, 32))
        assert predict(student, photographs).isfinite().all()
        refused(lambda attack=attack, student=student: attack(student, api, (3, 32, 32)), "gradients")
    inversion = Inversion(batches=1, batch_size=8, steps=1)
    assert inversion(teacher, (3, 32, 32)).shape == (8, 3, 32, 32)
    refused(lambda: inversion(api, (3, 32, 32)), "gradients")


def test_the_page_on_own_data_runs(tmp_path, monkeypatch):
    page = pathlib.Path(__file__).parent.parent / "book" / "own-data.md"
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        pixels = generator.integers(256, size=(40, 50, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "photos" / label / "one.jpg")
    saved(tmp_path / "photos.npz", images=np.zeros((3, 8, 8, 3), np.uint8), labels=np.arange(3))
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(page), "exec"), space)
    assert 0 < space["oracle"].queries <= 40 and space["attacked"].shape == (10, 3, 32, 32)


def test_a_label_beyond_the_whole_numbers_of_torch_is_not_unlabelled():
    with pytest.raises(KdsecError, match="2\\^63"):
        as_labels(np.array([0, 2**64 - 1], np.uint64), 10, "mine")
    assert as_labels(np.array([0, 9], np.uint64), 10, "mine").tolist() == [0, 9]


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    for place in (tmp_path / "pipe.npz", "/dev/zero"):
        with pytest.raises(KdsecError, match="no regular file"):
            read_arrays(place, ["images"])


def test_the_home_sign_is_read_in_the_folder_of_data(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KDSEC_DATA", "~/sets")
    assert home() == tmp_path / "sets"
