"""What the papers claim and what records say of it: the rule, the file, the command, the page."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import types

import pandas as pd
import pytest

from kdsec import chapters
from kdsec.cli import main
from kdsec.errors import KdsecError
from kdsec.report import claims, records, scoreboard
from kdsec.report.claims import NOT_RUN, Claim, Quantity

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


def verdict(frame, made=None):
    return claims.judge(made or claim(), frame, "quick", SETTINGS).verdict


# The rule


def test_the_verdict_follows_the_interval():
    base = rows(0.5, 0.5, 0.5, 0.5, arm="theirs")
    above, below, around = (0.61, 0.6, 0.59, 0.6), (0.41, 0.4, 0.39, 0.4), (0.6, 0.4, 0.61, 0.39)
    assert verdict(pd.concat([rows(*above), base])) == "supported"
    assert verdict(pd.concat([rows(*below), base])) == "not supported"
    assert verdict(pd.concat([rows(*around), base])) == "undecided"
    assert verdict(base) == verdict(rows(*above)) == verdict(base.iloc[:0]) == NOT_RUN


def test_two_seeds_decide_nothing():
    frame = pd.concat([rows(0.9, 0.91), rows(0.1, 0.1, arm="theirs")])
    assert verdict(frame) == "undecided"


def test_seeds_pair_the_two():
    """Spread between seeds that both share does not count; seeds of one side alone do not either."""
    levels = [0.1, 0.5, 0.9, 0.3]
    ours = rows(*[level + 0.05 for level in levels[:3]], 0.99, seeds=[0, 1, 2, 7])
    found = claims.judge(claim(), pd.concat([ours, rows(*levels, arm="theirs")]), "quick", SETTINGS)
    assert found.verdict == "supported" and found.difference.seeds == 3
    assert found.difference.mean == pytest.approx(0.05)
    alone = pd.concat([rows(0.9, seeds=[7]), rows(*levels, arm="theirs")])
    assert verdict(alone) == NOT_RUN


@pytest.mark.parametrize(("least", "expected"), [(-0.2, "supported"), (0.0, "not supported")])
def test_what_may_be_lost_moves_the_line(least, expected):
    frame = pd.concat([rows(0.39, 0.4, 0.41), rows(0.5, 0.5, 0.5, arm="theirs")])
    assert verdict(frame, claim(least=least)) == expected


def test_one_quantity_alone_is_compared_with_the_line():
    frame = pd.concat([rows(0.59, 0.6, 0.61), rows(0.1, 0.11, 0.12, arm="theirs")])
    assert verdict(frame, claim(second=None, least=0.5)) == "supported"
    assert verdict(frame, claim(second=None, least=0.9)) == "not supported"
    assert verdict(frame, claim(first=None, least=-0.5)) == "supported"  # theirs is below a half
    assert verdict(frame, claim(first=None, least=-0.05)) == "not supported"


def test_a_quantity_is_one_row_a_seed_named_by_the_profiles_settings():
    both = pd.concat([rows(0.1, 0.2, setting="keep=4"), rows(0.3, 0.4, setting="keep=2"), rows(0.5, 0.6)])
    for place, expected in ((0, [0.1, 0.2]), (1, [0.3, 0.4]), (-1, [0.3, 0.4])):
        quantity = Quantity("ours", setting=f"keep={{keeps[{place}]}}", model="{model}")
        assert quantity.values(both, SETTINGS).tolist() == expected
    assert Quantity("ours").values(both, SETTINGS).tolist() == [0.5, 0.6]  # the empty setting, not any
    assert Quantity("ours", model="another").values(both, SETTINGS) is None
    ambiguous = pd.concat([rows(0.1), rows(0.2, model="another")])
    with pytest.raises(KdsecError, match="more than one row a seed"):
        Quantity("ours").values(ambiguous, SETTINGS)


def test_several_profiles_agree_or_are_mixed():
    assert claims.overall(["supported", NOT_RUN, "supported"]) == "supported"
    assert (
        claims.overall(["supported", "undecided"])
        == claims.overall(["not supported", "supported"])
        == "mixed"
    )
    assert claims.overall([NOT_RUN]) == claims.overall([]) == NOT_RUN


# The file


def test_every_chapter_has_claims_and_says_what_was_read():
    known = claims.papers()
    assert list(known) == list(chapters.CHAPTERS)
    for paper in known.values():
        assert paper.paper and paper.read and paper.deviations and paper.claims
        for each in paper.claims:
            assert re.fullmatch(r"[a-z0-9-]+", each.id) and each.says and each.made
            assert each.made == "ours" or "abstract" in each.made  # nothing else of the papers has been read


UNMEASURED = {("small", "ranking-reverse"), ("second", "ranking-reverse")}  # arms that these scales leave out


@pytest.mark.parametrize("profile", chapters.PROFILES)
def test_every_claim_finds_its_rows_where_its_chapter_was_recorded(profile):
    """A misspelt arm would be "not yet run" for ever."""
    folder = records.recorded_folder()
    for each in claims.scoreboard(profile, folder=folder):
        recorded = {run["chapter"] for run in records.runs(folder, profile, each.claim.chapter)}
        if recorded and (profile, each.claim.id) not in UNMEASURED:
            assert each.verdict != NOT_RUN, (profile, each.claim.chapter, each.claim.id)


def test_the_settings_that_claims_name_exist_at_every_profile():
    for name, paper in claims.papers().items():
        for profile in chapters.profiles(name):
            settings = chapters.settings(name, profile)
            for each in paper.claims:
                for quantity in filter(None, (each.first, each.second)):
                    quantity.values(rows(0.5), settings)


GOOD = """
[opening]
paper = "a paper"
read = "the abstract"
deviations = ["a"]
[[opening.claims]]
id = "one"
says = "a beats b"
made = "ours"
first = { arm = "a" }
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[opening]", "[openig]\n[opening]", "unknown chapter 'openig'"),
        ('first = { arm = "a" }', "", "compares nothing"),
        ('says = "a beats b"', "", "lacks says"),
        ("first = {", "frist = {", "did you mean 'first'"),
        ('{ arm = "a" }', '{ arm = "a", seting = "b" }', "did you mean 'setting'"),
        ("[[opening.claims]]", GOOD[GOOD.index("[[") :] + "[[opening.claims]]", "'one' is given twice"),
    ],
)
def test_mistakes_in_the_file_are_named(old, new, message):
    assert claims.parse(GOOD)["opening"].claims[0].first == Quantity("a")
    with pytest.raises(KdsecError, match=message) as error:
        claims.parse(GOOD.replace(old, new, 1))
    assert "\n" not in str(error.value)


# The command


def test_verify_prints_every_claim_with_its_verdict(capsys):
    assert main(["verify"]) == 0
    text = capsys.readouterr().out
    for paper in claims.papers().values():
        assert all(each.says in text for each in paper.claims)
    assert main(["verify", "opening", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["chapter"] for each in found} == {"opening"}
    for each in found:
        low, high = each["interval"]
        assert low <= each["difference"] <= high and each["seeds"] >= 3
        expected = (
            "supported" if low > each["least"] else "not supported" if high < each["least"] else "undecided"
        )
        assert each["verdict"] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "opning"], "did you mean 'opening'"),
        (["verify", "--profile", "big"], "choose from: quick, small, second, paper"),
        (["verify", "--format", "csv"], "choose from: table, json"),
        (["verify", "--out", "nowhere"], "no records at profile quick in nowhere"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("KDSEC_RESULTS", str(records.recorded_folder().absolute()))
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


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
    page = scoreboard.page(boards)
    reader.feed("\n".join(re.findall(r"```\{raw\} html\n(.*?)```", page, re.DOTALL)))
    for chapter in chapters.CHAPTERS.values():
        assert f"(notebooks/{chapter.notebook})" in page
    assert not reader.open and len(reader.ids) == len(set(reader.ids))
    for name, paper in claims.papers().items():
        assert {f"{name}-{each.id}" for each in paper.claims} <= set(reader.ids)
    text = " ".join(reader.text)
    assert all(each.says in text for paper in claims.papers().values() for each in paper.claims)
    assert scoreboard.counts(boards).count("\n- ") >= 1


def test_the_page_of_a_chapter_that_nobody_ran(tmp_path):
    """Every claim has its row all the same, also where no chapter has records at all."""
    source = records.recorded_folder() / "quick" / "opening"
    for recorded in (False, True):
        if recorded:
            shutil.copytree(source, tmp_path / "quick" / "opening")
        boards = {profile: claims.scoreboard(profile, folder=tmp_path) for profile in chapters.PROFILES}
        page = scoreboard.page(boards)
        assert page.count("<tr id=") == len(boards["quick"])
        assert ("supported" in page) == recorded and "Nothing is recorded yet at" in page


@pytest.mark.parametrize("mean", [-0.3, 0.0, 0.2])
def test_the_picture_shows_the_interval_where_it_is(mean):
    frame = pd.concat([rows(0.5 + mean, 0.51 + mean, 0.49 + mean), rows(0.5, 0.5, 0.5, arm="theirs")])
    made = claims.judge(claim(), frame, "quick", SETTINGS)
    drawn = scoreboard.sparkline(made, 0.4, "words & more")
    dot = float(re.search(r'circle cx="([\d.]+)"', drawn)[1])
    line = float(re.search(r'line class="least" x1="([\d.]+)"', drawn)[1])
    left, width = (float(re.search(rf'rect .*?{name}="([\d.]+)"', drawn)[1]) for name in ("x", "width"))
    assert (dot - line) / (scoreboard.WIDTH / 2 - 4) == pytest.approx(mean / 0.4, abs=0.01)
    assert left <= dot <= left + width and "words &amp; more" in drawn


def test_one_seed_has_a_dot_and_no_interval():
    frame = pd.concat([rows(0.6), rows(0.5, arm="theirs")])
    made = claims.judge(claim(), frame, "quick", SETTINGS)
    drawn = scoreboard.sparkline(made, 0.4, "words")
    assert made.verdict == "undecided" and "circle" in drawn and "rect" not in drawn
    assert made.facts()["interval"] is None


def test_where_students_learn_something_else_both_data_sets_are_named():
    frame = records.recorded("differentiators", "second")
    named = {each.dataset for each in claims.judge_all(frame, "differentiators", "second")}
    assert named == {"cifar100 to gtsrb"}
    frame = records.recorded("differentiators", "small")
    assert {each.dataset for each in claims.judge_all(frame, "differentiators", "small")} == {"cifar100"}
