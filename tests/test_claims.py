"""What the papers claim and what records say of it: the rule, the file, the command, the page."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
import types

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdsec import config
from kdsec.attacks.extraction import EXTRACTION_ATTACKS
from kdsec.cli import main
from kdsec.defenses.realised import check_realised, objective_of
from kdsec.errors import KdsecError
from kdsec.report import claims, records, scoreboard, verdicts
from kdsec.report.claims import Check, Claim, Quantity
from kdsec.report.records import labelled
from kdsec.report.statistics import Prior
from kdsec.report.verdicts import NOT_RUN, ClaimResult, Recorded
from kdsec.train import Recipe, evaluate, fit, predict
from tests.small import build

SETTINGS = types.SimpleNamespace(keeps=(4, 2), model="net")


def rows(*values, arm="ours", setting="", model="net", metric="test accuracy", seeds=None):
    seeds = range(len(values)) if seeds is None else seeds
    return pd.DataFrame(
        [
            {
                "chapter": "opening",
                "profile": "quick",
                "seed": seed,
                "dataset": "digits",
                "arm": arm,
                "model": model,
                "setting": setting,
                "metric": metric,
                "value": value,
                "n": 10,
            }
            for seed, value in zip(seeds, values, strict=True)
        ]
    )


def claim(first="ours", second="theirs", **options):
    sides = [None if arm is None else Quantity(arm) for arm in (first, second)]
    return Claim("opening", "an-id", "ours is better", "abstract", *sides, **options)


def judged(frame, made=None, profile="quick", runs=None):
    return verdicts.judge(made or claim(), Recorded.of(frame, profile, SETTINGS, runs))


def verdict(frame, made=None):
    return judged(frame, made).verdict


def test_verify_leaves_out_what_a_profile_does_not_ask(capsys):
    """Claims on other data sets are asked at second alone; a chapter without that profile is named."""
    assert main(["verify", "differentiators", "--profile", "quick"]) == 0
    assert "(GTSRB)" not in capsys.readouterr().out
    assert main(["verify", "differentiators", "--profile", "second"]) == 0
    shown = capsys.readouterr().out
    assert "(GTSRB)" in shown and "pruning the most active" not in shown
    assert main(["verify", "opening", "--profile", "second"]) == 2
    assert "unknown profile of chapter opening 'second'; choose from: quick, small" in capsys.readouterr().err
    asked = claims.papers()["differentiators"].claims
    assert not any(each.asked("quick") for each in asked if each.id == "knows-gtsrb")


# The rule


def test_a_claim_says_which_of_the_data_sets_it_is_about():
    own = rows(0.6, 0.6, 0.6)
    other = rows(0.7, 0.7, 0.7, setting="data=cifar10").assign(dataset="cifar10")
    both = pd.concat([own, other])
    assert judged(both, claim(second=None)).dataset == "digits"
    there = dataclasses.replace(claim(second=None), first=Quantity("ours", setting="data=cifar10"))
    assert judged(both, there).dataset == "cifar10" and judged(own, there).dataset == "digits"
    across = dataclasses.replace(claim(), second=Quantity("ours", setting="data=cifar10"))
    assert judged(both, across).dataset == "digits and cifar10"
    assert judged(own.iloc[:0]).dataset == ""


def test_the_verdict_follows_the_interval():
    base = rows(0.5, 0.5, 0.5, 0.5, arm="theirs")
    above, below, around = (0.61, 0.6, 0.59, 0.6), (0.41, 0.4, 0.39, 0.4), (0.6, 0.4, 0.61, 0.39)
    assert verdict(pd.concat([rows(*above), base])) == "supported"
    assert verdict(pd.concat([rows(*below), base])) == "contradicted"
    assert verdict(pd.concat([rows(*around), base])) == "undecided"
    assert verdict(pd.concat([rows(0.5, 0.501, 0.5, 0.499), base])) == "no difference"
    assert judged(pd.concat([rows(0.504, 0.504, 0.505, 0.503), base])).words == "supported, small"
    assert verdict(base) == verdict(rows(*above)) == verdict(base.iloc[:0]) == NOT_RUN


def test_delta_is_that_of_the_students_data_set_in_points_alone():
    assert claim().largest_small("digits") == 0.02 and claim().largest_small("cifar10") == 0.01
    assert claim(unit="nats").largest_small("digits") == 0
    assert claim(delta=0.5, unit="nats").largest_small("digits") == 0.5


def test_seeds_pair_the_two():
    """Spread between seeds that both share does not count; seeds of one side alone do not either."""
    levels = [0.1, 0.5, 0.9, 0.3]
    ours = rows(*[level + 0.05 for level in levels[:3]], 0.99, seeds=[0, 1, 2, 7])
    found = judged(pd.concat([ours, rows(*levels, arm="theirs")]))
    assert found.verdict == "supported" and len(found.values) == 3
    assert found.difference.mean == pytest.approx(0.05)
    alone = pd.concat([rows(0.9, seeds=[7]), rows(*levels, arm="theirs")])
    assert verdict(alone) == NOT_RUN


def test_one_quantity_alone_is_compared_with_the_line():
    frame = pd.concat([rows(0.59, 0.6, 0.61), rows(0.1, 0.11, 0.12, arm="theirs")])
    over = judged(frame, claim(second=None, threshold=0.5))
    assert (over.verdict, over.measured, over.required) == ("supported", "60.0 %", "over 50 %")
    assert verdict(frame, claim(second=None, threshold=0.9)) == "contradicted"
    under = judged(frame, claim(first=None, threshold=-0.5))  # theirs is below a half
    assert (under.verdict, under.measured, under.required) == ("supported", "11.0 %", "under 50 %")
    assert under.interval == "8.5 % to 13.5 %"
    assert verdict(frame, claim(first=None, threshold=-0.05)) == "contradicted"
    ends = [judged(rows(*each), claim(second=None)).interval for each in ((0.98, 1.0, 0.9), (0.0, 0.3, 0.1))]
    assert ends[0].endswith("to 100.0 %") and ends[1].startswith("0.0 % to ")  # a share ends there
    small = pd.concat([rows(0.0, 0.3, 0.1, arm="theirs")])
    assert judged(small, claim(first=None, threshold=-0.5)).interval.startswith("0.0 % to ")
    points = dataclasses.replace(claim(second=None), first=Quantity("ours", "joint margin"))
    margin = judged(rows(-0.01, 0.0, 0.02, metric="joint margin"), points)
    assert margin.measured == "+0.3" and margin.interval.startswith("-") and margin.required == "over 0"
    both = judged(frame, claim(threshold=-0.01))
    assert (both.measured, both.required) == ("+49.0", "over -1")
    assert judged(frame, claim()).required == "over 0"


def test_a_quantity_is_one_row_a_seed_named_by_the_profiles_settings():
    both = labelled(
        pd.concat([rows(0.1, 0.2, setting="keep=4"), rows(0.3, 0.4, setting="keep=2"), rows(0.5, 0.6)])
    )
    for place, expected in ((0, [0.1, 0.2]), (1, [0.3, 0.4]), (-1, [0.3, 0.4])):
        quantity = Quantity("ours", setting=f"keep={{keeps[{place}]}}", model="{model}")
        assert list(quantity.values(both, SETTINGS).values()) == expected
    assert list(Quantity("ours").values(both, SETTINGS).values()) == [0.5, 0.6]  # the empty one, not any
    assert Quantity("ours", setting="keep=4.0").values(both, SETTINGS) == {0: 0.1, 1: 0.2}
    assert Quantity("ours", model="another").values(both, SETTINGS) == {}
    ambiguous = labelled(pd.concat([rows(0.1), rows(0.2, model="another")]))
    with pytest.raises(KdsecError, match="more than one row a seed"):
        Quantity("ours").values(ambiguous, SETTINGS)


# Defences that are none


def check(**options):
    return Check("ours", Quantity("ours", "realised"), **options)


def test_a_defence_that_was_not_realised_gets_no_verdict():
    """A teacher that ignores its images: copies of it are bad, and so is it. Its check says so."""
    copies = pd.concat([rows(0.9, 0.91, 0.92), rows(0.1, 0.11, 0.1, arm="theirs")])
    kept = Check("kept", Quantity("deaf"), than=Quantity("normal"), bound=-0.05)
    teachers = pd.concat([rows(0.1, 0.1, 0.1, arm="deaf"), rows(0.9, 0.92, 0.91, arm="normal")])
    frame = pd.concat([copies, teachers])
    assert verdict(frame) == "supported"
    found = judged(frame, claim(realised=(kept,)))
    assert found.verdict == "not realised"
    (facts,) = found.facts()["checks"]
    assert facts["measured"] == pytest.approx(-0.81) and not facts["passed"]
    assert facts["required"] == "over -0.05"
    for shares, words in (((1, 1, 1), "supported"), ((1, 1, 0), "not realised")):
        marked = pd.concat([frame, rows(*map(float, shares), metric="realised")])
        assert verdict(marked, claim(realised=(check(),))) == words
        assert verdict(marked, claim(realised=(check(), kept))) == "not realised"
    assert verdict(marked, claim(realised=(check(over=False, bound=0.9),))) == "supported"
    assert verdict(frame, claim(realised=(check(),))) == NOT_RUN  # nobody looked
    assert judged(frame, claim(realised=(check(),)), runs=[{"seed": 0}]).verdict == "supported"  # old


def test_the_identity_as_a_defence_makes_no_difference():
    values = (0.7, 0.9, 0.8, 0.6, 0.75)
    frame = pd.concat([rows(*values), rows(*values, arm="theirs")])
    wide = Prior(8, 0.01, 99)
    assert verdicts.judge(claim(), Recorded.of(frame, "quick", SETTINGS), wide).verdict == "no difference"


class Deaf(nn.Module):
    """A teacher that ignores its images."""

    def forward(self, images):
        return torch.arange(10.0).expand(len(images), 10)


@pytest.mark.slow
def test_a_defence_that_is_none_is_never_supported_in_a_real_run(digits):
    recipe = Recipe(epochs=4, batch_size=64, lr=0.1, precision="float32")
    attack, found = EXTRACTION_ATTACKS["soft labels"], []
    for seed in range(3):
        record = records.Records("opening", "quick", seed, "digits")
        teacher = build(digits, "digits-cnn", seed=seed)
        fit(teacher, digits.train, recipe, seed=seed)
        honest = predict(teacher, digits.val)
        arms = {"normal": teacher, "identity": nn.Sequential(teacher, nn.Identity()), "deaf": Deaf()}
        for arm, answers in arms.items():
            student = build(digits, seed=100 + seed)
            attack(student, answers, digits.train.unlabelled(), recipe, alpha=1.0, seed=seed)
            record.add(arm, "student", "test accuracy", evaluate(student, digits.test).accuracy)
            looked = check_realised("reversed", predict(answers, digits.val), honest, digits.val.labels)
            for metric, value in looked.metrics.items():
                record.add(arm, "teacher", metric, value)
        found.append(record.frame())
    frame = pd.concat(found)
    for arm, without in (("identity", "no difference"), ("deaf", "supported")):
        made = claim("normal", arm)
        assert verdict(frame, made) == without
        tested = dataclasses.replace(made, realised=(Check(arm, Quantity(arm, "realised")),))
        assert verdict(frame, tested) == "not realised"


# Over profiles


def over(**verdict_of):
    """Results by data set."""
    return [
        ClaimResult(claim(), "quick", name.replace("_", " to "), word, values=(place,))
        for place, (name, word) in enumerate(verdict_of.items())
    ]


@pytest.mark.parametrize(
    ("of", "kind", "words"),
    [
        ({"digits": "supported", "cifar10": "supported"}, "supported", "yes, 2 of 2"),
        ({"cifar10": "contradicted"}, "contradicted", "no, 1 of 1"),
        (
            {"cifar10": "supported", "digits": "undecided"},
            "supported",
            "yes on CIFAR-10, digits undecided",
        ),
        ({"digits": "undecided", "cifar10": "undecided"}, "undecided", "undecided, 2 of 2"),
        ({"digits": "no difference", "cifar10": NOT_RUN}, "no difference", "no difference, 1 of 1"),
        (
            {"digits": "contradicted", "cifar10": "supported", "cifar100_gtsrb": "undecided"},
            "conflict",
            "conflict: no on digits, yes on CIFAR-10, CIFAR-100 to GTSRB undecided",
        ),
        (
            {"digits": "not realised", "cifar10": "undecided"},
            "undecided",
            "digits not realised, CIFAR-10 undecided",
        ),
        ({"digits": NOT_RUN}, NOT_RUN, NOT_RUN),
    ],
)
def test_one_verdict_for_several_profiles(of, kind, words):
    assert verdicts.overall(over(**of)) == (kind, words)


def test_the_same_numbers_count_once():
    twice = over(digits="supported")
    assert verdicts.overall([*twice, dataclasses.replace(twice[0], profile="second")])[1] == "yes, 1 of 1"
    board = [*over(digits="supported", cifar10="undecided"), dataclasses.replace(twice[0], claim=claim())]
    assert list(scoreboard.summary(board)) == ["claims of the papers: 1 supported, 1 undecided"]


def test_q_is_of_the_papers_claims_and_of_our_questions_apart():
    frame = pd.concat([rows(0.61, 0.6, 0.59), rows(0.5, 0.5, 0.51, arm="theirs")])
    paper = judged(frame)
    ours = dataclasses.replace(paper, claim=dataclasses.replace(claim(), source="ours"))
    nothing = dataclasses.replace(paper, difference=None, values=(), verdict=NOT_RUN)
    alone, with_ten = verdicts._with_q([paper, ours, nothing]), verdicts._with_q([paper] * 10)
    p = paper.facts()["p"]
    assert [each.q for each in alone] == [pytest.approx(p), pytest.approx(p), None]
    assert with_ten[0].q == pytest.approx(p)  # ten equal p: none is more likely to be chance
    assert verdicts._with_q([paper, dataclasses.replace(paper, claim=claim(threshold=0.1))])[0].q > p


# Confirmatory or exploratory


def runs(seeds=3, **facts):
    return [{"seed": seed, "overrides": {}, "claims": {"an-id": "rule"}, **facts} for seed in range(seeds)]


def test_a_claim_is_confirmatory_if_it_was_committed_before_its_rows():
    frame = pd.concat([rows(0.61, 0.6, 0.59), rows(0.5, 0.5, 0.5, arm="theirs")])
    made = claim(rule="rule")
    assert judged(frame, made, runs=runs()).exploratory == ""
    assert judged(frame, made, runs=runs(overrides={"alpha": 1})).exploratory.startswith("other settings")
    assert judged(frame, claim(rule="a later one"), runs=runs()).exploratory.startswith("the claim is newer")
    for odd in (None, "text", 3, [], {}):
        assert judged(frame, made, runs=runs(claims=odd)).exploratory.startswith("the claim is newer")
    old = [{key: value for key, value in run.items() if key != "claims"} for run in runs()]
    found = judged(frame, made, runs=old)
    assert found.exploratory == verdicts.OLD and found.verdict == "supported"  # read all the same
    more = pd.concat([frame, rows(0.6, seeds=[10]), rows(0.5, seeds=[10], arm="theirs")])
    later = [*runs(), {**runs()[0], "seed": 10}]
    assert judged(more, made, runs=later).exploratory == "other seeds than the profile's"
    assert scoreboard.old({"quick": [found]}).endswith(": opening at quick.")


def test_the_rule_of_a_claim_is_its_hash_and_its_words_are_not():
    def rule(text):
        return claims.parse("opening", text).claims[0].rule

    assert rule(GOOD) == rule(GOOD.replace("a beats b", "b loses")) == rule(GOOD + "threshold = 0.0")
    for change in ("threshold = 0.1", "delta = 0.1", 'unit = "nats"', 'second = { arm = "b" }'):
        assert rule(f"{GOOD}{change}\n") != rule(GOOD)
    assert rule(CHECKED) != rule(CHECKED.replace("over = 0.1", "over = 0.2")) != rule(GOOD)


def test_what_a_record_knew_is_what_was_committed(tmp_path):
    known = claims.rules("opening")
    assert all(len(rule) == 8 for rule in known.values())
    record = records.Records("opening", "quick", 0, "digits")
    record.add("KD", "net", "test accuracy", 0.5)
    for facts, kept in (
        ({"recipe": "a", "claims": {"one": "1"}}, "1"),
        ({"recipe": "a", "claims": {"one": "2"}}, "1"),  # made with these rows in view
        ({"recipe": "b", "claims": {"one": "2"}}, "2"),
    ):
        record.save(tmp_path, facts)
        assert records.runs(tmp_path, "quick")[0]["claims"] == {"one": kept}


def test_the_seeds_are_those_of_the_profile():
    assert config.seeds("opening", "quick") == tuple(range(10))
    assert config.seeds("opening", "small") == (0, 1, 2, 3, 4) and config.seeds("crossing", "second") == (
        0,
        1,
        2,
    )


# The file


def test_every_chapter_has_claims_and_says_what_was_read():
    known = claims.papers()
    assert list(known) == list(config.CHAPTERS)
    for paper in known.values():
        assert paper.paper and paper.read and paper.deviations and paper.claims
        for each in paper.claims:
            assert re.fullmatch(r"[a-z0-9-]+", each.id) and each.statement and each.source
            assert (
                each.source == "ours" or "abstract" in each.source
            )  # nothing else of the papers has been read


def test_every_claim_finds_its_rows_in_the_quick_records():
    """Of records that are not old; a claim on what a quick run does not write is an error.

    But for the public teacher's students, by data set: they are made at ``second`` only.
    """
    found = verdicts.scoreboard("quick")
    old = {each.claim.chapter for each in found if each.exploratory == verdicts.OLD}
    missing = [each.claim for each in found if each.claim.chapter not in old and each.verdict == NOT_RUN]
    sides = [side for claim in missing for side in (claim.first, claim.second) if side]
    others = [f"data={name}" for name in records.DATASETS]
    assert [side for side in sides if not {*side.setting.split(";")} & {*others}] == []


def test_every_claim_on_a_protected_teacher_asks_whether_it_was_realised():
    """But for claims on what the check itself measures; label smoothing is no defence."""
    for paper in claims.papers().values():
        for each in paper.claims:
            sides = {side.arm: side.metric for side in (each.first, each.second) if side}
            about = {
                arm for arm, metric in sides.items() if metric not in ("unevenness", "label's probability")
            }
            protected = {arm for arm in about - {"smoothed"} if objective_of(arm)}
            assert protected <= {check.quantity.arm for check in each.realised}, (each.chapter, each.id)


GOOD = """
paper = "a paper"
read = "the abstract"
attack = "stealing"
deviations = ["a"]
[[claims]]
id = "one"
statement = "a beats b"
source = "ours"
first = { arm = "a" }
"""
CHECKED = f"""{GOOD}realised = "works"
[realised.works]
arm = "a"
over = 0.1
"""
CLAIM_TABLE = GOOD[GOOD.index("[[") :]
MISTAKES = {
    "side missing": ('first = { arm = "a" }', "", "opening.toml, claim 1 (one)"),
    "claim's field missing": ('statement = "a beats b"', "", "lacks statement"),
    "paper's field missing": ('read = "the abstract"', "", "opening.toml lacks read"),
    "arm missing": ('{ arm = "a" }', '{ metric = "a" }', "first lacks arm"),
    "field": ("first = {", "frist = {", "did you mean 'first'"),
    "column": ('{ arm = "a" }', '{ arm = "a", seting = "b" }', "did you mean 'setting'"),
    "paper's field": ("read =", "raed = 1\nread =", "did you mean 'read'"),
    "same id": ("[[claims]]", f"{CLAIM_TABLE}[[claims]]", "'one' is given twice"),
    "id for no address": ('"one"', '"o ne"', "o ne"),
    "id of two lines": ('"one"', '"o\\nne"', "is not a line of text"),
    "two findings": (
        "[[claims]]",
        "\n".join(['[[findings]]\nclaim = "one"', *(f'"{each}" = "x"' for each in claims.SAID), ""]) * 2
        + "\n[[claims]]",
        "has a finding before",
    ),
    "claims are a table": ("[[claims]]", "[claims]", "opening.toml, claims: "),
    "delta": ("first =", "delta = -0.1\nfirst =", "delta -0.1 is below 0"),
    "check": ("first =", 'realised = "work"\nfirst =', "unknown realised of papers/opening.toml"),
    "finding": ("[[claims]]", '[[findings]]\nclaim = "one"\n[[claims]]', "finding 1 lacks supported"),
    "attack": ('"stealing"', '"steeling"', "did you mean 'stealing'"),
    "attack of a claim": (
        '"ours"',
        '"ours"\nattack = "stealth"',
        "unknown attack of papers/opening.toml, claim 1",
    ),
    "main": ("read =", 'main = "third"\nread =', "unknown main of papers/opening.toml"),
    "main of another chapter": ("read =", 'main = "second"\nread =', "choose from: quick, small, paper"),
    "profile": ('id = "one"', 'id = "one"\nprofiles = ["small-"]', "did you mean 'small'"),
    "profiles": ('id = "one"', 'id = "one"\nprofiles = "small"', "claim 1 (one), profiles"),
    "syntax": ("read =", "read", "line 3"),
    "key twice": ("read =", 'read = "a"\nread =', "line 4"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_file_are_named_with_their_place(mistake):
    old, new, message = MISTAKES[mistake]
    assert claims.parse("opening", GOOD).claims[0].first == Quantity("a")
    assert old in GOOD
    with pytest.raises(KdsecError, match=re.escape(message)) as error:
        claims.parse("opening", GOOD.replace(old, new, 1))
    assert "\n" not in str(error.value) and "papers/opening.toml" in str(error.value)


toml = st.sampled_from(
    ["1", "-0.5", "nan", "inf", "true", '""', '"text"', "[1]", "[]", "{}", "{ a = 1 }", "1979-05-27"]
)


@pytest.mark.parametrize("line", [line for line in GOOD.splitlines() if " = " in line])
@given(toml)
def test_a_value_of_any_kind_is_taken_or_refused_in_one_line(line, value):
    key = line.partition(" = ")[0]
    try:
        claims.parse("opening", GOOD.replace(line, f"{key} = {value}"))
    except KdsecError as error:
        assert "papers/opening.toml" in str(error) and key in str(error) and "\n" not in str(error)
    else:
        assert value.startswith('"') or (key, value) == ("deviations", "[]")


@pytest.mark.parametrize("value", ["nan", "inf", "true", '"0.1"', "[0.1]"])
def test_a_threshold_is_a_finite_number(value):
    assert claims.parse("opening", GOOD + "threshold = 1").claims[0].threshold == 1
    with pytest.raises(KdsecError, match=r"opening.toml, claim 1 \(one\), threshold: .* is not a finite"):
        claims.parse("opening", f"{GOOD}threshold = {value}")


def test_a_check_is_named_once_for_many_claims():
    found, answers = claims.parse("opening", CHECKED).claims[0].realised
    assert found == Check("works", Quantity("a", "realised"), bound=0.1)
    assert answers == Check("works answers", Quantity("a"), Quantity("normal"), -claims.LOST)
    for wrong, message in (
        ("under = 1\nover = 2", "one, or two checks"),
        ("undr = 1", "did you mean 'under'"),
        ('than = { metric = "a" }', "than lacks arm"),
    ):
        with pytest.raises(KdsecError, match=message):
            claims.parse("opening", CHECKED.replace("over = 0.1", wrong))


@pytest.mark.parametrize(("own", "words"), [(0.85, "supported"), (0.1, "not realised")])
def test_a_teacher_that_ignores_its_images_is_no_defence_though_its_answers_moved(own, words):
    sides = [f'{{ arm = "{arm}", setting = "thief=best" }}' for arm in ("normal", "a")]
    text = CHECKED.replace('{ arm = "a" }', f"{sides[0]}\nsecond = {sides[1]}").replace("over = 0.1", "")
    copies = [
        rows(value, value, value, arm=arm, setting="thief=best")
        for arm, value in (("normal", 0.9), ("a", 0.1))
    ]
    moved, teachers = rows(1.0, 1.0, 1.0, arm="a", metric="realised"), rows(0.9, 0.9, 0.9, arm="normal")
    frame = pd.concat([*copies, moved, teachers, rows(own, own, own, arm="a")])
    assert verdict(frame, claims.parse("opening", text).claims[0]) == words


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (Quantity("our"), "unknown arm of papers/opening.toml, claim an-id 'our'; did you mean 'ours'"),
        (Quantity("ours", "accuracy"), "unknown metric of .* did you mean 'test accuracy'"),
        (Quantity("ours", setting="kep=4"), "unknown setting of .* did you mean 'keep=4'"),
        (Quantity("ours", setting="keep=4", model="nett"), "unknown model of .* did you mean 'net'"),
    ],
)
def test_a_claim_on_what_no_chapter_writes_is_an_error(named, message):
    frame = pd.concat([rows(0.6, setting="keep=4"), rows(0.5, arm="theirs")])
    made = claim(rule="rule", second="theirs")
    wrong = dataclasses.replace(made, first=named)
    with pytest.raises(KdsecError, match=message) as error:
        judged(frame, wrong, runs=runs(1))
    assert "\n" not in str(error.value)
    good = dataclasses.replace(made, first=Quantity("ours", setting="keep=4.0"))
    assert judged(frame, good, runs=runs(1)).verdict == "undecided"
    assert judged(frame, wrong, "small", runs(1)).verdict == NOT_RUN  # a quick run is what writes everything
    assert judged(frame, wrong, runs=[{"seed": 0}]).verdict == NOT_RUN  # old: it may be written by now


@pytest.mark.parametrize("name", ["{keep}", "{keeps[7]}", "{model[0][1]}", "{keeps[a]}"])
def test_a_setting_that_is_not_there_is_named(name):
    try:
        found = Quantity(name).values(labelled(rows(0.5)), SETTINGS)
    except KdsecError as error:
        assert name in str(error) and "\n" not in str(error)
    else:  # not of the form {name} or {name[0]}: text like any other
        assert found == {}


# The command


def test_verify_prints_every_claim_with_its_verdict(capsys):
    assert main(["verify"]) == 0
    text = capsys.readouterr().out
    for paper in claims.papers().values():
        assert all((each.statement in text) == each.asked("quick") for each in paper.claims)
    assert main(["verify", "opening", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["chapter"] for each in found} == {"opening"}
    for each in (each for each in found if each["verdict"] != NOT_RUN):
        (low, high), least, delta = each["interval"], each["threshold"], each["delta"]
        assert low <= each["difference"] <= high and each["seeds"] >= 3 and least == 0
        assert each["plain_interval"][0] < each["difference"] and each["plain_p"] <= 1
        assert (each["verdict"] == "supported") == (low > 0)
        assert (each["verdict"] == "no difference") == (low <= 0 and -delta <= low and high <= delta)
        assert (each["verdict"] == "contradicted") == (high < -delta)
        assert each["p"] <= each["q"] <= 1


# The page


class Reader(html.parser.HTMLParser):
    """Checks that tags are closed in order; collects ids and words."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_has_a_row_and_a_verdict_for_every_claim():
    reader = Reader()
    boards = scoreboard.read()
    page = f"{scoreboard.strip(boards)}\n{scoreboard.page(boards)}"
    reader.feed("\n".join(re.findall(r"```\{raw\} html\n(.*?)```", page, re.DOTALL)))
    for chapter in config.CHAPTERS.values():
        assert f"(notebooks/{chapter.notebook})" in page
    assert not reader.open and len(reader.ids) == len(set(reader.ids))
    for name, paper in claims.papers().items():
        assert {f"{name}-{each.id}" for each in paper.claims} <= set(reader.ids)
    text = " ".join(reader.text)
    assert all(each.statement in text for paper in claims.papers().values() for each in paper.claims)
    assert scoreboard.counts(boards).count("\n- ") >= 1
    # Every claim has a mark at the top that leads to its row, and a row has its own address.
    for name, paper in claims.papers().items():
        for each in paper.claims:
            assert page.count(f'href="#{name}-{each.id}"') == 2, each.id
