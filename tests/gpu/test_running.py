"""A part goes on after a command that fails, stops one that takes too long, and keeps what was finished."""

import functools
import json
import time
from pathlib import Path

import pytest

from tests.gpu.results import Results, machine
from tests.gpu.running import Command, Part, run_part

ABOUT = {"device": "a GPU", "versions": {"torch": "2.13"}, "commit": "abc"}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a command whose module does this, in an interpreter that imports nothing else."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(name: str, body: str, limit: float = 60.0, **further: object) -> Command:
        (tmp_path / f"module_{name}.py").write_text(body)
        return Command(name, f"module_{name}", (), limit, **further)

    return make


def far() -> float:
    return time.monotonic() + 600


def test_a_failing_command_is_told_with_the_end_of_its_log_and_stops_no_other(tmp_path, command):
    part = Part("steps", (command("bad", "print('loading')\nraise ValueError('no room')"), command("good", "")))
    result = run_part(part, tmp_path, far())
    assert (result["status"], result["reason"]) == ("failed", "bad: exit code 1")
    bad, good = result["commands"].values()
    assert bad["log"].startswith("loading\n")
    assert bad["log"].endswith("ValueError: no room")
    assert good["status"] == "done"
    assert "log" not in good


def test_what_others_need_ends_the_part_when_it_fails(tmp_path, command):
    part = Part("steps", (command("model", "raise SystemExit(2)", is_needed=True), command("good", "")))
    result = run_part(part, tmp_path, far())
    assert result["reason"] == "model: exit code 2"
    assert list(result["commands"]) == ["model"]


def test_a_command_that_takes_too_long_is_stopped_and_its_figures_are_kept(tmp_path, command):
    figures = tmp_path / "figures.json"
    figures.write_text('{"plain": 1.5}')
    read = functools.partial(lambda path: json.loads(path.read_text()), figures)
    slow = command("slow", "import time\ntime.sleep(600)", 0.5, figures=read)
    result = run_part(Part("steps", (slow, command("good", ""))), tmp_path, far())
    assert (result["status"], result["reason"]) == ("timed out", "slow: stopped after 0 s")
    assert result["commands"]["slow"]["figures"] == {"plain": 1.5}
    assert result["commands"]["good"]["status"] == "done"


def test_a_command_that_leaves_no_figures_has_failed(tmp_path, command):
    quiet = command("quiet", "", figures=functools.partial(Path.read_text, tmp_path / "nothing.json"))
    result = run_part(Part("steps", (quiet,)), tmp_path, far())
    assert result["reason"].startswith("quiet: no figures: FileNotFoundError")


def test_when_the_time_for_all_is_up_the_rest_is_skipped(tmp_path, command):
    result = run_part(Part("steps", (command("late", ""),)), tmp_path, time.monotonic() - 1)
    assert (result["status"], result["reason"]) == ("skipped", "late: the time for all parts was up")


def test_a_part_is_done_without_what_this_machine_lacks_and_says_so(tmp_path, command):
    part = Part("steps", (command("lora", ""), command("qlora", "raise SystemExit(1)", skipped="no bitsandbytes")))
    result = run_part(part, tmp_path, far())
    assert (result["status"], result["reason"]) == ("done", "qlora: no bitsandbytes")


def test_the_gravest_status_is_that_of_the_part_and_all_reasons_are_given(tmp_path, command):
    part = Part("steps", (command("late", "import time\ntime.sleep(600)", 0.5), command("bad", "raise SystemExit(3)")))
    result = run_part(part, tmp_path, far())
    assert (result["status"], result["reason"]) == ("failed", "late: stopped after 0 s; bad: exit code 3")


def test_a_part_that_cannot_run_here_says_why(tmp_path):
    result = run_part(Part("recovery", skipped="no rows"), tmp_path, far())
    assert (result["status"], result["reason"]) == ("skipped", "no rows")


def test_each_part_is_on_disk_at_once_and_later_runs_add_theirs(tmp_path):
    path = tmp_path / "results.json"
    Results(path, ABOUT, "first").add("quickstart", {"status": "done", "seconds": 10.2})
    assert json.loads(path.read_text())["parts"] == {"quickstart": {"status": "done", "seconds": 10.2}}
    later = Results(path, ABOUT, "second")
    later.add("steps", {"status": "failed", "seconds": 3.0, "reason": "lora: exit code 1"})
    found = json.loads(path.read_text())
    assert list(found["parts"]) == ["quickstart", "steps"]
    assert found["command"] == "second"
    assert later.table(["steps"]).splitlines()[-1] == "| steps | failed | 3 | lora: exit code 1 |"


@pytest.mark.parametrize("key", sorted(ABOUT))
def test_results_of_another_device_version_or_commit_are_moved_aside(tmp_path, key):
    path = tmp_path / "results.json"
    Results(path, ABOUT, "first").add("quickstart", {"status": "done", "seconds": 10.2})
    Results(path, {**ABOUT, key: "another"}, "second").add("steps", {"status": "done", "seconds": 3.0})
    assert list(json.loads(path.read_text())["parts"]) == ["steps"]
    assert list(json.loads((tmp_path / "results-earlier-1.json").read_text())["parts"]) == ["quickstart"]


def test_a_file_that_cannot_be_read_is_moved_aside(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"parts": {')
    Results(path, ABOUT, "first").add("steps", {"status": "done", "seconds": 3.0})
    assert list(json.loads(path.read_text())["parts"]) == ["steps"]
    assert (tmp_path / "results-earlier-1.json").read_text() == '{"parts": {'
    Results(path, {**ABOUT, "commit": "another"}, "second")
    assert list(json.loads((tmp_path / "results-earlier-2.json").read_text())["parts"]) == ["steps"]


def test_a_machine_without_a_gpu_is_called_by_its_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    about = machine()
    assert about["device"].startswith("CPU (")
    assert about["commit"] == "unknown"
    assert about["versions"]["torch"]


def test_a_gpu_is_called_as_its_driver_calls_it(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA Example, 600.1, 81559 MiB'\necho 'NVIDIA Example, 600.1, 81559 MiB'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    about = machine()
    assert (about["device"], about["driver"], about["devices"]) == ("NVIDIA Example", "600.1", "2")
