"""A module that runs as a child ends with its code, is killed at its limit with all that it started, and is heard."""

import os
import sys
import time

import pytest

from tests.benchmarks.children import RUN_AS_FORKS, run_module, tail


@pytest.fixture(params=["interpreter", "fork"])
def module(request, tmp_path, monkeypatch):
    """Writes a module whose ``main`` has this body, and returns its name; runs it both ways."""
    if request.param == "fork":
        monkeypatch.setenv(RUN_AS_FORKS, "1")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(body):
        name = f"child_{request.param}_{abs(hash(body))}"
        head = "import os, subprocess, sys, time\ndef main():\n    "
        end = "\nif __name__ == '__main__':\n    sys.exit(main())\n"
        (tmp_path / f"{name}.py").write_text(head + body.replace("\n", "\n    ") + end)
        return name

    return write


def test_what_a_module_prints_is_in_the_log_and_its_code_comes_back(module, tmp_path):
    name = module(
        "print('asked for', *sys.argv[1:])\nprint(os.environ['COLOUR'], os.getcwd(), file=sys.stderr)\nreturn 3"
    )
    (tmp_path / "sub").mkdir()
    log = tmp_path / "log"
    code = run_module(name, ["a", "b"], log, folder=tmp_path / "sub", environment={"COLOUR": "green"})
    assert code == 3
    assert sorted(tail(log).splitlines()) == ["asked for a b", f"green {tmp_path / 'sub'}"]
    assert "COLOUR" not in os.environ


def test_a_module_that_raises_ends_with_1_and_its_traceback(module, tmp_path):
    assert run_module(module("raise ValueError('no such layer')"), [], tmp_path / "log") == 1
    assert tail(tmp_path / "log", 1) == "ValueError: no such layer"


def test_a_module_that_ends_well_gives_0(module, tmp_path):
    assert run_module(module("print('done')"), [], tmp_path / "log", 60) == 0


def test_at_its_limit_a_module_is_killed_with_what_it_started(module, tmp_path):
    body = "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    body += "print(child.pid, flush=True)\ntime.sleep(600)"
    name, log = module(body), tmp_path / "log"
    for limit in (1, 4, 16, 64):  # until it came as far as printing
        assert run_module(name, [], log, limit) is None
        if tail(log):
            break
    pid = int(tail(log))
    deadline = time.monotonic() + 60
    while _runs(pid) and time.monotonic() < deadline:  # the system takes a moment to end it
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid):
    """Whether a process is there and is not merely waiting to be reaped."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_of_a_progress_bar_only_the_last_state_is_shown(tmp_path):
    (tmp_path / "log").write_text("first\n10%\r50%\r100%\n\nlast\n")
    assert tail(tmp_path / "log", 2) == "100%\nlast"
    assert tail(tmp_path / "nothing") == ""
