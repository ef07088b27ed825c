"""The benchmarks: they measure what they say, and the speed that the project promises holds."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import accuracy, attacks, audits, processes, schedules, steps, textbook, together
from benchmarks.__main__ import ASKED_FOR, ROUNDS, main
from kdsec import config, models
from kdsec.attacks.similarity import ms_ssim
from kdsec.audit import page, verdict
from kdsec.config import CHAPTERS
from kdsec.distill import kd_loss
from kdsec.errors import KdsecError
from kdsec.train import Recipe


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "--only kdstep",
            "did you mean 'kd_step'.*choose from: training_step, kd_step, kd_students, adversarial_set, pgd",
        ),
        ("--only import nothing", "unknown benchmark 'nothing'.*choose from: training_step, "),
        ("--only", "expected at least one argument"),
        ("--format yaml", "unknown format 'yaml'.*choose from: table, json"),
        ("--rounds 0", "--rounds 0 must be 1 or more"),
        ("--rounds many", "--rounds.*--help"),
        ("--fast", "--fast.*--help"),
    ],
)
def test_every_mistake_is_one_line_and_status_2(command, message, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.__main__._measure", lambda *_: pytest.fail("began to measure"))
    assert main(command.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert re.match(f"benchmarks: error: .*{message}", printed.err)


def test_the_table_names_every_ratio(capsys, monkeypatch):
    known = {
        "training_step": {"kdsec_images_per_second": 900.0, "textbook_images_per_second": 400.0},
        "kd_students": {
            "first_images_per_second": 800.0,
            "later_images_per_second": 950.0,
            "textbook_images_per_second": 400.0,
            "students": 6,
            "net": "resnet8",
            "teacher": "resnet20",
        },
        "adversarial_set": {"attack_seconds": 2.1, "bare_seconds": 2.0},
        "pgd": {
            "kdsec_per_second": 210.0,
            "baseline_per_second": 84.0,
            "unit": "images",
            "baseline": "a loop",
        },
        "growth": {"worst": "images", "times": 4},
        "together": {"over_one_by_one": {"cnn": {"processes": 1.9, "stacked": 0.3}}, "students": 4},
        "import": {"kdsec_seconds": 1.2, "torch_seconds": 1.0},
        "quick_book": {"seconds": 20.0, "allowed_seconds": 60.0},
    }
    known["kd_step"] = known["training_step"]
    known |= dict.fromkeys(("adversarial_step", "datafree_step", "mimicry"), known["pgd"])
    common = {"ratio": 2.25, "precision": "bfloat16", "textbook_workers": 1, "utilisation": 0.25}
    common |= {"unit": "images", "baseline": "a loop"}
    monkeypatch.setattr("benchmarks.__main__._measure", lambda name, _: {**known[name], **common})
    assert main([]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "ratio", "goal", "of"]
    asked = [name for name in ROUNDS if name not in ASKED_FOR]
    assert [line.split()[:2] for line in lines] == [[name, "2.25"] for name in asked]
    for text in (
        "900 to 400 images/s (bfloat16, baseline with 1 workers; 25% of a matrix product's FLOP/s)",
        "800, from the second student on 950, to 400 images/s (6 students resnet8 of one resnet20)",
        "4 students: cnn 1.90 and 0.30",
        "2.10 s to 2.00 s for the passes",
        "1.20 s to 1.00 s",
        "seconds of 4 times as many images to 4 times",
        "210 to 84 images/s (a loop)",
        "60 s allowed",
    ):
        assert any(text in line for line in lines)


def test_figures_are_whole_and_fit_their_ratio(capsys, monkeypatch):
    for name, value in (("KDSEC_PROGRESS", "log"), ("GOMP_SPINCOUNT", "20000")):
        monkeypatch.setenv(name, value)  # main sets them: put back afterwards what was there
    few = "--only training_step kd_step --format json --rounds 2 --steps 1 --batch 2"
    assert main(few.split()) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["threads"] == torch.get_num_threads() and report["versions"]["torch"]
    assert [result["name"] for result in report["results"]] == ["training_step", "kd_step"]
    for result in report["results"]:
        assert len(result["ratios"]) == 2 and result["ratio"] == statistics.median(result["ratios"])
        assert result["kdsec_images_per_second"] > 0 and result["textbook_images_per_second"] > 0
        tried = result["textbook_images_per_second_by_workers"]
        assert set(tried) == {"0", "1", "2"}
        assert max(tried, key=tried.__getitem__) == str(result["textbook_workers"])  # at its best
        assert (result["net"], result["batch"], result["steps"]) == ("resnet20", 2, 1)
        assert result["utilisation"] == result["flops_per_second"] / result["flops_per_second_of_a_product"]
        assert 0 < result["utilisation"] < 1


def test_a_step_costs_what_the_layers_add_up_to():
    """Forward once, backward twice but for the first layer's input, and the teacher's forward on top."""
    data = steps.random_images(4)
    net, once = models.build(steps.NET, 10, (3, 32, 32), seed=0), []
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            # Every weight is multiplied, and the product added, for every image and pixel of the output.
            layer.register_forward_hook(
                lambda layer, _, out: once.append(2 * layer.weight.numel() * len(out) * out[0, 0].numel())
            )
    net(data.float_images())
    total, first = sum(once), once[0]
    assert steps.step_flops(data, False, 4) == 3 * total - first
    assert steps.step_flops(data, True, 4) == 4 * total - first


def test_stacked_students_learn_what_each_learns_alone():
    images, labels = together.batch_of("digits-small")
    step = together.stacked_step(together.students("digits-small", 3))
    stacked = torch.stack([step(images, labels) for _ in range(4)])
    for column, net in zip(stacked.T, together.students("digits-small", 3), strict=True):
        optimizer = together.sgd(net.parameters())
        for wanted in column:
            loss = torch.nn.functional.cross_entropy(net(images), labels)
            assert loss.item() == pytest.approx(wanted.item(), rel=1e-3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert stacked[-1].max() < stacked[0].min()


def test_students_of_one_teacher_ask_it_once(capsys, monkeypatch):
    for name, value in (("KDSEC_PROGRESS", "log"), ("GOMP_SPINCOUNT", "20000")):
        monkeypatch.setenv(name, value)
    asked = []
    block = steps.kdsec_block

    def counted(data, distil, batch, net, answers):
        seconds = block(data, distil, batch, net, answers)
        asked.append((net, answers.asked, answers.recalled))
        return seconds

    monkeypatch.setattr(steps, "kdsec_block", counted)
    few = "--only kd_students --format json --rounds 2 --steps 1 --batch 2"
    assert main(few.split()) == 0
    (found,) = json.loads(capsys.readouterr().out)["results"]
    batches = steps.WARM_UP + 2
    turns = asked[1:]  # the first warms up
    assert turns == 2 * [(steps.STUDENT, batches, 0), (steps.STUDENT, batches, batches)]
    assert len(found["ratios"]) == 2 and found["ratio"] == statistics.median(found["ratios"])
    assert (found["teacher"], found["net"], found["students"]) == ("resnet20", "resnet8", 6)


@pytest.mark.slow
def test_students_at_once_are_compared_with_students_one_by_one(capsys):
    assert main(["--only", "together", "--rounds", "1", "--steps", "2", "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["results"]
    gains = found["over_one_by_one"]
    assert set(gains) == set(together.SETTINGS)
    assert found["ratio"] == min(each["processes"] / each["stacked"] for each in gains.values())
    assert all(each["start_up_seconds"] > 0 for each in gains.values())


def test_schedules_are_compared_on_the_same_images_and_seeds(capsys, monkeypatch):
    """The longer one takes longer and learns more, where the short one is far too short."""
    paper = config.settings("sparse-teacher", "paper", {"owner": 600, "theft": 400})
    recipe = Recipe(epochs=8, batch_size=64, lr=0.1, precision="float32")
    few = {"owner": 600, "theft": 400, "teacher": "digits-cnn", "students": ("digits-small",)}
    settings = replace(paper, dataset="digits", **few, recipe=recipe, fast=replace(recipe, epochs=1, lr=0.01))
    monkeypatch.setattr(config, "settings", lambda *_: settings)
    assert (
        main(
            [
                "--only",
                "schedules",
                "--rounds",
                "2",
                "--net",
                "digits-small",
                "--images",
                "256",
                "--format",
                "json",
            ]
        )
        == 0
    )
    (found,) = json.loads(capsys.readouterr().out)["results"]
    assert found["ratio"] > 2
    assert min(found["full_accuracy"]) > max(found["fast_accuracy"]) and found["difference"][0] < 0
    assert (found["net"], found["images"], found["dataset"]) == ("digits-small", 256, "digits")
    monkeypatch.setattr("benchmarks.__main__._measure", lambda *_: found)
    assert main(["--only", "schedules"]) == 0
    assert "accuracy of the papers' schedule" in capsys.readouterr().out
    found["difference"] = [-0.01, None, None]  # of a single seed
    assert main(["--only", "schedules"]) == 0
    assert "(-1.0 points; digits-small" in capsys.readouterr().out
    with pytest.raises(KdsecError, match=r"cannot draw 5000 of \d+ images"):
        schedules.measure(settings, rounds=1, net="digits-small", images=5000)


@pytest.mark.slow
def test_attacks_are_compared_at_equal_budgets(capsys, monkeypatch):
    for name, value in (("KDSEC_PROGRESS", "log"), ("GOMP_SPINCOUNT", "20000")):
        monkeypatch.setenv(name, value)
    names = ["pgd", "adversarial_step", "datafree_step", "mimicry"]
    few = ["--only", *names, "--format", "json", "--rounds", "1", "--steps", "2", "--batch", "4"]
    assert main(few) == 0
    found = {result["name"]: result for result in json.loads(capsys.readouterr().out)["results"]}
    assert list(found) == names
    for result in found.values():
        assert result["kdsec_per_second"] > 0 and result["baseline_per_second"] > 0
        assert result["ratio"] == pytest.approx(result["kdsec_per_second"] / result["baseline_per_second"])
    # The faster attack must not be the weaker one.
    assert found["pgd"]["kdsec_loss"] > 0.95 * found["pgd"]["baseline_loss"]
    assert found["mimicry"]["one_at_a_time_ratio"] > 0 and found["mimicry"]["pairs"] == 80


def test_the_textbooks_similarity_is_the_same_number():
    first = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    second = (first + 0.1 * torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert torch.allclose(textbook.ms_ssim(first, second), ms_ssim(first, second), atol=1e-4)


def test_the_textbooks_attacks_stay_in_their_budgets():
    data = steps.random_images(4)
    model = attacks.network("cnn", data)
    images = data.float_images()
    found = textbook.pgd(model, images, data.labels, eps=0.03, step_size=0.01, steps=3)
    assert (found - images).abs().max() <= 0.03 + 1e-6 and found.min() >= 0 and found.max() <= 1
    body = torch.nn.Sequential(model.normalize, model.stages)
    near = textbook.mimic_pair(body, images[:1], images[1:2], budget=0.01, penalty=1e6, steps=20)
    assert (1 - ms_ssim(near, images[:1]).item()) / 2 < 0.01
    with torch.no_grad():
        before, after = ((body(each) - body(images[1:2])).norm().item() for each in (images[:1], near))
    assert after < before


def test_import_is_measured_in_turns_after_a_first_time(monkeypatch):
    asked = []
    seconds = iter([50.0, 10.0, 1.2, 1.0, 9.0, 3.0, 2.2, 2.0])
    monkeypatch.setattr(processes, "import_seconds", lambda names: asked.append(names) or next(seconds))
    found = processes.measure_import(rounds=3)
    assert asked == ["kdsec, kdsec.run", "torch"] * 4
    assert found["ratios"] == pytest.approx([1.2, 3.0, 1.1]) and found["ratio"] == pytest.approx(1.2)
    assert (found["kdsec_seconds"], found["torch_seconds"]) == (2.2, 2.0)


def test_an_import_is_timed_in_a_fresh_interpreter():
    assert 0 < processes.import_seconds("kdsec.errors") < 30
    with pytest.raises(
        KdsecError, match="ended with status 1: ModuleNotFoundError: .*no_such_module"
    ) as caught:
        processes.import_seconds("no_such_module")
    assert "\n" not in str(caught.value)


def test_both_loops_do_the_same_work():
    student, teacher = torch.randn(2, 32, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(32) % 10
    theirs = textbook.kd_loss(student, teacher, labels, temperature=4.0, alpha=0.9)
    assert torch.isclose(theirs, kd_loss(student, teacher, labels, temperature=4.0, alpha=0.9), rtol=1e-5)


def test_the_textbook_feeds_normalised_images():
    data = steps.random_images(16)
    mean, std = data.mean_std()
    pixels = data.images.permute(0, 2, 3, 1).contiguous().numpy()
    source = textbook.Cifar(pixels, data.labels.tolist(), mean, std)
    ((images, labels),) = textbook.batches(source, 16, workers=0)
    assert images.shape == (16, 3, 32, 32) and images.dtype == torch.float32 and images.is_contiguous()
    assert sorted(labels.tolist()) == sorted(data.labels.tolist())
    source.transform.transforms = source.transform.transforms[2:]  # neither crop nor flip
    image, label = source[3]
    expected = (data.float_images()[3] - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(image, expected, atol=1e-5) and label == data.labels[3]


def test_steps_before_the_clock_do_not_count():
    started = [*range(0, 100 * steps.WARM_UP, 100), 1000.0, 1001.0, 1002.5, 1004.5]
    assert steps.per_step(started) == pytest.approx(1.5)


def test_ours_is_clocked_at_every_step(monkeypatch):
    seen = []
    monkeypatch.setattr(steps, "per_step", lambda started: seen.append(list(started)) or 1.0)
    data = steps.random_images(2 * (steps.WARM_UP + 3))
    steps.kdsec_block(data, True, 2)
    steps.textbook_block(data, False, 2, 0)
    assert [len(started) for started in seen] == [steps.WARM_UP + 3] * 2
    assert all(started == sorted(started) for started in seen)


def run(*arguments: str) -> dict[str, dict[str, Any]]:
    """``python -m benchmarks --format json`` in a process of its own: results by name."""
    command = [sys.executable, "-m", "benchmarks", "--format", "json", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(processes.ROOT)}
    done = subprocess.run(command, cwd=processes.ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"machine", "versions", "results"}
    return {result["name"]: result for result in report["results"]}


@pytest.mark.slow
def test_promised_speed():
    """On the machine that runs the tests: medians over turns of ours and the baseline."""
    found = run("--only", "kd_step", "kd_students", "import", "--rounds", "5", "--steps", "8")
    step, ours, students = found["kd_step"], found["import"], found["kd_students"]
    assert step["ratio"] == statistics.median(step["ratios"])
    # Half of the gain is bf16; on a processor that does not compute in it there is only the other half. The
    # goal is 3, and missed: 2.3 on a quiet Zen 5, 1.9 on a slower machine. This guards what was gained.
    assert step["ratio"] >= (1.6 if step["precision"] == "bfloat16" else 1.15), step
    # The teacher's pass is a third of such a step.
    assert students["later_images_per_second"] > 1.15 * students["first_images_per_second"], students
    assert students["ratio"] >= (2 if step["precision"] == "bfloat16" else 1.3), students
    assert ours["ratio"] < 1.5, ours


@pytest.mark.slow
def test_adversarial_images_cost_little_more_than_their_passes():
    found = run("--only", "adversarial_set", "--rounds", "5", "--steps", "10")["adversarial_set"]
    assert found["ratio"] == statistics.median(found["ratios"]) <= 1.1, found


@pytest.mark.slow
def test_four_times_as_much_takes_about_four_times_as_long(capsys, monkeypatch):
    for name, value in (("KDSEC_PROGRESS", "log"), ("GOMP_SPINCOUNT", "20000")):
        monkeypatch.setenv(name, value)
    assert main(["--only", "growth", "--format", "json", "--rounds", "3", "--steps", "6"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    growth = {name: result[name] for name in ("images", "classes", "students", "seeds")}
    assert result["ratio"] == max(growth.values()) == growth[result["worst"]]
    assert min(growth.values()) > 0
    # A neighbour on the machine lengthens one turn or another; code that grows too fast lengthens them all.
    best = {name: min(turns) for name, turns in result["turns"].items()}
    assert max(best.values()) <= 1.25, result


QUICK_LOOPS = 60


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_chapter_takes_about_a_minute():
    """In units of a plain loop that is measured beside it: a minute is a promise for one kind of machine."""
    found = run("--only", "quick_book", "--rounds", "1")["quick_book"]
    assert set(found["seconds_by_chapter"]) == set(CHAPTERS)
    assert found["ratio"] == pytest.approx(60 / max(found["seconds_by_chapter"].values()))
    assert found["seconds"] < QUICK_LOOPS * found["loop_seconds"], found


def test_seconds_to_accuracy_trains_what_the_chapters_train(capsys, monkeypatch):
    """On digits, with the chapters' settings of that size; the other side is a step times steps."""
    monkeypatch.setitem(accuracy.TEXTBOOK, "net", "resnet8")
    quick = config.settings("opening", "quick")
    monkeypatch.setattr(config, "settings", lambda *_: quick)
    found = accuracy.measure(rounds=1, validation=0.1)
    assert found["test_accuracy"][0] > 0.8 and found["net"] == quick.teacher
    assert found["ratio"] == pytest.approx(found["textbook_seconds"] / found["seconds_each"][0])
    monkeypatch.setattr("benchmarks.__main__._measure", lambda *_: found)
    assert main(["--only", "seconds_to_accuracy"]) == 0
    assert "% in" in capsys.readouterr().out


def test_audits_of_other_networks_write_what_the_notebook_shows(tmp_path, capsys, monkeypatch):
    """On digits, with a plain layer in place of the two networks."""
    load, plan = audits.data.load, replace(audits.PLAN, budgets=(60,), student="digits-small")
    monkeypatch.setattr(audits.data, "load", lambda *_, **options: load("digits", **options))
    monkeypatch.setattr(audits, "PLAN", plan)
    monkeypatch.setattr(audits, "OWNED", 300)
    monkeypatch.setattr(audits, "ASKED", 400)

    def plain(known):
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, known.num_classes))
        return audits.train(net, known.float_images(), known.labels, epochs=5, flip=True)

    monkeypatch.setattr(audits, "NETWORKS", {"plain": plain})
    monkeypatch.setattr(sys, "argv", ["audits", "--out", str(tmp_path)])
    assert audits.main() == 0 and "plain\n" in capsys.readouterr().out
    facts = json.loads((tmp_path / "plain.json").read_text())
    points = [verdict.Point(**each) for each in facts["points"]]
    assert {each.served for each in points} == {"labels by hand", "probabilities", "top-1", "labels"}
    assert "<svg" in page.chart(points, "agreement", "plain")
