"""The table of supported versions says what was run, when, with which outcome, and of the rest that it was not run."""

import datetime
import re

import pytest

from tests import matrix
from tests.matrix import BEGIN, END, ENVIRONMENTS, Environment, former_lines, judged, line, table, with_table

DATE = datetime.date(2026, 5, 4)


@pytest.mark.parametrize(
    ("code", "printed", "outcome"),
    [
        (0, "...\n=== 3596 passed, 12 skipped, 3 warnings in 540.1s ===\n", "passed: 3,596 tests, 12 skipped"),
        (0, "5 passed, 2 deselected in 1s\nand more\n", "passed: 5 tests"),
        (2, "=== 1 failed, 99 passed in 8s ===\nmake: *** [pytest] Error 1\n", "failed: 1 failed, 99 passed"),
        (2, "1 passed, 2 errors in 3s\n", "failed: 1 passed, 2 errors"),
        (2, "Collecting\nERROR: no such package | torch\n\n", "failed: ERROR: no such package / torch"),
        (2, "", "failed: exit code 2"),
        (0, "nothing to be done\n", "failed: the command ended well, but told of no test"),
    ],
)
def test_an_outcome_is_told_by_the_exit_code_and_the_counts_of_tests(code, printed, outcome):
    assert judged(code, printed) == outcome


def test_a_failure_is_told_with_its_tests_and_the_file_of_all_that_was_printed(monkeypatch, tmp_path, capsys):
    says = "echo 'FAILED tests/test_a.py::test_b - assert 1 == 2'; echo '1 failed, 2 passed in 3s'; exit 1"
    monkeypatch.setitem(ENVIRONMENTS, "core-3.13", Environment("3.13", "none", "some", ("sh", "-c", says)))
    monkeypatch.setattr(matrix, "find_python", lambda version: "python3.13")
    monkeypatch.setattr(matrix, "REPOSITORY", tmp_path)
    assert matrix.outcome("core-3.13") == "failed: 1 failed, 2 passed"
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "FAILED tests/test_a.py::test_b - assert 1 == 2"
    assert told[1] == f"all that was printed: {tmp_path / 'build' / 'matrix-core-3.13.log'}"


def test_an_environment_whose_python_is_missing_is_skipped(monkeypatch):
    monkeypatch.setattr(matrix, "find_python", lambda version: None)
    assert matrix.outcome("axolotl-0.21") == "skipped: Python 3.12 is not installed"


def test_a_python_that_does_not_start_is_none(monkeypatch, tmp_path):
    broken = tmp_path / "python3.99"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert matrix.find_python("3.99") is None
    broken.write_text("#!/bin/sh\nexit 0\n")
    assert matrix.find_python("3.99") == "python3.99"


def test_the_table_has_a_line_for_each_environment_and_says_which_were_not_run():
    lines = table({"core-3.13": "| `core-3.13` | its line |"})
    assert len(lines) == 2 + len(ENVIRONMENTS)
    assert lines[-1] == "| `core-3.13` | its line |"
    assert lines[2] == "| `axolotl-0.19` | 3.11 | | all tests | not run yet | |"


def test_rows_that_are_not_run_again_keep_their_date():
    page = f"before\n{BEGIN}\n{END}\nafter\n"
    page = with_table(page, {"oldest": line("oldest", "passed: 5 passed", DATE)})
    lines = former_lines(page)
    assert list(lines) == ["oldest"]
    lines["newest"] = line("newest", "failed: 1 failed", datetime.date(2026, 6, 1))
    page = with_table(page, lines)
    assert re.search(r"^\| `oldest` .* passed: 5 passed \| 2026-05-04 \|$", page, re.MULTILINE)
    assert re.search(r"^\| `newest` .* failed: 1 failed \| 2026-06-01 \|$", page, re.MULTILINE)
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert with_table(page, former_lines(page)) == page


def test_a_page_without_a_place_for_the_table_is_refused():
    with pytest.raises(SystemExit, match="no place for the table"):
        with_table("# Questions\n", {})


def test_a_run_writes_each_row_as_it_is_done_and_fails_when_one_failed(tmp_path, monkeypatch, capsys):
    def environment(script):
        return Environment("3.11", "no-such-venv", "two tests", ("sh", "-c", script))

    commands = {"good": environment("echo 2 passed in 1s"), "bad": environment("echo 1 failed in 1s; exit 1")}
    monkeypatch.setattr(matrix, "ENVIRONMENTS", commands)
    monkeypatch.setattr(matrix, "REPOSITORY", tmp_path)
    monkeypatch.setattr(matrix, "find_python", lambda version: "python")
    monkeypatch.setattr(matrix, "today", lambda: DATE)
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    assert matrix.main(["--write", str(page)]) == 1
    expected = ["passed: 2 tests", "failed: 1 failed"]
    lines = [
        f"| `{name}` | 3.11 |  | two tests | {said} | {DATE} |" for name, said in zip(commands, expected, strict=True)
    ]
    assert page.read_text().splitlines()[-4:-2] == lines
    assert capsys.readouterr().out.splitlines()[-2:] == lines
    assert matrix.main(["good", "--write", str(page)]) == 0
    assert lines[1] in page.read_text()


def test_an_environment_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        matrix.main(["core-2.7"])
    assert "there is no environment 'core-2.7'; known: axolotl-0.19" in capsys.readouterr().err


def test_the_docs_show_the_table_as_it_would_be_written():
    page = (matrix.REPOSITORY / "docs" / "questions.md").read_text(encoding="utf-8")
    assert with_table(page, former_lines(page)) == page


def test_each_command_is_a_target_of_the_makefile():
    makefile = (matrix.REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for environment in ENVIRONMENTS.values():
        assert f"\n{environment.command[1]}:" in makefile
