import io
import logging
import re
import sys
from types import SimpleNamespace

import pytest

from axolotl_sdft.core import terminal

LOG = logging.getLogger("axolotl_sdft.test_terminal")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def shown(caplog):
    """Log lines of a process without a terminal, as pytest captures its output."""
    caplog.set_level(logging.INFO, logger=LOG.name)
    return caplog


def on_terminal(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    return screen


def plain_lines(screen):
    """What was written to a terminal, line by line, the last state of each, without codes."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    return [re.sub(" +", " ", line.rpartition("\r")[2]).strip() for line in text.rstrip("\n").split("\n")]


def test_without_a_terminal_a_line_is_logged_at_most_every_thirty_seconds(clock, shown):
    with terminal.progress("scoring", 10, "rows", LOG) as work:
        clock.now += 29.0
        work.advance(2)
        assert shown.messages == []
        clock.now += 11.0
        work.advance(2, loss=0.5)
        work.advance(1)
    # 4 of 10 rows in 40 seconds: 0.1 a second, so the 6 left take 60 seconds.
    assert shown.messages == ["scoring: 4 of 10 rows, 0.10 rows/s, 1 min left, loss 0.5", "scoring: 5 rows in 40 s"]


def test_the_closing_line_comes_also_when_the_work_fails(clock, shown):
    def score(work):
        work.advance(3)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), terminal.progress("scoring", 10, "rows", LOG) as work:
        score(work)
    assert shown.messages == ["scoring: 3 rows in 0.0 s"]


def test_work_that_never_began_logs_nothing(clock, shown):
    with terminal.progress("scoring", 0, "rows", LOG):
        clock.now += 60.0
    assert shown.messages == []


def test_other_ranks_show_nothing_with_or_without_a_terminal(clock, shown, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    screen = on_terminal(monkeypatch)
    with terminal.progress("scoring", 10, "rows", LOG) as work:
        clock.now += 60.0
        work.advance(5)
    assert shown.messages == []
    assert screen.getvalue() == ""


def test_a_rate_below_one_in_ten_seconds_is_told_as_the_time_that_one_takes(clock, shown):
    with terminal.progress("scoring", 4, "rows", LOG) as work:
        clock.now += 90.0
        work.advance()
    assert shown.messages[0] == "scoring: 1 of 4 rows, 90.0 s per row, 4 min left"  # 270 seconds


def test_a_terminal_gets_a_bar_with_rate_time_left_and_figures_and_no_log_lines(clock, shown, monkeypatch):
    screen = on_terminal(monkeypatch)
    with terminal.progress("scoring", 10, "rows", LOG) as work:
        clock.now += 40.0
        work.advance(4, loss=0.5)
    lines = plain_lines(screen)
    assert "scoring" in lines[-1]
    assert lines[-1].endswith("40 % 4/10 rows 0.10 rows/s 1 min left loss=0.5")
    assert shown.messages == []


def test_two_bars_at_once_share_the_terminal(clock, shown, monkeypatch):
    screen = on_terminal(monkeypatch)
    with terminal.progress("outer", 2, "models", LOG) as outer, terminal.progress("inner", 5, "rows", LOG) as inner:
        inner.advance(5)
        outer.advance()
    lines = plain_lines(screen)
    assert ["1/2 models" in lines[-2], "5/5 rows" in lines[-1]] == [True, True]


def test_log_lines_come_out_above_the_bar_and_not_on_it(clock, monkeypatch):
    screen = on_terminal(monkeypatch)
    handler = logging.StreamHandler(screen)
    logger = logging.getLogger("axolotl_sdft.test_terminal.lines")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        with terminal.progress("scoring", 10, "rows", LOG) as work:
            work.advance(4)
            logger.warning("layer 3 is odd")
            work.advance(6)
        logger.warning("afterwards")
    finally:
        logger.removeHandler(handler)
    assert [line for line in plain_lines(screen) if "odd" in line or "afterwards" in line] == [
        "layer 3 is odd",
        "afterwards",
    ]
    assert handler.stream is screen


def test_a_handler_that_looks_up_the_stream_each_time_is_left_alone(clock, monkeypatch):
    screen = on_terminal(monkeypatch)
    logger = logging.getLogger("axolotl_sdft.test_terminal.lookup")
    logger.propagate = False
    logger.addHandler(logging.lastResort)
    try:
        with terminal.progress("scoring", 10, "rows", LOG):
            logger.warning("layer 3 is odd")
    finally:
        logger.removeHandler(logging.lastResort)
    assert "layer 3 is odd" in plain_lines(screen)


def test_what_goes_into_a_pipe_while_a_bar_is_shown_stays_in_the_pipe(clock, monkeypatch):
    screen, pipe = on_terminal(monkeypatch), io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    with terminal.progress("scoring", 10, "rows", LOG):
        print("a row")
    assert pipe.getvalue() == "a row\n"
    assert "a row" not in screen.getvalue()


@pytest.mark.parametrize(("name", "value"), [("FORCE_COLOR", "1"), ("TTY_COMPATIBLE", "1")])
def test_no_setting_of_the_environment_brings_a_bar_into_a_file(clock, shown, monkeypatch, name, value):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setenv(name, value)
    with terminal.progress("scoring", 10, "rows", LOG) as work:
        work.advance(4)
    assert file.getvalue() == ""
    assert shown.messages == ["scoring: 4 rows in 0.0 s"]


def test_a_terminal_that_can_not_move_its_cursor_gets_log_lines(clock, shown, monkeypatch):
    screen = on_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with terminal.progress("scoring", 10, "rows", LOG) as work:
        work.advance(4)
    assert screen.getvalue() == ""
    assert shown.messages == ["scoring: 4 rows in 0.0 s"]


def test_into_a_pipe_a_row_of_a_table_is_one_line_however_long():
    path = "/models/" + "x" * 200
    lines = list(terminal.table_lines(("", "size", "folder"), [("seed", "30.0 k", path), ("pruned", "9", "-")], "lrl"))
    assert lines == [
        "          size  folder",
        f"seed    30.0 k  {path}",
        "pruned       9  -",
    ]


def test_on_a_terminal_a_table_fits_and_loses_nothing():
    lines = list(terminal.table_lines(("name", "folder"), [("seed", "/models/one/two")], "ll", width=14))
    assert lines == ["name  folder", "seed  /models/", "      one/two"]


def test_a_column_counts_the_cells_of_its_characters():
    lines = list(terminal.table_lines(("", "n"), [("水水", "1"), ("abc", "2")], "lr"))
    assert lines == ["      n", "水水  1", "abc   2"]


def test_cells_hold_neither_markup_nor_what_steers_a_terminal():
    lines = list(terminal.table_lines(("", ""), [("[bold]a[/bold] :smile:", "\x1b[31mred")], "ll"))
    assert lines == ["[bold]a[/bold] :smile:  \N{REPLACEMENT CHARACTER}[31mred"]


def test_colours_that_the_environment_asks_for_do_not_get_into_a_table(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "9")
    assert list(terminal.table_lines(("first", "second"), [("1", "2")], "ll")) == ["first  second", "1      2"]


def test_facts_stand_beside_their_labels_and_go_on_below_themselves():
    facts = [("Layers", "one two three"), ("Rows", "4")]
    assert list(terminal.fact_lines(facts, label_width=8, width=17)) == [
        "Layers   one two",
        "         three",
        "Rows     4",
    ]


def test_a_paragraph_is_indented_from_its_second_line_on():
    lines = terminal.paragraph_lines("word " * 30)
    assert lines == [("word " * 20).strip(), "  " + ("word " * 10).strip()]


class Cell:
    """What a notebook shows below its cell."""

    def __init__(self):
        self.shown = []

    def __call__(self, content, *, raw, display_id):
        assert raw
        assert display_id
        self.update(content, raw=True)
        return self

    def update(self, content, raw):
        self.shown.append(content["text/plain"])


def test_in_a_notebook_one_line_is_written_anew_and_nothing_is_logged(clock, shown, monkeypatch):
    cell = Cell()
    monkeypatch.setattr(terminal, "_notebook_display", lambda: cell)
    with terminal.progress("scoring", 10, "rows", LOG) as work:
        clock.now += 40.0
        work.advance(4, loss=0.5)
        work.advance(1)  # at once: not shown
    assert cell.shown == [
        "scoring: 0 of 10 rows",
        "scoring: 4 of 10 rows, 0.10 rows/s, 1 min left, loss 0.5",
        "scoring: 5 of 10 rows, 0.12 rows/s, 40 s left",
    ]
    assert shown.messages == []


def test_a_notebook_is_known_by_its_kernel(monkeypatch):
    display = object()
    kernel, plain = SimpleNamespace(kernel=object()), SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    for shell, expected in ((kernel, display), (plain, None), (None, None)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert terminal._notebook_display() is expected
