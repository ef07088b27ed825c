"""What a page says was found follows from the verdict: reversed records give the reversed sentence."""

from __future__ import annotations

import dataclasses
import re

import pandas as pd
import pytest

from kdsec import config
from kdsec.errors import KdsecError
from kdsec.report import claims, findings, quote, verdicts
from kdsec.report.records import COLUMNS, canonical
from kdsec.report.verdicts import Recorded

EVERY = [(chapter, name) for chapter, paper in claims.papers().items() for name in paper.findings]


def _claim(chapter, name):
    return next(each for each in claims.papers()[chapter].claims if each.id == name)


def _judged(chapter, name, gaps, realised=1.0):
    """The claim at quick, by rows whose difference is the threshold and one of ``gaps`` at each seed."""
    claim, settings = _claim(chapter, name), config.settings(chapter, "quick")
    base = 0.0 if claim.second is None else 0.6
    sides = [(claim.first, base + claim.threshold), (claim.second, base)]
    rows = {}
    for seed, gap in enumerate(gaps):
        values = {side: value + gap * (side is claim.first) for side, value in sides if side}
        for check in claim.realised:
            values |= {side: realised for side in (check.quantity, check.than) if side}
        for quantity, value in values.items():
            arm, metric, setting, model = quantity._filled(settings)
            row = (chapter, "quick", seed, "digits", arm, model or "n", canonical(setting), metric, value, 9)
            rows.setdefault((seed, arm, metric, row[6]), row)
    frame = pd.DataFrame(list(rows.values()), columns=list(COLUMNS))
    return verdicts.judge(claim, Recorded.of(frame, "quick", settings))


def _said(result, **options):
    claim = result.claim
    return findings.finding({result.profile: [result]}, claim.chapter, claim.id, **options)


MANY = [0.2, 0.201, 0.199]


@pytest.mark.parametrize(("chapter", "name"), EVERY)
def test_reversed_records_give_the_reversed_sentence(chapter, name):
    over, under = (_said(_judged(chapter, name, [sign * gap for gap in MANY])) for sign in (1, -1))
    assert (over.verdict, under.verdict) == ("supported", "contradicted")
    said = claims.papers()[chapter].findings[name]
    for found in (over, under):
        assert said[found.verdict].startswith(found.headline) and len(found.headline) <= 80
        assert "on 8x8 digits" in found.detail.lower() and re.search(r"\d", found.detail)
        assert f"papers/{chapter}.toml" in found.text("papers/{chapter}.toml", plain=True)
    assert over.headline != under.headline


@pytest.mark.parametrize(("chapter", "name"), EVERY)
def test_every_verdict_has_its_sentence(chapter, name):
    undecided = _said(_judged(chapter, name, [-0.3, 0.01, 0.3]))
    assert undecided.verdict == "undecided" and "{" not in undecided.text()
    if not _claim(chapter, name).threshold:
        same = _said(_judged(chapter, name, [0.0, 0.001, -0.001]))
        assert same.verdict == "no difference" and "{" not in same.text()
    if _claim(chapter, name).realised:
        assert _said(_judged(chapter, name, MANY, realised=0.0)).verdict == "not realised"
    missing = _said(_judged(chapter, name, []))
    assert missing.verdict == "not yet run" and not re.search(r"\d", missing.text().replace("8x8", ""))


def test_sizes_are_seen_from_the_side_on_which_they_are_positive():
    found = _said(_judged("purification", "worst-pgd-at", [-gap for gap in MANY]))
    assert "keeps 60.0 % accuracy and the purifier 40.0 %: 20.0 points (19." in found.detail
    alone = _said(_judged("differentiators", "most-targeted", MANY))
    assert "it rejects 70.0 % (69." in alone.detail
    nothing = _said(_judged("opening", "few-soft", [-0.3, 0.01, 0.3]))
    assert "differ by +0.3 points (-" in nothing.detail


def test_the_papers_regime_is_told_first_where_it_has_enough_seeds():
    quick = _judged("opening", "few-soft", MANY)
    small = dataclasses.replace(_judged("opening", "few-soft", [-gap for gap in MANY]), profile="small")
    small = dataclasses.replace(small, dataset="cifar10")
    assert findings.best([quick, small]) is small
    assert "On CIFAR-10, " in findings.finding({"a": [quick], "b": [small]}, "opening", "few-soft").detail
    assert findings.best([quick, dataclasses.replace(small, values=(0.1,))]) is quick
    found = {
        name: dataclasses.replace(_judged("differentiators", "knows-nothing", MANY), profile=name)
        for name in ("small", "second")
    }
    assert findings.best(list(found.values())) is found["second"]  # the only public teacher
    transfer = dataclasses.replace(quick, dataset="cifar100 to gtsrb")
    assert "From CIFAR-100 to GTSRB, " in _said(transfer).detail


@pytest.mark.parametrize(("q", "verdict"), [(0.05, "supported"), (0.051, "undecided"), (None, "undecided")])
def test_the_front_page_tells_what_may_be_chance_as_undecided(q, verdict):
    result = dataclasses.replace(_judged("opening", "few-soft", MANY), q=q)
    assert _said(result, most_q=quote.FRONT).verdict == verdict
    assert _said(result).verdict == "supported"


def test_a_mark_is_filled_in_place_and_stays_markdown():
    result = _judged("opening", "few-by-hand", MANY)
    source = quote.Source({"quick": [result]}, None, plain=True, row="scoreboard.html#{chapter}-{claim}")
    text = "**In one minute.** <!-- finding opening --> More.\n\n1. <!-- answer opening -->\n2. Two.\n"
    once = quote.fill(text, source, keep=True)
    assert "**In one minute.** <!-- finding opening -->**Copying a model can beat" in once
    assert "([✓ supported](scoreboard.html#opening-few-by-hand))<!-- end --> More." in once
    assert (
        "1. <!-- answer opening -->\n   Copying a model can beat buying labels.\n   <!-- end -->\n2." in once
    )
    assert quote.fill(once, source, keep=True) == once and quote.asks(once) and not quote.asks("<!-- a b -->")
    built = quote.fill(once, dataclasses.replace(source, plain=False))
    assert "<!--" not in built and '<a href="scoreboard.html#opening-few-by-hand">✓ supported</a>' in built


def test_what_has_no_finding_or_no_value_is_named(monkeypatch):
    result = _judged("opening", "few-by-hand", MANY)
    with pytest.raises(KdsecError, match="finding of chapter opening 'kd-even'"):
        findings.finding({"quick": [result]}, "opening", "kd-even")
    with pytest.raises(KdsecError, match=r"\{points\} has no value there; use one of: data, Data"):
        findings._filled("by {points}", result, "here")
