"""Asks checks about answers, and lets none of them end a run: one that raises or hangs rejects the answer instead."""

import hashlib
import json
import logging
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from axolotl_sdft._version import __version__
from axolotl_sdft.core.callables import callable_identity, plain_value
from axolotl_sdft.core.errors import first_line
from axolotl_sdft.core.texts import one_line
from axolotl_sdft.distillation.interfaces import AnswerCheck
from axolotl_sdft.inference.interfaces import Answer, Target

LOG = logging.getLogger(__name__)

CHECK_FAILED = "check failed"
"""How the rejection by a check that raised or hung is called: ``check failed: NAME``."""

TIME_LIMIT_VARIABLE = "AXOLOTL_SDFT_CHECK_SECONDS"
_TIME_LIMIT_S = 300.0
_MAX_SILENCES = 3  # a check that was silent so often in a row is not waited for any more in this run
_NUM_LOGGED = 5
_CODE_OF_CHECKS = (  # what a verdict of a built-in check depends on
    "distillation/checks/*.py",
    "distillation/templates/*.py",
    "distillation/rows/tool_texts.py",
    "inference/reasoning.py",
    "inference/call_markup.py",
    "core/texts.py",
)

# Such an error follows from the answer itself, so it would come again. Any other one may be an outage.
_ABOUT_THE_ANSWER = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, RecursionError),
    *(NotImplementedError, NameError),
)


@dataclass(frozen=True)
class Finding:
    """What a check said of an answer."""

    reason: str | None
    """Why the answer is rejected; None when it passes."""

    has_failed: bool = False
    """Whether the check raised, hung or returned something else than a reason."""

    is_outage: bool = False
    """Whether it may well say something another time."""


class GuardedCheck:
    """A check with its name and its identity, which always returns a finding.

    A check of the package runs here. One of a plugin, which may ask a server or a model, runs in a thread of its own,
    so that it can be given up.
    """

    def __init__(self, name: str, check: AnswerCheck) -> None:
        self.name, self._check = name, check
        self.identity = check_identity(name, check)
        self._call: Callable[[Answer, Target], Any]
        self._call = self._directly if _module_of(check).startswith("axolotl_sdft.") else _OwnThread(check)
        self._num_silences = 0
        self._num_faults: Counter[str] = Counter()

    def __call__(self, answer: Answer, target: Target) -> Finding:
        """Return what the check says; what it raises becomes a finding, and is logged a few times."""
        if self._num_silences >= _MAX_SILENCES:
            return Finding(f"no verdict in time, {_MAX_SILENCES} times in a row", has_failed=True, is_outage=True)
        try:
            reason = self._call(answer, target)
        except TimeoutError as err:
            self._num_silences += isinstance(err, _SilenceError)
            return self._failed(err, is_outage=True)
        except Exception as err:
            self._num_silences = 0
            return self._failed(err, is_outage=not isinstance(err, _ABOUT_THE_ANSWER))
        self._num_silences = 0
        if reason is not None and not isinstance(reason, str):
            fault = TypeError(f"it returned a {type(reason).__name__}, not a reason or None")
            return self._failed(fault, is_outage=False)
        return Finding(reason)

    def _directly(self, answer: Answer, target: Target) -> str | None:
        return self._check(answer, target)

    def _failed(self, err: Exception, is_outage: bool) -> Finding:
        self._num_faults[type(err).__name__] += 1
        count = self._num_faults[type(err).__name__]
        reason = f"{type(err).__name__}: {first_line(err)}"
        if count <= _NUM_LOGGED:
            LOG.warning(
                "the check %s failed (%s); the answer counts as rejected%s%s",
                *(self.name, reason, ", and is judged again at the next start" if is_outage else ""),
                "; further ones are counted only" if count == _NUM_LOGGED else "",
            )
        return Finding(reason, has_failed=True, is_outage=is_outage)


class _SilenceError(TimeoutError):
    """A check did not answer in time."""


class _OwnThread:
    """Calls a function in a thread that is left behind when it does not return in time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._jobs: queue.SimpleQueue[tuple[Any, queue.SimpleQueue[Any]]] | None = None

    def __call__(self, *arguments: Any) -> Any:
        limit_s = float(os.environ.get(TIME_LIMIT_VARIABLE, _TIME_LIMIT_S))
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            # A daemon: a check that hangs must not keep the process from ending either.
            threading.Thread(target=self._work, args=(self._jobs,), name="sdft-check", daemon=True).start()
        result: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._jobs.put((arguments, result))
        try:
            value, error = result.get(timeout=limit_s)
        except queue.Empty:
            self._jobs = None
            raise _SilenceError(f"no verdict within {limit_s:g} s ({TIME_LIMIT_VARIABLE})") from None
        if error is not None:
            raise error
        return value

    def _work(self, jobs: "queue.SimpleQueue[tuple[Any, queue.SimpleQueue[Any]]]") -> None:
        while jobs is self._jobs:  # else this thread was given up
            arguments, result = jobs.get()
            try:
                result.put((self._function(*arguments), None))
            except Exception as err:
                result.put((None, err))
            except BaseException as err:  # such as SystemExit, which would end the thread without a word
                result.put((None, RuntimeError(f"{type(err).__name__}: {err}")))


def first_finding(
    answer: Answer, target: Target, checks: Sequence[GuardedCheck]
) -> tuple[GuardedCheck, Finding] | None:
    """Return the first check that rejects an answer with what it says, or None when all pass."""
    for check in checks:
        finding = check(answer, target)
        if finding.reason is not None:
            return check, finding
    return None


def named_rejection(check: GuardedCheck, finding: Finding) -> tuple[str, str]:
    """Return the name under which a rejection is counted, with its reason."""
    name = f"{CHECK_FAILED}: {check.name}" if finding.has_failed else check.name
    return name, one_line(str(finding.reason))


def check_identity(name: str, check: AnswerCheck) -> str:
    """Return 12 hex digits that change with the name of a check, its options, its ``version`` and its code.

    An attribute ``version`` of the function counts, so that a plugin can say that its judge is another one now. So does
    the file in which the function stands; for those of the package all files that checks are made of.
    """
    function = check
    options: dict[str, Any] = {}
    while isinstance(function, partial):
        options = {**function.keywords, **options}
        function = function.func
    said = json.dumps(options, sort_keys=True, default=_told_option)
    parts = [name, said, str(getattr(function, "version", "")), _code_digest(function)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _told_option(value: Any) -> Any:
    """Return what an option holds, without its place in memory; of a function its name, as its code counts by file."""
    if callable(value) and hasattr(value, "__qualname__"):
        return [getattr(value, "__module__", None), value.__qualname__]
    if isinstance(value, partial):
        return [value.func, list(value.args), value.keywords]
    try:
        return plain_value(value)
    except TypeError:
        return [f"{type(value).__module__}.{type(value).__qualname__}", dict(getattr(value, "__dict__", {}))]


def _own_identity(function: Any) -> str:
    try:
        return callable_identity(function)
    except ValueError:  # what a plugin registers may have no source; the settings refuse such a function
        return ""


def _module_of(check: Any) -> str:
    function = check.func if isinstance(check, partial) else check
    return str(getattr(function, "__module__", None) or type(function).__module__)


def _code_digest(function: Any) -> str:
    module_name = _module_of(function)
    if module_name.startswith("axolotl_sdft."):
        package = Path(__file__).parents[2]
        files = sorted(path for pattern in _CODE_OF_CHECKS for path in package.glob(pattern))
    else:
        file = getattr(sys.modules.get(module_name), "__file__", None)
        if not file:  # such as a notebook
            return _own_identity(function)
        files = [Path(file)]
    digest = hashlib.sha256(__version__.encode())
    for path in files:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()
