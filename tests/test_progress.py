"""Progress that suits where it is shown: a bar, a few lines, or nothing; the items pass through unchanged."""

import sys

import pytest

from kdsec.errors import KdsecError
from kdsec.progress import STYLES, style, track


def shown(capfd, how, monkeypatch, count):
    """What ``track`` leaves on standard error for ``count`` items; standard output must stay empty."""
    monkeypatch.setenv("KDSEC_PROGRESS", how)
    assert list(track(iter(range(count)), count, "kd")) == list(range(count))
    printed = capfd.readouterr()
    assert printed.out == ""
    return printed.err


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 37, 1000])
def test_a_log_gets_at_most_ten_whole_lines_and_the_last_says_all(capfd, monkeypatch, count):
    lines = shown(capfd, "log", monkeypatch, count)
    assert "\r" not in lines and lines.endswith("\n")
    done = [line.split(" (")[0] for line in lines.splitlines()]
    assert 1 <= len(done) <= 10 and len(done) >= min(count, 5)
    assert len(set(done)) == len(done)
    assert done[-1] == f"kd: {count}/{count}"


def test_a_log_says_so_while_the_work_goes_on(capfd, monkeypatch):
    monkeypatch.setenv("KDSEC_PROGRESS", "log")
    items = track(range(20), 20, "kd")
    for _ in range(11):
        next(items)
    assert "kd: 10/20" in capfd.readouterr().err


def test_a_bar_names_its_work_and_wipes_itself(capfd, monkeypatch):
    text = shown(capfd, "bar", monkeypatch, 50)
    assert "kd" in text and "\r" in text
    assert "\n" not in text  # a line feed would leave the bar on the screen
    assert text.rsplit("\r", 2)[-1].strip() == ""


@pytest.mark.parametrize("how", STYLES)
def test_no_items_are_no_mistake(capfd, monkeypatch, how):
    assert "\n" not in shown(capfd, how, monkeypatch, 0)


def test_off_prints_nothing(capfd, monkeypatch):
    assert shown(capfd, "off", monkeypatch, 50) == ""


@pytest.mark.parametrize("asked", ["loud", "BAR", "1"])
def test_an_unknown_style_is_one_line(monkeypatch, asked):
    monkeypatch.setenv("KDSEC_PROGRESS", asked)
    with pytest.raises(KdsecError, match=f"KDSEC_PROGRESS '{asked}'.*choose from: bar, log, off") as caught:
        list(track(range(3), 3, "kd"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("unset", [None, ""])
@pytest.mark.parametrize(
    ("terminal", "notebook", "expected"),
    [(True, False, "bar"), (False, True, "bar"), (False, False, "log")],
)
def test_where_nobody_asked_the_place_decides(monkeypatch, unset, terminal, notebook, expected):
    if unset is None:
        monkeypatch.delenv("KDSEC_PROGRESS")
    else:
        monkeypatch.setenv("KDSEC_PROGRESS", unset)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert style() == expected


def test_a_stop_in_the_middle_reaches_the_source(monkeypatch):
    """Training that ends in an error must close its loader, whatever the style."""
    for how in STYLES:
        monkeypatch.setenv("KDSEC_PROGRESS", how)
        closed = []

        def source(closed=closed):
            try:
                yield from range(10)
            finally:
                closed.append(True)

        items = track(source(), 10, "kd")
        next(items)
        items.close()
        assert closed, how
