"""Runs what each supported environment must pass and shows the outcome as a table with the date.

    make matrix                                  # all environments, which takes hours and about 20 GB; updates the docs
    make matrix ROWS="core-3.10 core-3.13"       # some of them
    python -m tests.matrix --list

Each environment is made by a target of the Makefile, in a folder of its own. One whose Python is not installed is
skipped with that reason. Rows of the table in the docs that were not run stay as they were, with their own date.
"""

import argparse
import datetime
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
BEGIN, END = "<!-- matrix -->", "<!-- /matrix -->"
HEADER = ("environment", "Python", "installed", "runs", "outcome", "date")
_ASK_VERSIONS = """
from importlib.metadata import version
from contextlib import suppress
for name in ("axolotl", "trl", "transformers", "torch"):
    with suppress(Exception):
        print(name, version(name))
"""


@dataclass(frozen=True)
class Environment:
    """Versions that are supported, and the command that tests them."""

    python: str
    venv: str
    """Folder that the command makes."""
    runs: str
    command: tuple[str, ...]


def _core(python: str) -> Environment:
    tests = "`tests/core`, `tests/config`, `tests/plugins`"
    return Environment(python, f".venv-core-{python}", tests, ("make", "test-core", f"CORE_PYTHON={python}"))


ENVIRONMENTS = {
    "axolotl-0.19": Environment("3.11", ".venv", "all tests", ("make", "pytest")),
    "axolotl-0.21": Environment(
        "3.12", ".venv-axolotl-0.21.0", "all tests", ("make", "pytest", "AXOLOTL=axolotl==0.21.0")
    ),
    "newest": Environment("3.11", ".venv-newest", "trainers and core, no Axolotl", ("make", "test-newest")),
    "oldest": Environment("3.10", ".venv-oldest", "trainers and core, no Axolotl", ("make", "test-oldest")),
    **{f"core-{python}": _core(python) for python in ("3.10", "3.11", "3.12", "3.13")},
}


def main(arguments: list[str] | None = None) -> int:
    """Run the environments, print the table, and return 1 if any failed."""
    options = _options(arguments)
    if options.list:
        print("\n".join(f"{name:<14} {' '.join(each.command)}" for name, each in ENVIRONMENTS.items()))
        return 0
    lines = former_lines(options.write.read_text(encoding="utf-8")) if options.write else {}
    outcomes = []
    for name in options.environments or ENVIRONMENTS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        outcomes.append(outcome(name))
        lines[name] = line(name, outcomes[-1], today())
        if options.write:
            options.write.write_text(with_table(options.write.read_text(encoding="utf-8"), lines), encoding="utf-8")
    print("\n".join(table(lines)))
    return int(any(each.startswith("failed") for each in outcomes))


def today() -> datetime.date:
    """Return the date that a row is given."""
    return datetime.date.today()


def outcome(name: str) -> str:
    """Run an environment's command and return ``passed``, ``failed`` or ``skipped`` with what is to be said of it."""
    environment = ENVIRONMENTS[name]
    if find_python(environment.python) is None:
        return f"skipped: Python {environment.python} is not installed"
    log = REPOSITORY / "build" / f"matrix-{name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        streams = {"stdout": file, "stderr": subprocess.STDOUT}
        code = subprocess.run(environment.command, cwd=REPOSITORY, check=False, **streams).returncode
    printed = log.read_text(encoding="utf-8", errors="replace")
    if code:
        print("\n".join([*failed_tests(printed), f"all that was printed: {log}"]), file=sys.stderr, flush=True)
    return judged(code, printed)


def judged(code: int, printed: str) -> str:
    """Return the outcome of a command by its exit code and the last lines that it printed."""
    summary = _last_line(printed, r"\d+ (passed|failed|error)")
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)", summary)
    counted = ", ".join(f"{int(number):,} {what}" for number, what in counts)
    if code == 0:
        said = counted.replace(" passed", " tests")
        return f"passed: {said}" if counted else "failed: the command ended well, but told of no test"
    last = _last_line(printed, ".").strip()[:120].replace("|", "/")
    return f"failed: {counted or last or f'exit code {code}'}"


def failed_tests(printed: str) -> list[str]:
    """Return pytest's lines of tests that failed or could not be set up."""
    return [each for each in printed.splitlines() if each.startswith(("FAILED ", "ERROR "))]


def _last_line(printed: str, pattern: str) -> str:
    return next((each for each in reversed(printed.splitlines()) if re.search(pattern, each)), "")


def find_python(version: str) -> str | None:
    """Return an interpreter of a version such as ``3.12``, from the PATH or from pyenv; None where there is none."""
    installed = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python{version}"))
    for candidate in (f"python{version}", *map(str, reversed(installed))):
        try:
            subprocess.run([candidate, "-c", ""], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue  # pyenv's own command is there for versions that are switched off
        return candidate
    return None


def line(name: str, result: str, date: datetime.date) -> str:
    """Return an environment's line of the table."""
    environment = ENVIRONMENTS[name]
    cells = (f"`{name}`", environment.python, _installed(environment), environment.runs, result, str(date))
    return f"| {' | '.join(cells)} |"


def _installed(environment: Environment) -> str:
    python = REPOSITORY / environment.venv / "bin" / "python"
    if not python.exists():
        return ""
    asked = subprocess.run([python, "-c", _ASK_VERSIONS], check=False, capture_output=True, text=True)
    return ", ".join(asked.stdout.splitlines())


def table(lines: Mapping[str, str]) -> list[str]:
    """Return the table, in the order of the environments; those without a line were never run."""
    never = (f"| `{name}` | {each.python} | | {each.runs} | not run yet | |" for name, each in ENVIRONMENTS.items())
    rows = [lines.get(name, empty) for name, empty in zip(ENVIRONMENTS, never, strict=True)]
    return [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|", *rows]


def former_lines(page: str) -> dict[str, str]:
    """Return the lines of a page's table, by the names of the environments that were run."""
    lines = re.findall(r"^\| `([^`]+)` .*\|$", _between(page), re.MULTILINE)
    whole = re.findall(r"^\| `[^`]+` .*\|$", _between(page), re.MULTILINE)
    known = dict(zip(lines, whole, strict=True))
    return {name: each for name, each in known.items() if name in ENVIRONMENTS and "| not run yet |" not in each}


def with_table(page: str, lines: Mapping[str, str]) -> str:
    """Return a page with the table between its two marks."""
    whole = "\n".join(table(lines))
    return page.replace(f"{BEGIN}{_between(page)}{END}", f"{BEGIN}\n\n{whole}\n\n{END}")


def _between(page: str) -> str:
    _, begin, rest = page.partition(BEGIN)
    inside, end, _ = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the page has no place for the table: {BEGIN} and {END}")
    return inside


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="*", metavar="ENVIRONMENT", help="which (default: all)")
    parser.add_argument("--write", type=Path, help="page that shows the table, between two marks")
    parser.add_argument("--list", action="store_true", help="print the environments and their commands")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.environments if name not in ENVIRONMENTS]
    if unknown:
        parser.error(f"there is no environment {unknown[0]!r}; known: {', '.join(ENVIRONMENTS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
