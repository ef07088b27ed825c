"""Claims as tables: what a chapter's page shows of its records."""

from __future__ import annotations

import dataclasses
import html
import html.parser
import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kdsec import config
from kdsec.errors import KdsecError
from kdsec.report import claims, quote, records, summary, tables, verdicts
from kdsec.report.claims import Claim, Quantity
from kdsec.report.text import two_digits


def recordings(chapter):
    names = config.profiles(chapter)
    frames = {name: records.recorded(chapter, name) for name in names}
    return {name: (config.settings(chapter, name), frame) for name, frame in frames.items() if len(frame)}


@pytest.mark.parametrize("chapter", config.CHAPTERS)
def test_a_chapter_shows_every_claim_once_with_a_row_for_every_profile(chapter):
    recorded = recordings(chapter)
    table = tables.verdicts(chapter, recorded)
    boards = [verdicts.judge_all(rows, chapter, name, at) for name, (at, rows) in recorded.items()]
    judged = sorted(zip(*boards, strict=True), key=lambda row: row[0].claim.ours)
    groups = re.findall(r"<tbody>.*?</tbody>", table.html)
    lines = [line for line in table.markdown.splitlines() if line.startswith("|") and " --- " not in line]
    lines = [line for line in lines if "| required |" not in line]
    assert len(groups) == len(claims.papers()[chapter].claims) == len(judged)
    for group, results in zip(groups, judged, strict=True):
        shown = [each for each in results if each.difference] or [results[0]]
        rows = re.findall(r"<tr .*?</tr>", group)
        assert len(rows) == len(shown) and html.escape(results[0].claim.statement) in rows[0]
        assert results[0].claim.statement in lines[0]
        for row, each in zip(rows, shown, strict=True):
            _, scale, measured, required, verdict, _ = lines.pop(0).strip("|").split(" | ")
            assert scale.strip() == (each.profile if each.difference else "–")
            for part in (measured, required, verdict):
                assert html.escape(part.strip()) in re.sub(r"<[^>]*>", "", row).replace("\u00a0", " ")
            assert not re.search(r"<td[^>]*>[^<]*\d (%|point)", row), "a line may end before a unit"
            assert each.measured in measured and each.interval in measured and each.verdict in verdict
    assert lines == []


def test_a_list_of_which_nothing_was_run_is_shown_as_not_yet_run(monkeypatch):
    """One of the two lists has rows; the other was hidden once, as if it had no claims."""
    recorded = {"quick": recordings("sparse-teacher")["quick"]}
    board = verdicts.judge_all(recorded["quick"][1], "sparse-teacher", "quick", recorded["quick"][0])
    board = [each if each.claim.ours else verdicts.ClaimResult(each.claim, "quick") for each in board]
    monkeypatch.setattr(tables.rule, "judge_all", lambda *_: board)
    first, second = tables.verdicts("sparse-teacher", recorded).html.split('<div class="quoted">')[1:]
    asked = sum(not each.ours for each in claims.papers()["sparse-teacher"].claims)
    assert tables.HEADINGS[False] in first and first.count('data-verdict="not yet run"') == asked
    assert tables.HEADINGS[True] in second and 'data-scale="quick"' in second


def test_without_records_there_is_no_table():
    (at, rows), *_ = recordings("opening").values()
    with pytest.raises(KdsecError, match="have all cells run"):
        tables.verdicts("opening", {"quick": (at, rows.iloc[:0])})
    with pytest.raises(KdsecError, match="chapter with claims 'closing'"):
        tables.verdicts("closing", {"quick": (at, rows)})
    nothing = verdicts.judge_all(rows.iloc[:0], "opening", "quick", at)[0]
    assert "not yet run" in tables.of_claims([[nothing]], "claim").html


# Records and claims may come from anywhere: text in them is text on the page, never a tag, a link or a cell.

hostile = st.sampled_from(
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        '" onmouseover="alert(1)',
        "a | b",
        "[a](https://example.org)",
        "a\nb",
        "&lt;b&gt;",
    ]
) | st.text("<>&|\"'[]()`=/ ab\n", min_size=1)
OURS = {"div", "table", "thead", "tbody", "tr", "th", "td", "span", "a"}


class Page(html.parser.HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.links += [value for name, value in attributes if name == "href"]

    def handle_data(self, data):
        self.text += data


def judged(label):
    """A result of rows and of a claim whose every text is ``label``."""
    full = [("opening", "quick", seed, label, "a", "net", "", label, 0.5, 9) for seed in range(3)]
    frame = pd.DataFrame(full, columns=list(records.COLUMNS))
    made = Claim("opening", "id", label, label, Quantity("a", metric=label.replace("{", "")), unit=label)
    result = verdicts.judge(made, verdicts.Recorded.of(frame, "quick", None))
    assert result.difference is not None
    return dataclasses.replace(result, profile=label), frame


@given(hostile)
def test_hostile_text_becomes_no_tag_in_html(label):
    result, _ = judged(label)
    table = tables.of_claims([[result]], label)
    board = tables.of_claims([[result]], label, board=True)
    for part in (table.html, board.html, tables.strip([[result]])):
        page = Page(part)
        assert page.tags <= OURS
        assert not {name for name in page.attributes if name.startswith("on") or name == "src"}
        assert set(page.links) <= {"#opening-id"}
    assert label in Page(table.html).text


@given(hostile)
def test_hostile_text_stays_in_its_cell_in_markdown(label):
    result, frame = judged(label)
    texts = [
        tables.of_claims([[result]], label).markdown,
        summary.markdown(frame[["dataset", "arm"]].rename(columns={"arm": label})),
    ]
    for text, columns in zip(texts, (6, 2), strict=True):
        tokens = MarkdownIt("commonmark").enable("table").parse(text)
        kinds = [each.type for token in tokens for each in [token, *(token.children or [])]]
        assert not {"html_block", "html_inline", "link_open", "image"} & set(kinds), text
        assert kinds.count("table_open") == 1 and kinds.count("th_open") == columns
        assert kinds.count("td_open") == columns * (kinds.count("tr_open") - 1)


def test_hostile_text_reaches_no_page_by_a_mark(monkeypatch):
    _, frame = judged("<script>alert(1)</script>")
    rows = pd.concat([frame, frame.assign(arm="b", value=0.1)]).assign(metric="m")
    monkeypatch.setattr(quote.records, "read", lambda *_: rows)
    text = quote.fill("<!-- times opening: m, a, b -->", quote.Source({}, None))
    assert text.startswith("5 times on &lt;script&gt;") and "<" not in text


@given(st.floats(-1e6, 1e6))
def test_measured_numbers_have_two_digits_and_no_exponent(value):
    shown = two_digits(value)
    assert "e" not in shown
    assert abs(float(shown) - value) <= max(0.051 * abs(value), 5.1e-5)
