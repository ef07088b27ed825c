"""Checkpoints and the cache: content decides, damage is noticed, two processes do the work once."""

import copy
import dataclasses
import errno
import io
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kdsec import models
from kdsec.cache import Cache, check_folder, load_checkpoint, save_checkpoint, step_operations
from kdsec.data import load
from kdsec.defenses.perturbations import EndToEnd
from kdsec.defenses.purification import Restore
from kdsec.distill import KD
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint
from kdsec.oracle import Oracle
from kdsec.train import Recipe, predict
from tests.test_train import net, stripes

RECIPE = Recipe(epochs=1, batch_size=64, lr=0.05, precision="float32")


def saved(path, tensors=None, recipe="abc", **notes):
    save_checkpoint(path, net().state_dict() if tensors is None else tensors, recipe, **notes)
    return path


def test_checkpoint_round_trip(tmp_path):
    weights = net().state_dict()
    tensors, notes = load_checkpoint(saved(tmp_path / "m.safetensors", weights, epochs=3), "abc")
    assert notes == {"epochs": 3} and fingerprint(tensors) == fingerprint(dict(sorted(weights.items())))
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_tied_weights_are_stored(tmp_path):
    shared = torch.ones(3)
    tensors, _ = load_checkpoint(saved(tmp_path / "m.safetensors", {"a": shared, "b": shared}), "abc")
    assert torch.equal(tensors["a"], tensors["b"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, number):
    def fails(tensors, file, metadata):
        file.write_bytes(b"part")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("kdsec.cache.save_file", fails)
    with pytest.raises(KdsecError, match="KDSEC_CACHE") as caught:
        saved(tmp_path / "m.safetensors")
    assert ("no space" in str(caught.value)) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_tried_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSEC_CACHE", str(tmp_path / "new" / "cache"))
    check_folder()
    assert list((tmp_path / "new" / "cache").iterdir()) == []
    for impossible in ("/etc/passwd", "/etc/passwd/cache", "/proc/cache", str(tmp_path / ("x" * 300))):
        monkeypatch.setenv("KDSEC_CACHE", impossible)
        with pytest.raises(KdsecError, match="set KDSEC_CACHE") as caught:
            check_folder()
        assert "\n" not in str(caught.value)


def test_a_folder_without_file_locks_is_refused(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(KdsecError, match="locks"):
        check_folder(tmp_path)


def test_same_arguments_are_trained_once(tmp_path):
    cache = Cache(tmp_path)
    first = cache.fit(net(), stripes(), RECIPE)
    second = cache.fit(net(), stripes(), RECIPE)
    assert (cache.misses, cache.hits) == (1, 1)
    again = Cache(tmp_path)
    again.fit(net(), stripes(), RECIPE)
    assert again.seconds > 0  # of training, not of reading
    assert again.seconds == pytest.approx(cache.seconds / 2, abs=0.02)
    images = stripes().float_images()
    assert torch.equal(predict(first, images), predict(second, images))
    assert not second.training


def test_an_entry_serves_whoever_asks_for_the_same_under_another_label(tmp_path):
    cache = Cache(tmp_path)
    first = cache.fit(net(), stripes(), RECIPE, label="negate")
    second = cache.fit(net(), stripes(), RECIPE, label="decoupled")
    assert (cache.misses, cache.hits) == (1, 1)
    images = stripes().float_images()
    assert torch.equal(predict(first, images), predict(second, images))


def test_whatever_matters_makes_another_entry(tmp_path):
    cache = Cache(tmp_path)
    teachers = net(seed=1).eval(), net(seed=2).eval()
    data = stripes()
    cache.fit(net(), data, RECIPE, KD(teachers[0]))
    for model, images, recipe, loss, seed in [
        (net(seed=4), data, RECIPE, KD(teachers[0]), 0),
        (net(), stripes(seed=9), RECIPE, KD(teachers[0]), 0),
        (net(), data.replace(labels=1 - data.labels), RECIPE, KD(teachers[0]), 0),
        (net(), data, dataclasses.replace(RECIPE, lr=0.04), KD(teachers[0]), 0),
        (net(), data, RECIPE, KD(teachers[1]), 0),
        (net(), data, RECIPE, KD(teachers[0], temperature=2.0), 0),
        (net(), data, RECIPE, None, 0),
        (net(), data, RECIPE, KD(teachers[0]), 1),
    ]:
        cache.fit(model, images, recipe, loss, seed=seed)
    assert (cache.misses, cache.hits) == (9, 0)


def test_fresh_trains_again(tmp_path):
    Cache(tmp_path).fit(net(), stripes(), RECIPE)
    fresh = Cache(tmp_path, fresh=True)
    fresh.fit(net(), stripes(), RECIPE)
    assert (fresh.misses, fresh.hits) == (1, 0)


def pickled(tensors):
    torch.save(tensors, file := io.BytesIO())
    return file.getvalue()


def rewritten(entry, change):
    """The entry with other tensors under its own notes."""
    with safe_open(entry, framework="pt") as stored:
        notes = stored.metadata()
    tensors = load_file(entry)
    change(tensors)
    save_file(tensors, entry, metadata=notes)


DAMAGE = {
    "empty": lambda entry: entry.write_bytes(b""),
    "truncated": lambda entry: entry.write_bytes(entry.read_bytes()[:-1]),
    "one bit": lambda entry: entry.write_bytes(entry.read_bytes()[:-1] + b"\xff"),
    "pickle": lambda entry: entry.write_bytes(pickled(net().state_dict())),
    "text": lambda entry: entry.write_text("<html>not found</html>"),
    "no notes": lambda entry: save_file(net().state_dict(), entry),
    "foreign notes": lambda entry: save_file(net().state_dict(), entry, metadata={"notes": "[1]"}),
    "other weights": lambda entry: rewritten(entry, lambda tensors: tensors["1.weight"].zero_()),
    "extra tensor": lambda entry: rewritten(entry, lambda tensors: tensors.update(new=torch.ones(1))),
    "missing tensor": lambda entry: rewritten(entry, lambda tensors: tensors.pop("1.weight")),
    "other shapes": lambda entry: saved(entry, {"a": torch.ones(2)}, entry.stem.rpartition("-")[2]),
    "folder": lambda entry: (entry.unlink(), entry.mkdir(), (entry / "own file").write_text("kept")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_entry_that_is_not_what_was_written_is_made_again_and_said_once(tmp_path, capsys, damage):
    first = Cache(tmp_path).fit(net(), stripes(), RECIPE)
    (entry,) = tmp_path.glob("*.safetensors")
    DAMAGE[damage](entry)
    cache = Cache(tmp_path)
    for _ in range(2):
        assert fingerprint(cache.fit(net(), stripes(), RECIPE)) == fingerprint(first)
    assert (cache.misses, cache.hits) == (1, 1)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kdsec:")]
    assert len(said) == 1 and entry.name in said[0]
    assert damage != "folder" or (entry / "own file").read_text() == "kept"


def test_a_pickle_is_named_and_nobody_is_told_to_delete_it(tmp_path):
    (tmp_path / "own.pth").write_bytes(pickled(net().state_dict()))
    with pytest.raises(KdsecError, match="torch.save") as caught:
        load_checkpoint(tmp_path / "own.pth", "abc")
    assert "delete" not in str(caught.value) and "\n" not in str(caught.value)


def _slow_entry(folder, counter):
    def make():
        with open(counter, "a") as file:
            file.write("x")
        time.sleep(0.5)
        return {"value": torch.ones(3)}

    Cache(folder).tensors("shared", "key", torch.device("cpu"), make)


def test_two_processes_make_one_entry(tmp_path):
    context = multiprocessing.get_context("fork")
    counter = tmp_path / "counter"
    workers = [context.Process(target=_slow_entry, args=(tmp_path / "cache", counter)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert counter.read_text() == "x"


def test_a_killed_maker_leaves_nothing_in_the_way(tmp_path):
    context = multiprocessing.get_context("fork")
    counter = tmp_path / "counter"
    worker = context.Process(target=_slow_entry, args=(tmp_path / "cache", counter))
    worker.start()
    while not counter.exists():
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(30)
    assert not list((tmp_path / "cache").glob("*.safetensors"))
    _slow_entry(tmp_path / "cache", counter)
    assert counter.read_text() == "xx"


def test_operations_are_counted_and_kept_with_the_entry(tmp_path):
    """A linear layer of M x N costs 2MN an image forward, and as much backward for its weights."""
    data = stripes(128)
    pixels = data.images[0].numel()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(pixels, data.num_classes))
    by_hand = 2 * (2 * pixels * data.num_classes * RECIPE.batch_size) * RECIPE.total_steps(len(data))
    for _ in range(2):
        cache = Cache(tmp_path)
        cache.fit(copy.deepcopy(model), data, RECIPE)
        assert cache.operations == by_hand
    assert cache.hits == 1


def test_operations_of_a_loss_that_attacks_through_a_network_are_counted():
    """Chapter 5 trains a purifier end to end: ``autograd.grad`` inside the loss."""
    images = load("digits", seed=0).train.subset(slice(0, 16))
    classifier = models.build("digits-small", 10, images.shape, seed=0)
    purifier = models.build_autoencoder("autoencoder-small", images.shape, seed=0)
    recipe = Recipe(epochs=1, batch_size=16)
    counted = [
        step_operations(purifier, images, recipe, Restore(EndToEnd(classifier, 0.1, steps)))
        for steps in (1, 3)
    ]
    assert 0 < counted[0] < counted[1]


def test_counting_operations_asks_an_oracle_nothing_new(tmp_path):
    oracle = Oracle(net())
    data, counts = stripes(128), []
    for count in (True, False):
        Cache(tmp_path / str(count)).fit(net(), data, RECIPE, KD(oracle, alpha=1.0))
        counts.append(oracle.queries)
    assert counts[0] == counts[1] == 128 // 64 * 64


@pytest.mark.parametrize("draw", [np.random.rand, random.random, lambda: torch.rand(1).item()])
def test_a_result_that_draws_from_a_shared_stream_is_not_kept(tmp_path, capsys, draw):
    cache = Cache(tmp_path)
    made = [
        cache.tensors("drawn", "key", torch.device("cpu"), lambda: {"a": torch.tensor([draw()])})["a"]
        for _ in range(3)
    ]
    assert len({float(each) for each in made}) == 3 and cache.hits == 0 and cache.misses == 3
    assert capsys.readouterr().err.count("is not kept") == 3 and not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("label", ["a/b", "../../outside", "a\0b", "a\nb", "x" * 999, "*", "", None])
def test_any_label_stays_inside_the_folder(tmp_path, label):
    folder = tmp_path / "inside"
    for _ in range(2):
        cache = Cache(str(folder))  # a string does as well
        cache.tensors(label, "key", torch.device("cpu"), lambda: {"a": torch.zeros(1)})
    assert cache.hits == 1 and [each.name for each in tmp_path.iterdir()] == ["inside"]


@pytest.mark.parametrize(
    "made", [None, torch.zeros(1), {"a": 3}, {1: torch.zeros(1)}, {"a": torch.eye(2).to_sparse()}]
)
def test_only_dense_tensors_by_name_are_kept(tmp_path, made):
    with pytest.raises(KdsecError, match="tensor"):
        Cache(tmp_path).tensors("a", "key", torch.device("cpu"), lambda: made)


@pytest.mark.parametrize("folder", ["", None, 5, "/etc/passwd", "/proc/none"])
def test_what_is_no_folder_is_one_line(folder):
    with pytest.raises(KdsecError, match="cache folder"):
        Cache(folder).tensors("a", "key", torch.device("cpu"), lambda: {"a": torch.zeros(1)})


def test_an_entry_that_cannot_be_read_is_made_again(tmp_path, capsys):
    for _ in range(2):
        Cache(tmp_path).tensors("a", "key", torch.device("cpu"), lambda: {"a": torch.zeros(1)})
    (entry,) = tmp_path.glob("*.safetensors")
    entry.unlink()
    entry.symlink_to("/proc/self/mem")
    again = Cache(tmp_path)
    again.tensors("a", "key", torch.device("cpu"), lambda: {"a": torch.zeros(1)})
    assert again.misses == 1 and "making it again" in capsys.readouterr().err
