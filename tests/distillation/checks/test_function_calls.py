"""Which function calls are the same, wherever and however they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.distillation.checks import function_call
from axolotl_sdft.distillation.checks.function_calls import documented_parameters
from axolotl_sdft.inference.function_calls import find_calls, is_calls_alone
from tests.distillation.checks.samples import asked, written


def verdict(text: str, reference: str, instruction: str = "Call it.") -> str | None:
    return function_call(written(text), asked(instruction, reference), allow_text=True)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("garden.water(minutes=5, bed='east')", 'garden.water(bed="east", minutes=5.0)'),
        ("Run `plant('rose')` now.", "plant('rose')"),
        ("```python\nplant('rose')\n```\nIt calls plant(name) for you.", "plant('rose')"),
        ("The call:\nplant(\n    'rose',\n    depth=-2,\n)", "plant('rose', depth=-2)"),
        ('plant("a (small) rose")', "plant('a (small) rose')"),
        ("plant({'b': [1, 2], 'a': None})", 'plant({"a": None, "b": (1.0, 2)})'),
        ("result = plant(kind=Kind.ROSE)", "plant(kind=Kind.ROSE)"),
        ("plant(seed(2, kind='x'))", "plant(seed(2.0, kind='x'))"),
        ("First `dig(2)`, then `plant('rose')`.", "plant('rose'); dig(2)"),
        ("plant('rose')\n\nAgain: plant('rose')", "plant('rose')"),
        ("Use `plant('rose')`; `plant()` (see the manual) takes a name.", "plant('rose')\nplant()"),
        ("Sure (as asked), the call(s): plant('rose')\nIt plants rose(s) in Kent (England).", "plant('rose')"),
        ("At a height (20) of two cups (big) it is: plant('rose')", "plant('rose')"),
        ('{"name": "plant", "arguments": {"kind": "rose", "depth": 2}}', "plant(depth=2, kind='rose')"),
        ('[{"function": {"name": "plant", "arguments": "{\\"kind\\": [1]}"}}]', "plant(kind=[1])"),
    ],
)
def test_the_same_call_passes_wherever_and_however_it_is_written(text: str, reference: str):
    assert verdict(text, reference) is None


@pytest.mark.parametrize(
    ("text", "reference", "reason"),
    [
        ("plant('tulip')", "plant('rose')", "no plant('rose')"),
        ("plant(True)", "plant(1)", "no plant(1)"),
        ("plant('1')", "plant(1)", "no plant(1)"),
        ("tools.plant('rose')", "plant('rose')", "no plant('rose')"),
        ("plant('rose', deep=True)", "plant('rose')", "no plant('rose')"),
        ("plant('rose')\ndig(bed)", "plant('rose')", "also dig(bed)"),
        ("plant('rose'), then `dig(bed)`", "plant('rose')", "also dig(bed)"),
        ("Planting (roses) and rose(s).", "plant('rose')", "no call, reference plant('rose')"),
        ("plant('rose') and dig(2)", "plant('rose')", "also dig(2)"),
        ("dig(2)", "dig(2); dig(2)", "no dig(2)"),
        ("plant(b=1, a=2)", "plant(a=1, b=2)", "no plant(a=1, b=2)"),
        ("plant(2, 1)", "plant(1, 2)", "no plant(1, 2)"),
        ("plant(colour='red')", "plant(kind='red')", "no plant(kind='red')"),
        ("def plant(kind='rose'):\n    pass", "plant(kind='rose')", "no call, reference plant(kind='rose')"),
        ("Planting (a rose) is easy.", "plant('rose')", "no call, reference plant('rose')"),
        ("plant('rose'", "plant('rose')", "no call, reference plant('rose')"),
        ("plant('rose')", "Just plant a rose.", "the reference holds no call"),
    ],
)
def test_another_call_or_none_is_rejected(text: str, reference: str, reason: str):
    assert verdict(text, reference) == reason


def test_a_positional_argument_may_be_the_keyword_argument_with_its_value():
    assert verdict("find('rose')", "find(common_name='rose')") is None
    assert verdict("find(common_name='rose')", "find('rose')") is None
    assert verdict("find('tulip')", "find(common_name='rose')") is not None


def test_documented_parameters_tell_which_keyword_a_positional_argument_is():
    instruction = "Function: scale\nParameters:\n1. width - in cm\nof the picture\n2. height - in cm\nRequired: [width]"
    assert verdict("scale(2, 3)", "scale(height=3, width=2)", instruction) is None
    assert verdict("scale(2, 3)", "scale(height=2, width=3)", instruction) is not None
    assert verdict("scale(2, 3)", "scale(height=2, width=3)") is None  # no telling without a list


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("plant( 'rose' )", "plant('rose')"),
        ("plant('rose')\ndig(2)", "plant('rose'); dig(2)"),
        ("[plant(kind='rose'), dig(2)]", "[dig(2), plant(kind='rose')]"),
        ('{"name": "plant", "arguments": {"kind": "rose"}}', '{"arguments": {"kind": "rose"}, "name": "plant"}'),
        ('<tool_call>\n{"name": "dig", "arguments": {"n": 2}}\n</tool_call>',) * 2,
        ("It digs: `dig(2)`", "Dig with dig(2)."),
        ("dig(2)", "Dig with dig(2)."),
    ],
)
def test_an_answer_that_is_a_call_alone_stays_one_and_words_may_stand_where_the_original_has_some(
    text: str, reference: str
):
    assert function_call(written(text), asked("Call it.", reference)) is None


@pytest.mark.parametrize(
    ("text", "reference", "reason"),
    [
        ("plant('rose') plants a rose.", "plant('rose')", "more than the call: plant('rose') plants a rose."),
        ("`dig(2)`", "dig(2)", "more than the call: `dig(2)`"),
        ("```python\ndig(2)\n```", "dig(2)", "more than the call: ```python dig(2) ```"),
        ("dig(2)", "[dig(2)]", "more than the call: dig(2)"),
        ('{"name": "dig", "arguments": {"n": 2}}', "dig(n=2)", "the call is written as JSON, unlike the original's"),
        ("dig(3)", "dig(2)", "no dig(2)"),
    ],
)
def test_an_original_that_is_a_call_alone_takes_nothing_around_the_call(text: str, reference: str, reason: str):
    assert function_call(written(text), asked("Call it.", reference)) == reason


@pytest.mark.parametrize(
    ("text", "is_alone"),
    [
        ("dig(2)", True),
        ("[dig(2); plant('rose')]", True),
        ('<tool_call>{"name": "dig", "arguments": {}}</tool_call>', True),
        ("Call dig(2)", False),
        ("dig", False),
        ("", False),
    ],
)
def test_calls_alone_are_told_from_texts_that_hold_calls(text: str, is_alone: bool):
    assert is_calls_alone(text) is is_alone


@pytest.mark.parametrize(
    "text",
    [
        "Use scale.\nArguments:\n- `width` (int): how wide\n- `height`: how high\n\nNotes:\n- none",
        '{"name": "scale", "parameters": {"type": "object", "properties": {"width": {}, "height": {}}}}',
        'Tools: [{"api_call": "scale", "parameters": [{"name": "width"}, {"name": "height"}]}]',
        "Here is:\ndef scale(width: int, height: int = 3) -> None: ...",
    ],
)
def test_parameters_are_read_from_lists_json_and_signatures(text: str):
    assert documented_parameters("scale", text) == ["width", "height"]


@pytest.mark.parametrize("text", ["", "scale is good.", "{broken", "def scale(width, ,)", "scale\nParameters:\nnone"])
def test_a_function_that_nobody_documents_has_no_known_parameters(text: str):
    assert documented_parameters("scale", text) == []


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,4}_", fullmatch=True), literals, min_size=1, max_size=4), st.randoms())
def test_keyword_arguments_have_no_order(arguments: dict, random):
    shuffled = list(arguments.items())
    random.shuffle(shuffled)
    first, second = (f"f({', '.join(f'{k}={v!r}' for k, v in pairs)})" for pairs in (arguments.items(), shuffled))
    assert verdict(f"It is:\n{second}", first) is None


@given(literals, literals)
def test_calls_with_one_literal_agree_exactly_when_the_literals_do(left: object, right: object):
    [first], [second] = find_calls(f"f({left!r})"), find_calls(f"f({right!r})")
    assert first.same_as(second) == (left == right) or _mixes_booleans_and_numbers(left, right)


def _mixes_booleans_and_numbers(left: object, right: object) -> bool:
    """In Python True equals 1; as an argument it is something else."""
    return left == right and repr(left) != repr(right)
