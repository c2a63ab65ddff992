import io
import logging
import sys
from types import SimpleNamespace

import pytest

from axolotl_sdft.core import runtime

LOG = logging.getLogger("axolotl_sdft.test_runtime")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(runtime, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def shown(monkeypatch, caplog):
    """Log lines of a process without a terminal."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO, logger=LOG.name)
    return caplog


def on_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_without_a_launcher_this_is_the_only_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (runtime.rank(), runtime.world_size()) == (0, 1)


def test_the_launcher_says_which_process_this_is(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (runtime.rank(), runtime.world_size()) == (3, 4)


def test_each_process_of_a_machine_gets_its_own_accelerator(monkeypatch):
    import torch

    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert runtime.local_device() == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert runtime.local_device() == torch.device("cuda", 2)


@pytest.mark.parametrize(
    ("has_onednn", "has_instructions", "expected"),
    [(True, True, "bfloat16"), (True, False, "float32"), (False, True, "float32")],
)
def test_a_cpu_computes_in_bfloat16_only_where_it_has_instructions_for_it(
    monkeypatch, has_onednn, has_instructions, expected
):
    import torch

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_onednn)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_instructions)
    assert runtime.compute_dtype("auto", torch.device("cpu")) == getattr(torch, expected)


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_that_would_emulate_bfloat16_computes_in_float16(monkeypatch, has_bfloat16, expected):
    import torch

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert runtime.compute_dtype("auto", torch.device("cuda")) == getattr(torch, expected)


def test_a_number_format_that_is_named_is_taken_as_it_is():
    import torch

    assert runtime.compute_dtype("float16", torch.device("cpu")) == torch.float16


def test_without_a_terminal_a_line_is_logged_at_most_every_thirty_seconds(clock, shown):
    with runtime.progress("scoring", 10, "rows", LOG) as work:
        clock.now += 29.0
        work.advance(2)
        assert shown.messages == []
        clock.now += 11.0
        work.advance(2, loss=0.5)
        work.advance(1)
    # 4 of 10 rows in 40 seconds: 0.1 a second, so the 6 left take 60 seconds.
    assert shown.messages == ["scoring: 4 of 10 rows, 0.10 rows/s, 60 s left, loss 0.5", "scoring: 5 rows in 40.0 s"]


def test_the_closing_line_comes_also_when_the_work_fails(clock, shown):
    def score(work):
        work.advance(3)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), runtime.progress("scoring", 10, "rows", LOG) as work:
        score(work)
    assert shown.messages == ["scoring: 3 rows in 0.0 s"]


def test_work_that_never_began_logs_nothing(clock, shown):
    with runtime.progress("scoring", 0, "rows", LOG):
        clock.now += 60.0
    assert shown.messages == []


def test_other_ranks_show_nothing_with_or_without_a_terminal(clock, shown, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    terminal = on_terminal(monkeypatch)
    with runtime.progress("scoring", 10, "rows", LOG) as work:
        clock.now += 60.0
        work.advance(5)
    assert shown.messages == []
    assert terminal.getvalue() == ""


def test_a_terminal_gets_a_bar_with_figures_and_no_log_lines(shown, monkeypatch):
    terminal = on_terminal(monkeypatch)
    with runtime.progress("scoring", 10, "rows", LOG) as work:
        work.advance(4)
        work.advance(6, loss=0.5)
    assert "scoring: 100%" in terminal.getvalue()
    assert "10/10" in terminal.getvalue()
    assert "loss=0.5" in terminal.getvalue()
    assert shown.messages == []
