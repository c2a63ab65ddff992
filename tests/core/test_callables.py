"""Functions in the place of names: what they are called, whether they fit, and when they are other ones."""

import functools
import linecache
import operator
import textwrap
from itertools import count

import pytest

from axolotl_sdft.core.callables import callable_identity, callable_name, signature_fault

_CELLS = count()


def cell(source: str, name: str = "check", module: str = "notebook"):
    """Run a text as a notebook runs a cell, and return what it defines under a name."""
    text, file = textwrap.dedent(source), f"<cell {next(_CELLS)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names = {"__name__": module}
    exec(compile(text, file, "exec"), names)
    return names[name]


CHECK = """
    import functools, math
    from dataclasses import dataclass

    LIMIT = 3
    WORDS = ["sorry", "cannot"]

    def long(text):
        return len(text) > LIMIT

    def check(answer, target, *, factor=2):
        "Reject what is long."
        return "long" if long(answer) or answer in WORDS else None

    def within(limit):
        def inner(answer, target):
            return None if len(answer) < limit else "long"
        return inner

    five, six = within(5), within(6)

    @dataclass
    class Backend:
        model_dir: str
        config: object

        @functools.cached_property
        def model(self):
            return long(self.model_dir)

        @staticmethod
        def prefix():
            return "a"

    class Judge:
        def __init__(self, limit):
            self.limit = limit

        def __call__(self, answer, target):
            return None

    strict, lenient = Judge(3), Judge(4)
    remembered = functools.cache(check)
"""


def test_a_function_is_called_by_its_own_name_and_an_object_by_its_class():
    assert callable_name("leak") == "leak"
    assert callable_name(textwrap.dedent) == "dedent"
    assert callable_name(functools.partial(textwrap.dedent)) == "dedent"
    assert callable_name(cell(CHECK, "Backend")) == "Backend"
    assert callable_name(cell(CHECK, "strict")) == "Judge"


@pytest.mark.parametrize(
    ("thing", "fault"),
    [
        (5, "is a int, which can't be called"),
        (textwrap.dedent, r"must take (answer, target), but its signature is (text)"),
        (cell(CHECK, "Judge"), "must take (answer, target), but its signature is (limit)"),
        (cell(CHECK, "strict"), None),
        (functools.partial(cell(CHECK), factor=3), None),
    ],
)
def test_what_can_not_be_called_with_the_arguments_is_told(thing, fault):
    assert signature_fault(thing, ("answer", "target")) == fault


@pytest.mark.parametrize("name", ["check", "five", "Backend", "strict", "remembered"])
def test_the_same_source_run_again_is_the_same_function(name):
    assert callable_identity(cell(CHECK, name)) == callable_identity(cell(CHECK, name))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("check", "is long", "is too long"),
        ("check", "len(text) > LIMIT", "len(text) >= LIMIT"),
        ("check", "LIMIT = 3", "LIMIT = 4"),
        ("check", '"cannot"', '"can not"'),
        ("check", "factor=2", "factor=1 + 2"),
        ("five", "within(5)", "within(7)"),
        ("five", "len(answer) < limit", "len(answer) <= limit"),
        ("Backend", "LIMIT = 3", "LIMIT = 4"),
        ("Backend", "long(self.model_dir)", "not self.model_dir"),
        ("Backend", 'return "a"', 'return "b"'),
        ("Backend", "config: object", "config: object = None"),
        ("strict", "Judge(3)", "Judge(5)"),
        ("strict", "return None\n\n    strict", "return 'no'\n\n    strict"),
        ("remembered", "LIMIT = 3", "LIMIT = 4"),
    ],
)
def test_another_source_argument_or_constant_makes_another_function(name, old, new):
    changed = CHECK.replace(old, new)
    assert changed != CHECK

    before, after = callable_identity(cell(CHECK, name)), callable_identity(cell(changed, name))

    assert before.split()[0] == after.split()[0]
    assert before != after


def test_functions_with_different_values_around_them_or_set_arguments_differ():
    names = {callable_identity(cell(CHECK, name)) for name in ("five", "six", "strict", "lenient")}
    names |= {callable_identity(functools.partial(cell(CHECK), factor=factor)) for factor in (1, 2)}
    assert len(names) == 6


def test_what_is_not_used_does_not_count():
    assert callable_identity(cell(CHECK, "five")) == callable_identity(
        cell(CHECK.replace("LIMIT = 3", "LIMIT = 4"), "five")
    )


def test_an_identity_reads_as_the_qualified_name_and_a_digest():
    name, digest = callable_identity(cell(CHECK)).split()
    assert name == "notebook.check"
    assert len(digest) == 12
    assert set(digest) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (
            lambda answer, target: None,
            r"<lambda> can't be recognised by a later run: .*<lambda> is a lambda; define it",
        ),
        (operator.eq, "eq can't be recognised by a later run: eq has no source; .* attribute such as version = '1'"),
        (
            cell("rule = lambda a: a\ndef check(a, t): return rule(a)"),
            "check can't be recognised .*: <lambda> is a lamb",
        ),
    ],
)
def test_a_function_without_a_source_of_its_own_is_refused(thing, message):
    with pytest.raises(ValueError, match=message):
        callable_identity(thing)


def test_a_version_stands_for_the_source_that_a_function_does_not_have():
    def versioned(version):
        function = cell("check = lambda answer, target: None")
        function.version = version
        return callable_identity(function)

    assert versioned(1) == versioned(1) != versioned(2)


def test_a_version_counts_beside_the_source():
    function = cell(CHECK)
    before = callable_identity(function)
    function.version = "2"

    assert callable_identity(function) != before


def test_functions_and_objects_of_other_modules_count_by_their_name():
    source = """
        from textwrap import dedent
        import threading
        LOCK = threading.Lock()
        def check(answer, target):
            return dedent(answer), LOCK
    """
    assert callable_identity(cell(source)) == callable_identity(cell(source))


def test_functions_that_call_each_other_have_an_identity():
    source = "def other(a): return check(a, a)\ndef check(a, t): return other(a)"
    assert callable_identity(cell(source)) != callable_identity(cell(source.replace("(a, a)", "(a, 1)")))
