"""What the whole book costs: sums of what was recorded, times that are computed, and nothing made up."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import ledger
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsec.config import CHAPTERS
from kdsec.errors import KdsecError
from kdsec.planning import plan, widest_gaps_first
from kdsec.report.records import Records

ROOT = pathlib.Path(__file__).resolve().parent.parent
MACHINE = {"device": "cpu", "gpu": None, "cpu": "a processor", "threads": 1}


def record(
    out: pathlib.Path, chapter: str = "opening", seed: int = 0, profile: str = "small", **changes: Any
) -> None:
    """A record of one row; ``petaflop=None`` is one from before that was counted."""
    about = {"seconds": 3600.0, "machine": MACHINE, "petaflop": 6.5, **changes}
    count = {"petaflop": about["petaflop"]} if about["petaflop"] is not None else {}
    rows = Records(chapter, profile, seed, "cifar10")
    rows.add("teacher", "net", "test accuracy", 0.9)
    training = {"models": 1, "from_cache": 0, "seconds": 60.0, **count}
    rows.save(out, {"seconds": about["seconds"], "machine": about["machine"], "training": training})


def tables(text: str) -> list[list[list[str]]]:
    """The tables in Markdown: sums, and chapters."""
    found = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    return [
        [line.strip("| ").split(" | ") for line in each.splitlines() if "---" not in line] for each in found
    ]


def test_time_on_a_gpu_is_operations_by_peak_and_share(tmp_path: pathlib.Path) -> None:
    record(tmp_path)
    sums, chapters = tables(ledger.costs(tmp_path))
    _, pflop, hours, cores, t4, h100 = sums[1]
    assert (pflop, hours, cores) == ("6.5", "1", "0.5")
    assert float(t4) == pytest.approx(6.5 / (0.065 * 0.25) / 3600, rel=0.06)
    assert float(h100) == pytest.approx(6.5 / (0.989 * 0.1) / 3600, rel=0.06)
    assert chapters[1] == ["opening", "small", "0", "6.5", "60.0", "6.7", "1.1"]
    assert all("computed" in name for name in [*sums[0][3:], *chapters[0][5:]])


def test_a_book_is_one_seed_of_every_chapter(tmp_path: pathlib.Path) -> None:
    for place, chapter in enumerate(CHAPTERS):
        for seed in (0, 1):
            record(tmp_path, chapter, seed, petaflop=2.0 * place + seed)
    one, everything = tables(ledger.costs(tmp_path))[0][1:]
    n = len(CHAPTERS)
    assert one[:2] == ["one seed of the book at small", f"{n * (n - 1) + n / 2:.0f}"]
    assert everything[0] == f"all {2 * n} recorded runs" and float(everything[1]) == pytest.approx(
        2 * (n * (n - 1) + n / 2), abs=1
    )


def test_a_record_without_operations_is_named_and_is_no_zero(tmp_path: pathlib.Path) -> None:
    record(tmp_path, seed=0, petaflop=None)
    record(tmp_path, seed=1, petaflop=8.0)
    record(tmp_path, "crossing", petaflop=None)
    text = ledger.costs(tmp_path)
    sums, chapters = tables(text)
    assert "in no sum of them: opening at small, crossing at small." in text
    assert sums[1][1] == "at least 8", (
        "the mean of the seeds that are known, and nothing for the other chapter"
    )
    assert sums[1][2] == "2" and sums[2][2] == "3", "their time counts"
    assert [row[3] for row in chapters[1:]] == ["not recorded", "8", "not recorded"]
    record(tmp_path, seed=1, petaflop=None)
    assert {tuple(row[1:2] + row[4:]) for row in tables(ledger.costs(tmp_path))[0][1:]} == {
        ("not recorded",) * 3
    }


def test_a_chapter_that_is_missing_is_named(tmp_path: pathlib.Path) -> None:
    record(tmp_path)
    missing = ", ".join(name for name in CHAPTERS if name != "opening")
    assert f"one seed of the book at small, without {missing}" in ledger.costs(tmp_path)
    assert ledger.costs(tmp_path / "empty") == "Nothing is recorded yet."


def test_a_run_on_a_gpu_has_no_hours_on_cores(tmp_path: pathlib.Path) -> None:
    record(tmp_path, machine={**MACHINE, "gpu": "a GPU"})
    sums, chapters = tables(ledger.costs(tmp_path))
    assert sums[1][3] == "not recorded" and chapters[1][4] == "60.0 on a GPU"


def test_text_from_a_record_stays_text(tmp_path: pathlib.Path) -> None:
    record(tmp_path, machine={**MACHINE, "gpu": "<script>x|y</script> [a](b)"})
    text = ledger.costs(tmp_path)
    assert "<script>" not in text and "](b)" not in text and "x&#124;y" in text


@pytest.mark.parametrize("value", [True, "3", -1.0, [1]])
def test_operations_that_are_no_number_are_refused_in_one_line(tmp_path: pathlib.Path, value: Any) -> None:
    record(tmp_path, petaflop=value)
    with pytest.raises(KdsecError, match=r"small / opening / seed 0: petaflop is") as caught:
        ledger.costs(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_record_that_does_not_say_where_it_was_made_is_refused(tmp_path: pathlib.Path) -> None:
    record(tmp_path, machine=None)
    with pytest.raises(KdsecError, match="does not say where it was made"):
        ledger.costs(tmp_path)


def test_the_chapters_of_the_paper_profile_stand_in_the_order_of_their_gaps(tmp_path: pathlib.Path) -> None:
    head, *rows = tables(ledger.pieces(tmp_path))[0]
    order = widest_gaps_first(plan([], "paper", [0], out=tmp_path))
    assert [row[0] for row in rows] == [spec.chapter for spec in order] and len(rows) == len(CHAPTERS)
    for row in rows:
        network, petaflop = ledger.teacher(row[0])
        assert row[3] == network and float(row[4]) == pytest.approx(petaflop, rel=0.06)
        assert float(row[5]) == pytest.approx(petaflop / (0.065 * 0.25) / 60, abs=0.06), head[5]


def test_operations_of_a_network_are_counted_without_computing_it() -> None:
    forward = 0.56e9 * 2  # of ResNet-18 on 32 x 32 pixels; the backward pass has twice as many
    assert ledger.image_operations("resnet18") == pytest.approx(3 * forward, rel=0.02)


@given(st.lists(st.none() | st.floats(0, 1e6), min_size=1, max_size=6))
def test_a_sum_counts_what_is_known_and_no_more(counts: list[float | None]) -> None:
    parts = [
        [{"seconds": 60.0, "machine": MACHINE, "training": {} if count is None else {"petaflop": count}}]
        for count in counts
    ]
    shown = ledger._sum("all", parts)[1]
    known = [count for count in counts if count is not None]
    assert (shown == "not recorded") == (not known)
    if known:
        assert shown.startswith("at least ") == (len(known) < len(counts))
        assert float(shown.removeprefix("at least ")) == pytest.approx(sum(known), rel=0.06)


def test_the_page_has_a_place_for_it() -> None:
    page = (ROOT / "book" / "run-times.md").read_text(encoding="utf-8")
    assert "## What the whole book costs\n\n<!-- costs -->\n" in page
    assert ledger.costs(ROOT / "results").startswith("| what |")
