"""Checkpoints and the cache: content decides, damage is noticed, two processes do the work once."""

import dataclasses
import multiprocessing
import os
import pathlib
import signal
import time

import pytest
import torch
from torch import nn

from kdsec.cache import Cache, load_checkpoint, load_into, save_checkpoint
from kdsec.distill import KD
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint, source_fingerprint
from kdsec.train import Recipe, predict
from tests.test_train import net, stripes

RECIPE = Recipe(epochs=1, batch_size=64, lr=0.05, precision="float32")


def test_checkpoint_round_trip(tmp_path):
    model, other = net(seed=0), net(seed=1)
    path = save_checkpoint(tmp_path / "m.safetensors", model.state_dict(), "abc", epochs=3)
    assert load_into(other, path, "abc") == {"epochs": 3}
    images = stripes().float_images()
    assert torch.equal(predict(model, images), predict(other, images))
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_checkpoint_of_another_recipe_is_refused(tmp_path):
    path = save_checkpoint(tmp_path / "m.safetensors", net().state_dict(), "abc")
    with pytest.raises(KdsecError, match="made by recipe abc, not xyz; delete it"):
        load_checkpoint(path, "xyz")


def test_checkpoint_of_another_architecture_is_refused(tmp_path):
    path = save_checkpoint(tmp_path / "m.safetensors", net().state_dict(), "abc")
    with pytest.raises(KdsecError, match="another architecture than this Linear") as caught:
        load_into(nn.Linear(3, 3), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_damaged_checkpoint_is_named(tmp_path, keep):
    path = save_checkpoint(tmp_path / "m.safetensors", net().state_dict(), "abc")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(KdsecError, match=r"m.safetensors is damaged"):
        load_checkpoint(path)


def test_missing_checkpoint(tmp_path):
    with pytest.raises(KdsecError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(tensors, file, metadata):
        file.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdsec.cache.save_file", full)
    with pytest.raises(KdsecError, match="no space left"):
        save_checkpoint(tmp_path / "m.safetensors", net().state_dict(), "abc")
    assert list(tmp_path.iterdir()) == []


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


def test_damaged_entry_is_made_again(tmp_path, capsys):
    Cache(tmp_path).fit(net(), stripes(), RECIPE)
    (entry,) = tmp_path.glob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:100])
    cache = Cache(tmp_path)
    cache.fit(net(), stripes(), RECIPE)
    assert cache.misses == 1 and "damaged" in capsys.readouterr().err


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


@dataclasses.dataclass(frozen=True)
class Loss:
    weight: float = 1.0


def test_fingerprints_tell_types_apart():
    values = [
        None,
        1,
        1.0,
        True,
        "1",
        b"1",
        [1],
        (1,),
        {"a": 1},
        torch.ones(1),
        torch.ones(1).double(),
        Loss(),
        Loss(2.0),
    ]
    assert len({fingerprint(value) for value in values}) == len(values)


def test_fingerprint_ignores_memory_layout_and_key_order():
    images = torch.rand(2, 3, 4, 4)
    assert fingerprint(images) == fingerprint(images.to(memory_format=torch.channels_last))
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_fingerprint_refuses_what_it_cannot_see_into():
    captured = 3
    with pytest.raises(KdsecError, match="captures variables"):
        fingerprint(lambda model, batch: captured)
    with pytest.raises(KdsecError, match="no stable fingerprint"):
        fingerprint(object())


def test_fingerprint_of_a_method_covers_the_functions_it_leans_on(monkeypatch):
    from kdsec.attacks import views
    from kdsec.defenses.sparse_teacher import SparseTeacherLoss, disturb
    from kdsec.defenses.stingy import Stingy

    def edited(path, **options):
        text = read_text(path, **options)
        return text + "# edited" if path.name in ("stingy.py", "views.py") else text

    methods = SparseTeacherLoss(), Stingy(net(), 1), views.view(net()), disturb
    values = *methods, KD(torch.zeros(2, 2)), net()
    before = [fingerprint(value) for value in values]
    read_text = pathlib.Path.read_text
    monkeypatch.setattr(pathlib.Path, "read_text", edited)
    after = [fingerprint(value) for value in values]
    assert [old != new for old, new in zip(before, after, strict=True)] == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]


def test_source_fingerprint_follows_the_text(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("x = 1\n")
    before = source_fingerprint(file)
    assert source_fingerprint(file) == before
    file.write_text("x = 2\n")
    assert source_fingerprint(file) != before
