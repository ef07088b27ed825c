"""Data: splits that never touch test, damaged files that say so, a loader that augments as it claims."""

import errno
import os
import pathlib
import urllib.error

import numpy as np
import pytest
import torch

from kdsec import data
from kdsec.data import Augment, ImageSet, Loader, published, sources
from kdsec.data.imageset import stratified_index
from kdsec.errors import KdsecError


def tiny(count=20, shape=(3, 6, 6), classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count) % classes, tuple("abcdefgh"[:classes]), "tiny")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An offline folder with a small cifar10.npz in it."""
    generator = np.random.default_rng(0)
    arrays = {
        "train_images": generator.integers(256, size=(200, 32, 32, 3), dtype=np.uint8),
        "train_labels": np.arange(200) % 10,
        "test_images": generator.integers(256, size=(50, 32, 32, 3), dtype=np.uint8),
        "test_labels": (np.arange(50) % 10).astype(np.uint8),
    }
    np.savez(tmp_path / "cifar10.npz", **arrays)
    monkeypatch.setenv("KDSEC_DATA", str(tmp_path))
    monkeypatch.setitem(published.SETS, "cifar10", published.Published(200, 50, (32, 32, 3)))
    return tmp_path


def identities(image_set):
    return {image.numpy().tobytes() for image in image_set.images}


def test_validation_comes_from_train_and_test_never_moves():
    first, second = data.load("digits", seed=0), data.load("digits", seed=1)
    assert torch.equal(first.test.images, second.test.images)
    assert first.val.checksum != second.val.checksum
    assert len(first.train) + len(first.val) + len(first.test) == 1797
    assert not identities(first.val) & identities(first.train)
    # scikit-learn's digits hold one duplicated picture at most; leakage would show as hundreds
    assert len(identities(first.train) & identities(first.test)) <= 1


def test_same_seed_same_split():
    assert data.load("digits", seed=3).train.checksum == data.load("digits", seed=3).train.checksum


@pytest.mark.parametrize("count", [10, 37, 200])
def test_stratified_draw_keeps_every_class_share(count):
    labels = torch.tensor([0] * 100 + [1] * 60 + [2] * 40)
    index = stratified_index(labels, count, seed=5)
    assert len(index.unique()) == count
    wanted = torch.tensor([0.5, 0.3, 0.2]) * count
    assert ((labels[index].bincount(minlength=3) - wanted).abs() <= 1).all()


def test_offline_file_is_read(offline):
    splits = data.load("cifar10", validation=0.2, seed=0)
    assert splits.train.images.shape == (160, 3, 32, 32) and splits.train.images.dtype == torch.uint8
    stored = np.load(offline / "cifar10.npz")["test_images"]
    assert torch.equal(splits.test.images[7].permute(1, 2, 0), torch.from_numpy(stored[7]))
    assert float(splits.test.float_images().max()) <= 1.0


def test_pack_writes_what_load_reads(offline, tmp_path, monkeypatch):
    before = data.check("cifar10")
    packed = data.pack("cifar10", tmp_path / "elsewhere")
    with pytest.raises(KdsecError, match="there already"):  # a file of the user's
        data.pack("cifar10", packed.parent)
    assert data.pack("cifar10", packed.parent, overwrite=True) == packed
    monkeypatch.setenv("KDSEC_DATA", str(tmp_path / "elsewhere"))
    assert data.check("cifar10") == before


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_truncated_file_is_one_clear_line(offline, keep):
    path = offline / "cifar10.npz"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(KdsecError, match=r"cifar10.npz is damaged .*kdsec data get cifar10") as caught:
        data.load("cifar10")
    assert "\n" not in str(caught.value) and "delete" not in str(caught.value)


def test_flipped_bit_is_noticed(offline):
    path = offline / "cifar10.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(KdsecError, match="damaged"):
        data.load("cifar10")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.full(200, 10)}, "outside 0..9"),
        ({"train_labels": np.zeros(199, int)}, "for 200 images"),
        ({"test_images": np.zeros((50, 32, 32, 4), np.uint8)}, "not uint8"),
        ({"test_images": np.zeros((50, 32, 32, 3), np.float32)}, "not uint8"),
        ({"test_images": np.zeros((50, 28, 28), np.uint8)}, "different shapes"),
    ],
)
def test_wrong_content_is_named(offline, change, message):
    arrays = dict(np.load(offline / "cifar10.npz")) | change
    np.savez(offline / "cifar10.npz", **arrays)
    with pytest.raises(KdsecError, match=message):
        data.load("cifar10")


def test_missing_array_is_named(offline):
    arrays = dict(np.load(offline / "cifar10.npz"))
    del arrays["test_labels"]
    np.savez(offline / "cifar10.npz", **arrays)
    with pytest.raises(KdsecError, match="lacks.*test_labels"):
        data.load("cifar10")


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(KdsecError, match="did you mean 'cifar10'.*choose from: digits"):
        data.load("cifar-10")


def test_no_network_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSEC_DATA", str(tmp_path))

    def offline_download(scratch: pathlib.Path):
        (scratch / "half").write_bytes(b"half a file")
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setitem(sources.DOWNLOADS, "mnist", offline_download)
    with pytest.raises(KdsecError, match=r"cannot download mnist .*KDSEC_DATA"):
        data.load("mnist")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_or_quota_leaves_nothing(tmp_path, monkeypatch, number):
    def full(file, **arrays):
        pathlib.Path(file).write_bytes(b"part")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(KdsecError, match="no space left"):
        data.pack("digits", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_or_quota_in_a_download_is_no_matter_of_the_network(tmp_path, monkeypatch, number):
    monkeypatch.setenv("KDSEC_DATA", str(tmp_path))

    def full(scratch: pathlib.Path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setitem(sources.DOWNLOADS, "mnist", full)
    with pytest.raises(KdsecError, match=r"no space left .*KDSEC_DATA") as caught:
        data.load("mnist")
    assert "internet" not in str(caught.value)


def test_download_is_kept_as_one_file(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSEC_DATA", str(tmp_path))
    calls = []

    def download(scratch):
        calls.append(scratch)
        images = np.zeros((12, 28, 28), np.uint8)
        labels = np.arange(12) % 10
        return {
            "train_images": images,
            "train_labels": labels,
            "test_images": images,
            "test_labels": labels,
        }

    monkeypatch.setitem(sources.DOWNLOADS, "mnist", download)
    data.load("mnist")
    data.load("mnist")
    assert len(calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mnist.npz"]


def test_image_set_refuses_labels_that_do_not_fit():
    with pytest.raises(KdsecError, match="3 images and 2 labels"):
        ImageSet(torch.zeros(3, 1, 4, 4), torch.zeros(2).long(), ("a",), "x")
    with pytest.raises(KdsecError, match="labels 1..1 outside"):
        ImageSet(torch.zeros(1, 1, 4, 4), torch.tensor([1]), ("a",), "x")


def test_checksum_sees_pixels_and_labels():
    base = tiny()
    pixel = base.images.clone()
    pixel[0, 0, 0, 0] ^= 1
    others = [
        base.replace(images=pixel),
        base.replace(labels=base.labels.roll(1)),
        base.unlabelled(),
    ]
    assert len({each.checksum for each in [base, *others]}) == 4
    assert tiny().checksum == base.checksum


def test_mean_std_agrees_with_torch():
    base = tiny(50)
    mean, std = base.mean_std()
    flat = base.float_images().double().transpose(0, 1).flatten(1)
    assert mean == pytest.approx(flat.mean(1).tolist())
    assert std == pytest.approx(flat.std(1, correction=0).tolist())
    assert base.replace(images=base.float_images()).mean_std()[0] == pytest.approx(mean)


def test_an_epoch_is_full_batches_of_different_images():
    """Two left-over images once made a batch of their own, whose statistics wrecked batch normalisation."""
    base = tiny(22)
    loader = Loader(base, 4, seed=1)
    left_out = set()
    for _ in range(8):
        batches = list(loader)
        assert len(batches) == len(loader) == 5 and all(len(batch.labels) == 4 for batch in batches)
        position = torch.cat([batch.position for batch in batches])
        assert len(position.unique()) == 20
        left_out |= set(range(22)) - set(position.tolist())
        for batch in batches:
            assert torch.equal(batch.images, base.float_images(batch.position))
            assert torch.equal(batch.labels, base.labels[batch.position])
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert len(left_out) > 4  # other images every time


def test_a_set_smaller_than_a_batch_is_one_batch():
    (batch,) = Loader(tiny(3), 64)
    assert len(batch.labels) == 3


def test_seed_fixes_order_and_augmentation():
    def epochs(seed):
        loader = Loader(tiny(), 5, augment=Augment(2, True, 3), seed=seed)
        return torch.cat([batch.images for _ in range(2) for batch in loader])

    assert torch.equal(epochs(7), epochs(7))
    assert not torch.equal(epochs(7), epochs(8))
    first, second = epochs(7).chunk(2)
    assert not torch.equal(first, second)  # a new draw each epoch


def test_crop_and_flip_show_a_window_of_the_padded_image():
    base = tiny(16)
    padded = torch.nn.functional.pad(base.float_images(), (2, 2, 2, 2))
    flips = shifts = 0
    for _ in range(3):
        for batch in Loader(base, 16, augment=Augment(crop=2, flip=True), seed=_):
            for image, where in zip(batch.images, batch.position, strict=True):
                windows = {
                    (top, left, mirrored): padded[where, :, top : top + 6, left : left + 6].flip(-1)
                    if mirrored
                    else padded[where, :, top : top + 6, left : left + 6]
                    for top in range(5)
                    for left in range(5)
                    for mirrored in (False, True)
                }
                found = [key for key, window in windows.items() if torch.equal(window, image)]
                assert found
                flips += found[0][2]
                shifts += found[0][:2] != (2, 2)
    assert 10 < flips < 38 and shifts > 30  # of 48 draws


def test_cutout_blanks_at_most_its_square():
    base = ImageSet(torch.ones(200, 1, 8, 8), torch.zeros(200).long(), ("a",), "ones")
    blank = torch.cat(
        [(batch.images == 0).flatten(1).sum(1) for batch in Loader(base, 50, augment=Augment(cutout=3))]
    )
    assert blank.max() == 9 and blank.min() >= 1


def test_caller_may_replace_images_and_labels():
    base = tiny(8)
    poisoned = base.replace(images=torch.full((8, 3, 6, 6), 0.5), labels=torch.full((8,), 3))
    batch = next(iter(Loader(poisoned, 8)))
    assert (batch.images == 0.5).all() and (batch.labels == 3).all()


def test_status_and_check_name_every_set(offline):
    rows = {row["name"]: row["where"] for row in data.status()}
    assert tuple(rows) == data.DATASETS
    assert rows["cifar10"].endswith("cifar10.npz") and "kdsec data get mnist" in rows["mnist"]
    with pytest.raises(KdsecError, match="kdsec data get mnist"):
        data.check("mnist")


def test_torchvision_downloads_are_decoded(tmp_path):
    """MNIST's own file format, made here, through torchvision's reader: the path a real download takes."""
    from torchvision.datasets import MNIST

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 30), ("t10k", 10)):
        images = np.arange(count * 784, dtype=np.uint32).astype(np.uint8).reshape(count, 28, 28)
        header = b"\0\0\x08\x03" + np.array([count, 28, 28], ">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + np.array([count], ">i4").tobytes() + bytes(i % 10 for i in range(count))
        )
    arrays = sources.downloads._from_tensors(MNIST, tmp_path)
    assert arrays["train_images"].shape == (30, 28, 28) and arrays["train_images"].dtype == np.uint8
    assert arrays["test_labels"].tolist() == list(range(10))


def test_photographs_of_any_size_become_squares_of_one(tmp_path, monkeypatch):
    """Through fakes of torchvision's sets, which give pictures of all sizes."""
    import PIL.Image

    def pictures(root, split, download):
        for label, (width, height) in enumerate(((300, 200), (150, 260), (40, 40))):
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[height // 2, width // 2] = 255  # the middle stays in the middle
            yield PIL.Image.fromarray(pixels), label

    monkeypatch.setattr("torchvision.datasets.Flowers102", pictures)
    monkeypatch.setattr("torchvision.datasets.GTSRB", pictures)
    flowers = sources.DOWNLOADS["flowers102"](tmp_path)
    assert flowers["train_images"].shape == (6, 224, 224, 3) and flowers["test_images"].shape == (
        3,
        224,
        224,
        3,
    )
    brightest = [
        np.argwhere(image[..., 0] == image[..., 0].max()).mean(0) for image in flowers["test_images"]
    ]
    assert np.abs(np.array(brightest) - 112).max() < 4
    for name, size in (("gtsrb", 32), ("gtsrb-224", 224)):
        signs = sources.DOWNLOADS[name](tmp_path)
        assert signs["test_images"].shape == (3, size, size, 3) and signs["test_images"].dtype == np.uint8


def test_flowers_are_named_as_torchvision_names_them():
    from torchvision.datasets import Flowers102

    if not hasattr(Flowers102, "classes"):
        pytest.skip("this torchvision does not name them")
    theirs = [name.rstrip("?") for name in Flowers102.classes]
    assert list(data.sources.CLASS_NAMES["flowers102"]) == theirs
