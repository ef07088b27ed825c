"""Claims as tables: what a chapter's page shows of its records."""

from __future__ import annotations

import html
import re

import pytest

from kdsec import chapters
from kdsec.errors import KdsecError
from kdsec.report import claims, records, tables


def recordings(chapter):
    names = chapters.profiles(chapter)
    frames = {name: records.recorded(chapter, name) for name in names}
    return {name: (chapters.settings(chapter, name), frame) for name, frame in frames.items() if len(frame)}


@pytest.mark.parametrize("chapter", chapters.CHAPTERS)
def test_a_chapter_shows_every_claim_once_with_a_column_for_every_profile(chapter):
    recorded = recordings(chapter)
    table = tables.verdicts(chapter, recorded)
    judged = [claims.judge_all(rows, chapter, name, at) for name, (at, rows) in recorded.items()]
    rows = re.findall(r"<tr><td>.*?</tr>", table.html)
    lines = table.markdown.strip().splitlines()[2:]
    assert len(rows) == len(lines) == len(claims.papers()[chapter].claims)
    for place, (row, line) in enumerate(zip(rows, lines, strict=True)):
        cells = re.findall(r"<td data-profile=.*?</td>", row)
        assert len(cells) == len(recorded) == line.count("|") - 2
        for cell, text, board in zip(cells, line.split("|")[2:], judged, strict=False):
            each = board[place]
            assert html.escape(each.claim.says) in row and each.claim.says in line
            for shown in (cell, text):
                assert f" {each.verdict}" in re.sub(r"<[^>]*>", "", shown)
                assert each.text("mean") in shown and each.text("interval") in shown


def test_a_notebook_shows_html_and_a_terminal_markdown():
    table = tables.verdicts("opening", recordings("opening"))
    assert table._repr_html_() == table.html and repr(table) == table.markdown
    assert table.html.count("<td") == table.html.count("</td>")


def test_a_cell_is_sorted_by_its_difference():
    recorded = recordings("opening")
    table = tables.verdicts("opening", recorded)
    (at, rows), *_ = recorded.values()
    means = [each.difference.mean for each in claims.judge_all(rows, "opening", next(iter(recorded)), at)]
    values = re.findall(r'<td data-profile="quick" data-value="(.*?)">', table.html)
    assert [float(each) for each in values] == pytest.approx(means, rel=1e-5)


def test_without_records_there_is_no_table():
    (at, rows), *_ = recordings("opening").values()
    with pytest.raises(KdsecError, match="have all cells run"):
        tables.verdicts("opening", {"quick": (at, rows.iloc[:0])})
    with pytest.raises(KdsecError, match="chapter with claims 'closing'"):
        tables.verdicts("closing", {"quick": (at, rows)})
    assert (
        tables.side_by_side([[claims.judge_all(rows.iloc[:0], "opening", "quick", at)[0]]], "claim") is None
    )


@pytest.mark.parametrize("verdict", tables.MARKS)
def test_a_mark_without_its_word_is_named_for_who_cannot_see_it(verdict):
    assert f">{verdict}<" in tables.badge(verdict).replace("</span> ", "</span>>")
    alone = tables.badge(verdict, word=False)
    assert f'role="img" aria-label="{verdict}"' in alone and tables.MARKS[verdict] in alone
