"""Files are whole or not there."""

import os

import pytest

from kdsec.errors import atomic_write


@pytest.mark.parametrize("old", [None, "old"])
def test_what_is_written_takes_the_place_only_at_the_end(tmp_path, old):
    path = tmp_path / "table.csv"
    if old:
        path.write_text(old)
    with atomic_write(path) as part:
        part.write_text("new")
        assert part.parent == tmp_path and part.suffix == ".csv" and part.name.startswith(".")
        assert (path.read_text() if path.exists() else None) == old
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("old", [None, "old"])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, old):
    path = tmp_path / "table.csv"
    if old:
        path.write_text(old)
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == (
        [("table.csv", old)] if old else []
    )


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "table.csv"
    with atomic_write(path) as one, atomic_write(path) as two:
        one.write_text("one"), two.write_text("two")
    assert path.read_text() == "one"


def test_files_are_for_everybody(tmp_path):
    """As a plain write makes them; mkstemp's would be the owner's alone."""
    path, plain = tmp_path / "table.csv", tmp_path / "plain.csv"
    plain.write_text("plain")
    with atomic_write(path) as part:
        part.write_text("new")
    assert path.stat().st_mode == plain.stat().st_mode
