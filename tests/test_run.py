"""A chapter's run: every argument checked at the start, one seed one result, records at the end."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from torch import nn

from kdsec import config, models
from kdsec.cache import Cache
from kdsec.distill import KD
from kdsec.errors import KdsecError
from kdsec.report.records import read
from kdsec.run import resolve_device, start
from kdsec.train import Recipe, evaluate

TINY = {
    "teacher": "digits-small",
    "owner": 128,
    "queries": (16, 32),
    "recipe": Recipe(epochs=2, batch_size=32, lr=0.1, precision="float32"),
    "student_steps": 6,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test finds what another one trained, and none changes how many threads the next one has."""
    monkeypatch.setenv("KDSEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KDSEC_FRESH", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def weights(model):
    return torch.cat([tensor.flatten().float() for tensor in model.state_dict().values()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chapter": "opning"}, "did you mean 'opening'.*choose from: opening"),
        ({"profile": "medium"}, "unknown profile 'medium'.*choose from: quick, small, second, paper"),
        ({"device": "tpu"}, "unknown device 'tpu'.*choose from: auto, cpu, cuda"),
        ({"device": None}, "unknown device None"),
        ({"seed": -1}, "seed=-1 must be a whole number"),
        ({"seed": 1.0}, "seed=1.0 must be a whole number"),
        ({"seed": "0"}, "seed='0' must be a whole number"),
        ({"seed": True}, "seed=True must be a whole number"),
        ({"seed": 2**32}, "seed=4294967296 must be a whole number"),  # would repeat seed 0
        ({"overrides": {"tempreture": 2.0}}, "did you mean 'temperature'.*choose from: dataset, "),
        ({"overrides": {"temperature": "hot"}}, "temperature='hot' has the wrong type.*number"),
        ({"overrides": {"owner": 1.5}}, "owner=1.5 has the wrong type.*int"),
        ({"overrides": {"queries": 50}}, "queries=50 has the wrong type.*a list such as \\[1, 2\\]"),
        ({"overrides": {"dataset": "cifar"}}, "did you mean 'cifar10'"),
        ({"overrides": {"validation": 1}}, "validation=1 must be less than 1"),
        ({"overrides": ["alpha"]}, "must be a dictionary of settings"),
        ({"out": ""}, "out='' is not the path"),
        ({"out": 5}, "out=5 is not the path of a folder"),
    ],
)
def test_mistakes_are_found_at_the_start_in_one_line(arguments, message, capsys):
    arguments = {"chapter": "opening", **arguments}
    with pytest.raises(KdsecError, match=message) as caught:
        start(arguments.pop("chapter"), **arguments)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""  # nothing claims that a run has begun


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KdsecError, match="cuda.*no GPU.*use auto or cpu") as caught:
        start("opening", device="cuda")
    assert "\n" not in str(caught.value)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")


def test_auto_takes_the_gpu_and_cpu_does_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == resolve_device("cuda").type == "cuda"
    assert resolve_device("cpu").type == "cpu"


def test_the_header_tells_which_split_this_is(capsys):
    """nbval compares this text: it is how a notebook that ran with another seed is noticed."""

    def header(seed):
        run = start("opening", seed=seed)
        text = capsys.readouterr().out
        found = re.search(r"split ([0-9a-f]{8})\b", text)
        assert found and run.data.train.checksum.startswith(found[1])
        assert f"chapter opening, profile quick, seed {seed}" in text
        for part in (run.data.train, run.data.val, run.data.test):
            assert f" {len(part)} " in text
        return text, found[1]

    assert header(0) == header(0)
    assert len({split for _, split in map(header, range(4))}) == 4


def test_int_stands_for_float_and_overrides_reach_the_settings():
    run = start("opening", overrides={"temperature": 2, "owner": 100})
    assert (run.settings.temperature, run.settings.owner) == (2, 100)
    assert run.settings.alpha == config.settings("opening", "quick").alpha
    assert run.overrides == {"temperature": 2, "owner": 100}


def test_all_arms_start_from_the_same_weights():
    """An arm that starts elsewhere differs in more than what it is compared for."""
    run = start("opening", seed=3)
    first = run.build("digits-small")
    torch.rand(7)  # what an arm draws in between must not matter
    assert torch.equal(weights(first), weights(run.build("digits-small")))
    again = start("opening", seed=3)
    assert torch.equal(weights(first), weights(again.build("digits-small")))
    # The parameters alone: normalisation differs in any case, since the split does.
    mine, others = (
        nn.utils.parameters_to_vector(net.parameters())
        for net in (first, start("opening", seed=4).build("digits-small"))
    )
    assert not torch.equal(mine, others)


def test_a_student_never_starts_as_its_teacher_did():
    run = start("opening", seed=3)
    nets = [weights(run.build("digits-small", role)) for role in ("teacher", "student", "shadow", "student")]
    assert torch.equal(nets[1], nets[3])
    assert not any(torch.equal(nets[i], nets[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    with pytest.raises(KdsecError, match="unknown role 'pupil'"):
        run.build("digits-small", "pupil")


def test_foreign_images_are_as_many_unlabelled_and_another_kind():
    run = start("opening")
    own = run.data.train.subset(slice(0, 20))
    turned = run.foreign("rotated", own)
    assert torch.equal(turned.images.rot90(-1, (2, 3)), own.images) and (turned.labels == -1).all()
    with pytest.raises(KdsecError, match="choose another foreign set"):
        run.foreign("digits", run.data.train, "val")


def test_normalisation_comes_from_the_training_images():
    run = start("opening")
    mean, std = run.data.train.mean_std()
    layer = run.build("digits-small").normalize
    assert layer.mean.flatten().tolist() == pytest.approx(mean)
    assert layer.std.flatten().tolist() == pytest.approx(std)


def steal(seed=0):
    """A chapter in small: a teacher, a student that asks it on line, one from stored answers."""
    run = start("opening", seed=seed, overrides=TINY)
    s = run.settings
    owner = run.data.train.subset(slice(0, s.owner))
    teacher = run.fit("teacher", run.build(s.teacher), owner, s.recipe)
    pool = run.data.train.subset(slice(s.owner, s.owner + max(s.queries))).unlabelled()
    kd = KD(teacher, s.temperature, alpha=1.0)
    student = run.fit("KD", run.build(s.student), pool, s.student_recipe(len(pool)), kd)
    return run, teacher, student


def test_the_same_seed_gives_the_same_bits_trained_or_fetched(tmp_path, monkeypatch):
    results = []
    for folder, seed in (("a", 0), ("b", 0), ("a", 0), ("c", 1)):
        monkeypatch.setenv("KDSEC_CACHE", str(tmp_path / folder))
        torch.rand(len(results))
        run, teacher, student = steal(seed)
        results.append((run.cache.hits, weights(teacher), weights(student)))
    (first, *one), (second, *two), (third, *fetched), (_, *other) = results
    assert (first, second, third) == (0, 0, 2)
    for trained, again, kept, elsewhere in zip(one, two, fetched, other, strict=True):
        assert torch.equal(trained, again)
        assert torch.equal(trained, kept)
        assert not torch.equal(trained, elsewhere)


def test_training_follows_the_seed_of_the_run():
    """Same images, same initial weights: another seed still gives another order, hence another net."""
    run, nets = start("opening", seed=0), []
    for each in (run, dataclasses.replace(run, seed=1)):
        nets.append(each.fit("labels", run.build("digits-small"), run.data.val, TINY["recipe"]))
    assert not torch.equal(*map(weights, nets))


def test_a_student_of_a_fetched_teacher_is_the_student_of_the_trained_one(tmp_path):
    """A rerun after a crash finds some models and trains the rest: it must make no difference."""
    _, _, student = steal()
    for file in (tmp_path / "cache").glob("*KD*.safetensors"):
        file.unlink()
    run, _, again = steal()
    assert (run.cache.hits, run.cache.misses) == (1, 1)
    assert torch.equal(weights(student), weights(again))


def test_fresh_trains_again(monkeypatch):
    steal()
    monkeypatch.setenv("KDSEC_FRESH", "1")
    run, *_ = steal()
    assert (run.cache.hits, run.cache.misses) == (0, 2)
    assert isinstance(run.cache, Cache) and run.cache.fresh


def test_score_records_validation_and_test_with_their_sizes():
    run = start("opening")
    model = run.build("digits-small")
    score = run.score("KD", "digits-small", model, queries=50)
    frame = run.records.frame().set_index("metric")
    assert set(frame.index) == {"validation accuracy", "test accuracy"}
    assert set(frame["arm"]) == {"KD"} and set(frame["setting"]) == {"queries=50"}
    for metric, part in (("validation accuracy", run.data.val), ("test accuracy", run.data.test)):
        assert frame["n"][metric] == len(part)
        assert frame["value"][metric] == pytest.approx(evaluate(model, part).accuracy, abs=1e-9)
    assert score == evaluate(model, run.data.test)  # what is printed is the test score
    with pytest.raises(KdsecError, match="added before"):
        run.score("KD", "digits-small", model, queries=50)


def test_finish_writes_records_with_their_provenance(tmp_path, capsys):
    run = start("opening", seed=5, out=tmp_path, overrides={"owner": 100})
    run.score("labels", "digits-small", run.build("digits-small"))
    path = run.finish()
    assert path == tmp_path / "quick" / "opening" / "seed5.csv"
    assert "2 records of opening, profile quick, seed 5" in capsys.readouterr().out
    frame = read(tmp_path, "quick", "opening")
    assert list(frame["seed"]) == [5, 5]
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert about["data"] == run.data.checksums
    assert about["overrides"] == {"owner": 100} and about["settings"]["owner"] == 100
    assert about["machine"]["device"] == "cpu" and about["seconds"] >= 0
    assert sorted(each.name for each in path.parent.iterdir()) == ["seed5.csv", "seed5.json"]


def test_finish_gives_the_threads_back(capsys):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run = start("opening")
        assert torch.get_num_threads() == 1
        run.finish()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_without_out_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = start("opening")
    run.score("labels", "digits-small", run.build("digits-small"))
    assert run.finish() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", config.CHAPTERS)
def test_every_chapter_has_frozen_profiles(name):
    kinds = set()
    for profile in config.profiles(name):
        settings = config.settings(name, profile)
        kinds.add(type(settings))
        for field in dataclasses.fields(settings):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(settings, field.name, None)
            hash(getattr(settings, field.name))  # a list inside would not be frozen
    assert len(kinds) == 1
    assert {"quick", "small", "paper"} <= set(config.profiles(name)) <= set(config.PROFILES)


@pytest.mark.parametrize("name", config.CHAPTERS)
def test_a_chapters_own_settings_pass_the_check_of_overrides(name):
    """Each field's value is of the type that its annotation says, at every profile."""
    for profile in config.profiles(name):
        settings = config.settings(name, profile)
        values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
        assert config.settings(name, profile, values) == settings


def test_more_images_than_there_are_end_before_anything_is_trained(tmp_path):
    with pytest.raises(KdsecError, match=r"1450 training images.* digits has 1078") as error:
        start("opening", out=tmp_path, overrides={"owner": 1000})
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_opening_names_nets():
    for profile in config.profiles("opening"):
        settings = config.settings("opening", profile)
        assert {settings.teacher, settings.student} <= set(models.names())
        assert list(settings.queries) == sorted(set(settings.queries))


def test_a_profile_that_a_chapter_lacks_is_refused_and_those_it_has_are_named():
    with pytest.raises(KdsecError, match="profile of chapter opening.*second.*quick, small, paper") as error:
        start("opening", profile="second")
    assert "\n" not in str(error.value)


def test_the_second_profile_is_the_small_one_on_other_data():
    for name in config.CHAPTERS:
        if "second" in config.profiles(name):
            small, second = (config.settings(name, profile) for profile in ("small", "second"))
            data = {"dataset", "student_dataset"} & {field.name for field in dataclasses.fields(small)}
            assert any(getattr(small, field) != getattr(second, field) for field in data)


def test_more_data_is_split_by_the_same_seed_and_named_in_the_provenance(tmp_path, capsys, monkeypatch):
    run = start("opening", seed=3, out=tmp_path)
    assert run.more_data("digits") is run.data and not run.checksums
    asked = []

    def load(name, **options):
        asked.append((name, options))
        return dataclasses.replace(run.data, name=name)

    monkeypatch.setattr("kdsec.run.data.load", load)
    assert run.more_data("gtsrb").name == "gtsrb" and "gtsrb: 1078 training" in capsys.readouterr().out
    assert asked == [("gtsrb", {"validation": run.settings.validation, "seed": 3, "device": run.device})]
    run.records.add("an arm", "a net", "accuracy", 0.5)
    facts = json.loads(run.finish().with_suffix(".json").read_text())
    assert facts["data"]["gtsrb test"] == run.data.test.checksum


def test_overrides_do_not_stay():
    before = config.settings("opening", "quick")
    config.settings("opening", "quick", {"owner": 70})
    assert config.settings("opening", "quick") == before


@pytest.mark.parametrize("images", [1, 50, 63, 64, 450, 600])
def test_every_student_takes_the_same_number_of_steps(images):
    settings = config.settings("opening", "quick")
    recipe = settings.student_recipe(images)
    assert recipe.total_steps(images) == settings.student_steps
    assert dataclasses.replace(recipe, epochs=settings.recipe.epochs, steps=None) == settings.recipe


def half(images, factor=0.5):
    print("computed with", factor)
    return images * factor


def test_once_computes_once_per_arguments(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("KDSEC_CACHE", str(tmp_path))
    images = torch.rand(2, 1, 4, 4)
    for _ in range(2):
        run = start("opening")
        assert torch.equal(run.cached("half", half, images), images / 2)
        assert torch.equal(run.cached("half", half, images, factor=2.0), images * 2)
    assert re.findall(r"computed with (\S+)", capsys.readouterr().out) == ["0.5", "2.0"]


def test_recordings_are_those_of_the_book_and_else_the_run_itself(tmp_path, monkeypatch):
    run = start("opening", seed=3)
    run.records.add("labels", "digits-small", "test accuracy", 0.5, n=10)
    monkeypatch.setenv("KDSEC_RESULTS", str(tmp_path))
    ((name, (at, rows)),) = run.recorded_results().items()
    assert (name, at) == ("quick", run.settings) and rows["value"].tolist() == [0.5]
    run.out = tmp_path
    run.finish()
    other = start("opening", seed=4)
    ((name, (at, rows)),) = other.recorded_results().items()
    assert name == "quick" and rows["seed"].tolist() == [3]
    other.finish()


def test_thief_and_owner_can_have_the_same_images():
    begun = start("opening")
    owner, thief, rest = begun.deal(100, 40, 50, overlap=True)
    apart, other = begun.deal(100, 50)
    assert torch.equal(thief.images, owner.images[:40]) and len(owner) == 100
    assert torch.equal(owner.images, apart.images) and torch.equal(rest.images, other.images)
    with pytest.raises(KdsecError, match="lower the numbers"):
        begun.deal(40, 100, overlap=True)
