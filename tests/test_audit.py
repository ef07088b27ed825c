"""The audit of a foreign model: what it finds, what it refuses, and the page it writes."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import re
import tempfile
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from kdsec import cli, data
from kdsec.audit import loading, measure, page, poisons
from kdsec.audit.copies import Stored
from kdsec.audit.measure import Audit, Plan, audit, blocks
from kdsec.audit.serving import AS_IS, BY_HAND, LABELS, cost, serving
from kdsec.audit.verdict import MARGIN, SERVE, Point, difference, points, verdict
from kdsec.cache import Cache
from kdsec.data import ImageSet
from kdsec.train import Recipe, fit
from tests import browser

MODEL = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def broken():
    raise RuntimeError("no weights\\nhere")

def number():
    return 3

def api(images):
    return build()(images).softmax(1).tolist()

def decides(images):
    return images.flatten(1).sum(1).long() % 10

def sigmoids(images):
    return images.flatten(1)[:, 20:30].sigmoid()

def single(images):
    return torch.ones(len(images), 1)

def constant(images):
    return torch.eye(10)[[3] * len(images)]

def infinite(images):
    return torch.full((len(images), 10), torch.nan)

def picky(images):
    assert images.shape[-1] == 32, "wants 32x32"
"""


@functools.cache
def digits() -> ImageSet:
    return data.load("digits").train


@functools.cache
def victim() -> nn.Module:
    """A network in plain torch, trained on a part of the digits that the thief does not have."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(384, 10)
    )
    return fit(net, digits().subset(slice(0, 250)), Recipe(epochs=12, batch_size=32, lr=0.1)) and net.eval()


def only_decisions(images: Tensor) -> Tensor:
    """The planted case: probabilities that are made from the decision, and tell nothing else."""
    return torch.full((len(images), 10), 0.02).scatter(1, victim()(images).argmax(1, keepdim=True), 0.82)


@pytest.fixture
def queries(tmp_path: pathlib.Path) -> pathlib.Path:
    rest = digits().subset(slice(250, None))
    path = tmp_path / "queries.npz"
    np.savez(path, images=rest.images[:, 0].numpy(), labels=rest.labels.numpy())
    return path


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "mine.py"
    path.write_text(MODEL)
    return path


def ran(
    call: Any, cache: Cache, labelled: bool = True, steps: int | None = 12, protected: Any = (), **plan: Any
) -> Audit:
    """An audit of the images that the victim was not trained on; copies learn little in so few steps."""
    rest = digits().subset(slice(250, None))
    options = {"budgets": (40,), "defences": (LABELS,), "student": "digits-mlp", "seeds": 1, **plan}
    with pytest.MonkeyPatch.context() as patch:
        if steps:
            patch.setattr(measure, "recipe", lambda *_: Recipe(steps=steps, batch_size=32))
        known = (lambda _: rest.labels) if labelled else (lambda _: None)
        return audit(loading.target(call), rest, known, Plan(**options), cache, protected)


@functools.cache
def finished() -> Audit:
    """One small audit, looked at by several tests."""
    with tempfile.TemporaryDirectory() as folder:
        return ran(victim(), Cache(pathlib.Path(folder)), budgets=(60, 120), defences=("top-1", LABELS))


# What it finds


def overlapping() -> ImageSet:
    """Images whose classes overlap: ten random patterns, and noise about three times as strong."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (9000,), generator=generator)
    patterns = torch.randn(10, 1, 8, 8, generator=generator)
    noise = torch.randn(9000, 1, 8, 8, generator=generator)
    images = (0.5 + 0.12 * (0.35 * patterns[labels] + noise)).clamp(0, 1)
    return ImageSet(images, labels, tuple("0123456789"), "overlapping")


@pytest.mark.slow
def test_a_leak_is_found_and_its_absence_too(tmp_path: pathlib.Path) -> None:
    """Three seeds. The margin is the audit's own: two standard errors, at least two points of agreement.

    The absence is planted: probabilities that are made from the decisions alone. 1,650 images to measure
    with, so that the margin is well below the leak on every machine.
    """
    images = overlapping()
    rest = images.subset(slice(2400, None))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    fit(net, images.subset(slice(0, 2400)), Recipe(epochs=15, batch_size=64, lr=0.1))

    def from_decisions(images: Tensor) -> Tensor:
        return torch.full((len(images), 10), 0.02).scatter(1, net(images).argmax(1, keepdim=True), 0.82)

    found = []
    for call in (net, from_decisions):
        plan = Plan((600,), (LABELS,), "digits-mlp", seeds=3)
        state = audit(loading.target(call), rest, lambda _: None, plan, Cache(tmp_path))
        found.append((*difference(state, AS_IS, LABELS, 600), verdict(state).advice))
    (gain, margin, advice), (none, small, serve) = found
    print(f"gain {gain:.3f} over a margin of {margin:.3f}; planted: {none:.3f}, {small:.3f}")
    assert gain > margin >= MARGIN and advice != SERVE
    assert none <= small and serve == SERVE


@pytest.mark.parametrize(("by_hand", "said"), [(0.9, True), (0.51, False), (0.1, False)])
def test_a_model_that_is_worse_than_labelling_is_not_worth_stealing(by_hand: float, said: bool) -> None:
    state = finished()
    rows = [row | {"accuracy": by_hand if row["served"] == BY_HAND else 0.5} for row in state.rows]
    sentences = " ".join(verdict(dataclasses.replace(state, rows=rows)).sentences)
    assert ("stealing gains nothing" in sentences) == said
    assert (f"{by_hand:.1%}" in sentences) == said


def test_all_ways_of_serving_meet_the_same_attacks_and_the_order_is_kept() -> None:
    state = finished()
    assert state.done == blocks(state.plan) and not state.left
    found = points(state)
    assert {point.served for point in found} == {AS_IS, "top-1", LABELS, BY_HAND}
    assert {point.tried for point in found if point.served in (AS_IS, "top-1")} == {7}
    assert all(0 < point.agreement <= 1 for point in found)
    # Decisions are the same whatever is served beside them, and so is a copy of them.
    hard = {row["agreement"] for row in state.rows if row["attack"] == "hard labels" and row["budget"] == 60}
    assert len(hard) == 1


def test_test_images_are_no_images_of_the_thief_and_the_budget_counts_all_queries() -> None:
    state = finished()
    assert len(state.thief) == 120
    known = Stored(state.thief.images, state.servings[0].table[:120])
    assert not set(known.hashes.tolist()) & set(Stored(state.test.images, state.decisions).hashes.tolist())
    assert torch.equal(known(state.thief.float_images()), state.servings[0].table[:120])


def test_a_second_run_trains_nothing_and_a_limit_of_time_stops_between_blocks(tmp_path: pathlib.Path) -> None:
    plan: dict[str, Any] = {"budgets": (40, 60), "defences": (LABELS,), "minutes": 1e-6}
    first = ran(victim(), Cache(tmp_path), **plan)
    assert len(first.done) == 1 and len(first.left) == 3
    cache = Cache(tmp_path)
    again = ran(victim(), cache, **plan)
    assert cache.misses == 0 and cache.hits > 0
    assert [row["agreement"] for row in again.rows] == [row["agreement"] for row in first.rows]


def test_what_honest_users_lose(tmp_path: pathlib.Path) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
    labels = torch.tensor([0, 1])
    honest = cost(serving("top-2", logits), logits, labels)
    assert honest["distance"] == pytest.approx(0, abs=1e-6)  # of three classes, two tell the third
    assert cost(serving("top-1", logits), logits, labels)["distance"] > 0.1  # type: ignore[operator]
    only = cost(serving("labels", logits), logits, labels)
    assert only["log loss"] is None and only["accuracy"] == 0.5 and only["decisions changed"] == 0
    rounded = cost(serving("round-1", torch.tensor([[9.0, 0.0, 0.0]])), logits[:1], torch.tensor([1]))
    assert rounded["log loss"] < 4  # type: ignore[operator]  # a rounded zero is half a unit, not impossible


# What it refuses


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(["audit", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("kdsec: error: ") and sum("error" in line for line in lines) == 1, lines
    return lines[-1]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("broken", "broken of {file} raised RuntimeError at line 9: no weights"),
        ("missing", "has no missing; it has: build, broken"),
        ("number", "number() of {file} returned a int; return an nn.Module"),
        ("decides", "the model answered (2,) for 2 images; the audit needs logits or probabilities"),
        ("sigmoids", "one sigmoid a class?"),
        ("single", "(2, 1) for 2 images; the audit needs logits or probabilities (2, K), K at least 2"),
        ("constant", "gives every image the same class"),
        ("infinite", "infinite or not a number"),
        (
            "picky",
            "AssertionError: wants 32x32; does it expect another size (--size HxW), other channels",
        ),
    ],
)
def test_a_model_that_cannot_be_audited_is_one_line(
    name: str,
    says: str,
    model: pathlib.Path,
    queries: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KDSEC_CACHE", str(tmp_path / "cache"))
    where = ["--model", f"{model}:{name}", "--queries", queries, "--budgets", "40", "--out", tmp_path / "out"]
    assert says.format(file=model) in refused(capsys, *where)
    assert not (tmp_path / "out").exists()  # nothing half-written
    where[1] = f"{os.path.relpath(model)}:{name}"
    assert says.format(file=os.path.relpath(model)) in refused(capsys, *where)


def test_images_labels_and_weights_that_do_not_fit_are_one_line(
    model: pathlib.Path,
    queries: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KDSEC_CACHE", str(tmp_path / "cache"))
    out = ["--out", tmp_path / "out"]
    base = ["--model", f"{model}:build", "--queries", queries, *out]
    assert "fewer than the smallest budget of 5,000" in refused(capsys, *base, "--budgets", "5000")
    save_file({"1.weight": torch.zeros(9, 64), "x": torch.zeros(1)}, tmp_path / "w.safetensors")
    says = refused(capsys, *base, "--weights", tmp_path / "w.safetensors")
    assert "1.bias is missing; x is unknown; 1.weight is (9, 64), not (10, 64)" in says
    torch.save({}, tmp_path / "w.pt")
    assert "a zip file" in refused(capsys, *base, "--weights", tmp_path / "w.pt")
    assert "is no TorchScript file" in refused(
        capsys, "--model", tmp_path / "w.pt", "--queries", queries, *out
    )
    assert "choose" in refused(capsys, *base, "--student", "resnet9")
    assert "defence 'top-x' is unknown" in refused(capsys, *base, "--defences", "top-x")
    assert "1 <= K < 10" in refused(capsys, *base, "--defences", "top-10", "--budgets", "40")
    labels = tmp_path / "labels.txt"
    labels.write_text("1\n2\n")
    assert "2 labels for" in refused(capsys, *base, "--budgets", "40", "--labels", labels)
    labels.write_text("1\n" * len(digits().subset(slice(250, None))))
    assert "all labels are one class" in refused(capsys, *base, "--budgets", "40", "--labels", labels)
    assert "does not exist" in refused(capsys, "--model", "no.py:build", "--queries", queries, *out)
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_fit_are_refused_before_the_model_is_asked(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asking may cost the user money: two images are asked about, to learn the number of classes."""
    monkeypatch.setenv("KDSEC_CACHE", str(tmp_path / "cache"))
    pixels = np.random.default_rng(0).integers(0, 256, (80, 3, 20, 20), dtype=np.uint8)
    np.savez(tmp_path / "photos.npz", images=pixels)
    code = tmp_path / "api.py"
    code.write_text(
        "import pathlib, torch\n"
        "def api(images):\n"
        f"    with open({str(tmp_path / 'asked')!r}, 'a') as log:\n"
        "        log.write('x' * len(images))\n"
        "    return torch.rand(len(images), 10).softmax(1)\n"
    )
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "words.txt").write_text("cat\ndog\n")
    base = ["--model", f"{code}:api", "--queries", tmp_path / "photos.npz", "--budgets", "40"]
    base += ["--out", tmp_path / "out"]
    for options, says in (
        (["--labels", tmp_path / "none.txt"], "none.txt: No such file or directory; give a file of class"),
        (["--labels", tmp_path / "words.txt"], "words.txt: not all of it is numbers; give a file of class"),
        (["--labels", tmp_path / "empty.txt"], "0 labels for 80 images"),
        (["--defences", "top-10"], "1 <= K < 10"),
        (["--student", "resnet9"], "choose"),
        (["--student", "digits-mlp"], "student digits-mlp has no convolutions with batch normalisation"),
        (["--mean", "0.5", "--std", "0.5"], "--mean has 1 numbers and photos 3 channels"),
    ):
        assert says in refused(capsys, *base, *options)
        assert not (tmp_path / "asked").exists() or (tmp_path / "asked").read_text() == "xx", options
        (tmp_path / "asked").unlink(missing_ok=True)
    assert not (tmp_path / "out").exists()


def test_an_audit_that_is_stopped_says_how_it_goes_on(
    model: pathlib.Path, queries: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.write_text("import os, signal\ndef api(images):\n    os.kill(os.getpid(), signal.SIGTERM)\n")
    given = ["audit", "--model", f"{model}:api", "--queries", str(queries), "--budgets", "40"]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "kdsec: error: interrupted; the same command goes on from here\n"
    assert not (tmp_path / "out").exists()


def test_a_random_model_is_asked_once_and_that_is_said(tmp_path: pathlib.Path) -> None:
    asked = []

    def noisy(images: Tensor) -> Tensor:
        asked.append(len(images))
        return victim()(images) + torch.randn(len(images), 10)

    protected = loading.target(only_decisions, "protected.py:build")
    plan: dict[str, Any] = {"labelled": False, "defences": (LABELS,), "minutes": 1e-6}
    state = ran(noisy, Cache(tmp_path), protected=[protected], **plan)
    assert state.costs["protected.py:build"]["distance"] and len(state.notes) == 1
    assert "answers differently when asked again" in state.notes[0]
    assert sum(asked) == 2 + len(state.thief) + len(state.test) + 64  # a look, all of them, some again
    assert BY_HAND not in {row["served"] for row in state.rows}


def test_exported_networks_and_functions_answer_as_the_network(tmp_path: pathlib.Path) -> None:
    images = digits().float_images(slice(0, 3))
    traced = torch.jit.trace(victim(), images)
    torch.jit.save(traced, str(tmp_path / "m.pt"))
    torch.export.save(torch.export.export(victim(), (images,)), str(tmp_path / "m.pt2"))
    for name in ("m.pt", "m.pt2"):
        answer = loading.as_rows(loading.load_model(str(tmp_path / name)).call(images), 3)
        assert torch.allclose(answer, victim()(images), atol=1e-5)
    p = victim()(images).softmax(1)
    assert torch.allclose(loading.as_rows(p.tolist(), 3).softmax(1), p, atol=1e-5)


# What it writes


def test_the_report_is_whole_and_loads_nothing(tmp_path: pathlib.Path) -> None:
    page.write(finished(), tmp_path)
    facts = json.loads((tmp_path / "audit.json").read_text())
    assert facts["verdict"]["advice"] and len(facts["copies"]) == len(finished().rows)
    text = (tmp_path / "audit.html").read_text()
    assert "http" not in text and "<script" not in text and text.count('<svg viewBox="0 0 360') == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_poisons_are_listed_with_what_the_detectors_miss(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = digits().subset(slice(250, 650))
    wrong = images.replace(labels=torch.cat([(images.labels[:12] + 1) % 10, images.labels[12:]]))
    trusted = digits().subset(slice(650, 900))
    names = tuple(f"class {each}" for each in range(10))
    wrong, trusted = (ImageSet(each.images, each.labels, names, "mine") for each in (wrong, trusted))
    monkeypatch.setattr(poisons, "recipe", lambda *_: Recipe(steps=20, batch_size=32))
    found = poisons.inspect(loading.target(victim()), wrong, None, trusted, Cache(tmp_path))
    assert found.high["label disagreement"][:12].sum() >= 6 and set(found.scores) == set(poisons.MISSES)
    poisons.write(found, tmp_path)
    text = (tmp_path / "poisons.html").read_text()
    assert "What each detector misses" in text and "data:image/png" in text
    assert json.loads((tmp_path / "poisons.json").read_text())["suspicious"]
    files = [f"<b>{place}.png" for place in range(len(wrong))]
    poisons.write(found, tmp_path, files)
    text, first = (tmp_path / "poisons.html").read_text(), found.order[0]
    assert f"&lt;b&gt;{first}.png" in text and "<b>" not in text and "from 0" not in text
    assert json.loads((tmp_path / "poisons.json").read_text())["suspicious"][0]["file"] == files[first]


@pytest.mark.parametrize("deep", [True, False])
def test_files_are_named_in_the_order_in_which_their_images_are_read(
    tmp_path: pathlib.Path, deep: bool
) -> None:
    levels = {"b/10.png": 40, "b/9.png": 80, "a/é.png": 120, "a/A.png": 160, "c/.hidden": 0}
    for name, level in levels.items():
        file = tmp_path / (name if deep else name.replace("/", " "))
        file.parent.mkdir(exist_ok=True)
        if level:
            Image.new("L", (8, 8), level).save(file)
    if deep:
        Image.new("L", (8, 8), 200).save(tmp_path / "c" / "x.png")
        levels["c/x.png"] = 200
    names = loading.file_names(str(tmp_path))
    assert names is not None
    read = loading.load_images(str(tmp_path)).images.flatten(1)[:, 0].tolist()
    assert read == [levels[name if deep else name.replace(" ", "/")] for name in names]
    assert loading.file_names(str(tmp_path / "no.npz")) is None


def test_a_model_that_raises_about_a_distillation_set_is_one_line(
    model: pathlib.Path, queries: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", f"{model}:picky", "--distillation-set", queries, "--out", tmp_path / "out"]
    assert "raised AssertionError: wants 32x32; does it expect another size" in refused(capsys, *given)
    assert not (tmp_path / "out").exists()


def test_an_unfinished_report_says_what_goes_on_and_spreads_stay_inside_the_chart() -> None:
    state = dataclasses.replace(finished(), left=[blocks(finished().plan)[0]])
    assert "1 of 5 blocks; the same command goes on from here" in page.page(state)
    state.plan = dataclasses.replace(state.plan, minutes=5)
    assert "the same command with more minutes goes on from here" in page.page(state)
    wide = [Point(AS_IS, budget, 0.69, None, 0.06, ["soft labels"], 1) for budget in (60, 120)]
    drawn = page.chart(wide, "agreement", "wide")
    heights = [float(each) for each in re.findall(r'y[12]="([-0-9.]+)"', drawn.split("</svg>")[0])]
    one = page.chart([p for p in points(finished()) if p.budget == 60], "agreement", "one budget")
    across = re.findall(r'cx="([-0-9.]+)"', one)
    assert len(across) == len(set(across)) == 4  # of one budget no point hides another
    assert "Points in the order of the key." in one and "in the order of the key" not in drawn
    assert min(heights) >= 14 and max(heights) <= 204  # the lowest and the highest line of the grid


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_readable_at_both_widths(width: int, tmp_path: pathlib.Path, chromium: Any) -> None:
    page.write(finished(), tmp_path)
    with browser.serve(tmp_path) as home:
        for scheme in ("light", "dark"):
            tab = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            trouble = browser.Trouble(home)
            trouble.watch(tab)
            tab.goto(f"{home}/audit.html")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == (
                "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 29)"
            )
            assert not trouble.notes


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--labels", "nowhere.txt", "No such file"),
        ("--labels", "few.txt", "2 labels for"),
        ("--student", "x", "unknown"),
    ],
)
def test_the_model_is_asked_nothing_before_all_that_was_given_is_read(
    option: str,
    value: str,
    says: str,
    queries: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("few.txt").write_text("1\n2\n")
    counts = "def api(images):\n    open('asked', 'a').close()\n    return [[0.1] * 10] * len(images)\n"
    pathlib.Path("counts.py").write_text(counts)
    base = ["--model", "counts.py:api", "--queries", queries, "--budgets", "40", "--out", "out"]
    assert says in refused(capsys, *base, option, value)
    if option == "--labels":
        assert says in refused(
            capsys, *base[:2], "--distillation-set", queries, "--out", "out", option, value
        )
    assert not pathlib.Path("asked").exists()


@pytest.mark.parametrize("suffix", [".pt2", ".pt"])
def test_a_model_file_that_is_none_is_one_line(
    suffix: str, queries: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / f"w{suffix}")
    given = [
        "--model",
        str(tmp_path / f"w{suffix}"),
        "--queries",
        str(queries),
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(["audit", *given]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "weights alone go into a safetensors file" in said


def test_images_from_a_pipe_are_refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    said = refused(
        capsys, "--model", "m.py:build", "--queries", tmp_path / "pipe.npz", "--out", tmp_path / "out"
    )
    assert "neither a folder of images nor a .npz file" in said
