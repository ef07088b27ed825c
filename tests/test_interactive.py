"""Figures that answer: their numbers against torch, in a real browser, and what remains without one."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
import torch
from matplotlib.image import imread
from torch import Tensor, nn

from kdsec.defenses.stingy import Stingy
from kdsec.errors import KdsecError
from kdsec.logits import keep_largest
from kdsec.report import interactive
from kdsec.report.interactive import Grid, Live, hover_heatmap, probability_explorer
from tests import browser

CLASSES = [f"class <{k}>" for k in range(10)]
LABELS = torch.tensor([3, 1, 4])


def still() -> Any:
    figure, axes = plt.subplots(figsize=(3, 2))
    axes.plot([0, 1])
    return figure


def logits() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = 4 * torch.randn(3, 10, generator=generator)
    return {"teacher": z, "stingy": Stingy(nn.Identity(), 2)(z)}


def pictures(channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, channels, 8, 8), generator=generator, dtype=torch.uint8)


def probabilities(**changes: Any) -> Live:
    given = {"logits": logits(), "images": pictures(), "labels": LABELS, "classes": CLASSES, "still": still()}
    return probability_explorer(**(given | changes))


def recorded() -> pd.DataFrame:
    """Three seeds of every cell but one, which has a single seed."""
    rows = [
        {"seed": seed, "temperature": T, "alpha": alpha, "value": 0.5 + 0.1 * alpha + 0.01 * seed + 0.001 * T}
        for seed in range(3)
        for T in (1.0, 4.0)
        for alpha in (0.1, 0.5, 0.9)
        if seed == 0 or (T, alpha) != (4.0, 0.9)
    ]
    return pd.DataFrame(rows)


def heat_map(frame: pd.DataFrame, **options: Any) -> Live:
    figure, ax = plt.subplots(figsize=(4, 3), layout="constrained")
    sns.heatmap(frame.pivot_table("value", "temperature", "alpha"), ax=ax, cmap=["#123456"], cbar=False)
    return hover_heatmap(figure, Grid(ax, frame, "temperature", "alpha", **options))


def opened(chromium: Any, *figures: Live, **context: Any) -> tuple[Any, browser.Trouble]:
    """A page that holds the figures and nothing else."""
    page = chromium.new_context(**context).new_page()
    page.set_default_timeout(5000)
    trouble = browser.Trouble("about:blank")
    trouble.watch(page)
    page.set_content("<!doctype html><meta charset=utf-8>" + "\n".join(each.html() for each in figures))
    return page, trouble


def put(figure: Any, name: str, position: int) -> None:
    """Move a slider as a reader would."""
    slider = figure.get_by_role("slider", name=name)
    slider.evaluate("(s, at) => { s.value = at; s.dispatchEvent(new Event('input')); }", str(position))


def numbers(figure: Any, arm: str) -> list[float]:
    """What stands beside the bars of a network."""
    rows = figure.get_by_role("list", name=f"probabilities, {arm}")
    texts = rows.evaluate("list => [...list.querySelectorAll('.kdsec-number')].map(each => each.textContent)")
    return [0.0005 if text == "<.001" else float(text) for text in texts]


def shares(figure: Any, arm: str) -> Tensor:
    """How much of its track each bar of a network fills."""
    look = """rows => [...rows.querySelectorAll('.kdsec-fill')].map(
        bar => bar.getBoundingClientRect().width / bar.parentElement.getBoundingClientRect().width)"""
    return torch.tensor(
        figure.get_by_role("list", name=f"probabilities, {arm}").evaluate(look), dtype=torch.float32
    )


@pytest.mark.browser
def test_probabilities_are_those_of_torch(chromium: Any) -> None:
    page, trouble = opened(chromium, probabilities(temperature=3.3))
    figure = page.locator(".kdsec-live")
    stops = sorted({*interactive.TEMPERATURES, 3.3})
    heat = figure.get_by_role("slider", name="temperature")
    assert heat.get_attribute("aria-valuetext") == "τ = 3.3"  # where it begins
    for sample, T, keep in [(0, 0.5, 10), (1, 1, 3), (2, 20, 1), (2, 4, 7)]:
        figure.get_by_role("radio").nth(sample).check(force=True)
        put(figure, "temperature", stops.index(T))
        put(figure, "classes kept", keep - 1)
        for arm, z in logits().items():
            expected = (keep_largest(z[sample : sample + 1], keep) / T).softmax(1)[0]
            assert torch.allclose(torch.tensor(numbers(figure, arm)), expected, atol=0.00051), (arm, T, keep)
            assert torch.allclose(shares(figure, arm), expected, atol=0.01), (arm, T, keep)
            entropy = torch.special.entr(expected).sum()
            head = figure.locator(".kdsec-head", has_text=arm).inner_text()
            assert float(head.split()[-1]) == pytest.approx(entropy.item(), abs=0.006)
            order = figure.locator(".kdsec-chart", has_text=arm).locator(".kdsec-order").inner_text()
            ranked = expected.argsort(descending=True)[: int((expected > 0).sum())]
            assert order == "order: " + " › ".join(CLASSES[k] for k in ranked)
    assert trouble.notes == []
    page.context.close()


@pytest.mark.browser
def test_figures_on_one_page_do_not_disturb_each_other_and_print_as_stills(chromium: Any) -> None:
    twin = probabilities()
    page, trouble = opened(chromium, twin, twin, heat_map(recorded()))
    first, second, third = page.locator(".kdsec-live").all()
    assert [each.get_attribute("data-live") for each in (first, second, third)] == ["yes"] * 3
    untouched = [each.inner_text() for each in (second, third)]
    put(first, "temperature", 0)
    put(first, "classes kept", 0)
    first.get_by_role("radio").nth(2).check(force=True)
    assert numbers(first, "teacher") == torch.eye(10)[logits()["teacher"][2].argmax()].tolist()
    assert [each.inner_text() for each in (second, third)] == untouched
    assert second.get_by_role("radio").nth(0).is_checked()

    stills = page.locator("img.kdsec-still").all()
    assert [each.is_visible() for each in stills] == [False, False, True]
    page.emulate_media(media="print")
    assert all(each.is_visible() for each in stills)
    assert not any(each.is_visible() for each in page.locator(".kdsec-panel, .kdsec-cell").all())
    assert trouble.notes == []
    page.context.close()


@pytest.mark.browser
def test_every_cell_of_a_heat_map_tells_its_seeds(chromium: Any) -> None:
    page, trouble = opened(chromium, heat_map(recorded()))
    cells = page.locator(".kdsec-cell")
    assert cells.count() == 6
    cells.nth(1).hover()
    says = page.locator(".kdsec-panel")
    assert "temperature 1, alpha 0.5" in says.inner_text()
    assert "56.1 % ± 1.0 (mean and standard deviation of 3 seeds: 55.1, 56.1, 57.1)" in says.inner_text()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert "temperature 4, alpha 0.5" in says.inner_text()
    page.keyboard.press("ArrowRight")
    assert "temperature 4, alpha 0.9" in says.inner_text() and "59.4 %, one seed" in says.inner_text()
    page.keyboard.press("ArrowRight")  # nothing is there
    assert "temperature 4, alpha 0.9" in says.inner_text()
    assert page.locator(".kdsec-cell[tabindex='0']").count() == 1
    assert trouble.notes == []
    page.context.close()


@pytest.mark.browser
def test_on_a_phone_nothing_is_too_wide_and_a_finger_chooses_a_cell(chromium: Any) -> None:
    long = [f"a long class name {k}" for k in range(10)]
    figures = probabilities(classes=long), heat_map(recorded())
    page, _ = opened(chromium, *figures, has_touch=True, viewport={"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator(".kdsec-cell").nth(4).tap()
    assert "temperature 4, alpha 0.5" in page.locator(".kdsec-panel").last.inner_text()
    # Text and the teacher's bars, which are black on paper, take the page's colour.
    page.evaluate("document.body.style.color = 'rgb(230, 230, 230)'")
    chart = page.locator(".kdsec-chart").first
    for part, what in {".kdsec-fill": "backgroundColor", ".kdsec-name": "color"}.items():
        look = f"each => getComputedStyle(each).{what}"
        assert chart.locator(part).first.evaluate(look) == "rgb(230, 230, 230)"
    page.context.close()


@pytest.mark.browser
def test_without_scripts_the_still_picture_stays(chromium: Any) -> None:
    figures = probabilities(), heat_map(recorded())
    page, _ = opened(chromium, *figures, java_script_enabled=False)
    pictures = page.locator("img").all()
    assert len(pictures) == 2 and all(each.is_visible() for each in pictures)
    assert page.locator("input, button, canvas").count() == 0
    page.context.close()


@pytest.mark.parametrize("make", [probabilities, lambda: heat_map(recorded())])
def test_a_figure_offers_html_for_pages_and_its_picture_for_paper(make: Any) -> None:
    before = plt.get_fignums()
    live = make()
    assert plt.get_fignums() == before  # or the notebook would show the still twice
    forms = live._repr_mimebundle_()
    assert set(forms) == {"text/html", "image/png", "text/plain"}
    assert forms["text/plain"].startswith("<Figure size") and repr(live) == forms["text/plain"]
    assert imread(io.BytesIO(base64.b64decode(forms["image/png"]))).size > 1000
    assert forms["image/png"] in forms["text/html"]
    assert not re.search(r"""https?:|["'(]//|@import""", forms["text/html"])
    # Class names hold tags: none may end the data early.
    (data,) = re.findall(r'<script type="application/json">([^<]*)</script>', forms["text/html"])
    assert json.loads(data) == json.loads(json.dumps(live.data))


def test_a_cell_of_the_picture_lies_under_its_button() -> None:
    """The cells are drawn in one colour, which nothing else in the picture has."""
    live = heat_map(recorded())
    pixels = imread(io.BytesIO(base64.b64decode(live.still)))[..., :3]
    inside = np.abs(pixels - np.array([0x12, 0x34, 0x56]) / 255).max(-1) < 0.02
    down, across = np.nonzero(inside)
    boxes = np.array([cell["box"] for cell in live.data["cells"]])
    height, width = inside.shape
    edges = (
        boxes[:, 0].min(),
        boxes[:, 1].min(),
        (boxes[:, 0] + boxes[:, 2]).max(),
        boxes[:, 1:4:2].sum(1).max(),
    )
    drawn = across.min() / width, down.min() / height, (across.max() + 1) / width, (down.max() + 1) / height
    assert np.allclose(edges, drawn, atol=0.01)
    assert np.allclose(boxes[:, 2:], boxes[0, 2:], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": {}}, "at least one network"),
        ({"logits": torch.zeros(3, 9)}, r"shape \(3, 9\); 3 images and 10 classes"),
        ({"logits": torch.full((3, 10), -torch.inf)}, "'teacher' are not all finite"),
        ({"logits": {"nasty": torch.full((3, 10), torch.nan)}}, "'nasty' are not all finite"),
        ({"keep": 11}, "keep=11 of 10 classes; choose 1 to 10"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"labels": torch.tensor([3, 1, 10])}, "one of 0 to 9"),
        ({"labels": LABELS[:2]}, "2 labels for 3 images"),
    ],
)
def test_a_wrong_probability_explorer_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(KdsecError, match=message) as caught:
        probabilities(**change)
    assert "\n" not in str(caught.value)


def test_a_wrong_heat_map_is_one_line() -> None:
    twice = pd.concat([recorded(), recorded()])
    for wrong, message in [
        (lambda: heat_map(recorded(), rows=[1.0]), "2 rows and 3 columns, but 1 and 3 names"),
        (lambda: heat_map(twice), "temperature 1, alpha 0.1: more than one row a seed"),
        (lambda: heat_map(recorded(), rows=[7.0, 8.0]), "no recorded row belongs to a cell"),
    ]:
        with pytest.raises(KdsecError, match=message) as caught:
            wrong()
        assert "\n" not in str(caught.value)
    plt.close("all")


def switch() -> Live:
    groups = {
        "copies": {"none": (0.9, 0.9), "AST": (0.55, 0.88)},
        "changed images": {"purifier": (0.47, 0.97)},
    }
    return interactive.knows_switch(still(), groups, "Means of 3 seeds.")


@pytest.mark.browser
def test_the_switch_shows_what_an_attacker_gets_who_knows(chromium: Any) -> None:
    page, trouble = opened(chromium, switch(), viewport={"width": 360, "height": 700})
    read = """rows => [...document.querySelectorAll('.kdsec-row')].map(row =>
        [...row.querySelectorAll('span')].map(each => each.textContent).filter(Boolean))"""
    assert page.evaluate(read) == [["none", "90 %"], ["AST", "55 %"], ["purifier", "47 %"]]
    page.get_by_role("switch", name="The attacker knows").check()
    assert page.evaluate(read) == [["none", "90 %"], ["AST", "88 %"], ["purifier", "97 %"]]
    assert "AST: 88 %" in page.locator("output").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert trouble.notes == []
    page.context.close()


def test_a_switch_without_shares_is_one_line() -> None:
    for groups in ({}, {"copies": {"AST": (55.0, 88.0)}}):
        with pytest.raises(KdsecError, match="must be shares in"):
            interactive.knows_switch(still(), groups, "")
    plt.close("all")
