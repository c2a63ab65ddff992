"""Reads the result that a passage states, as a whole: one quantity or several, a bound, a choice, a formula.

Two results are the same when all of their parts are. What can't be told apart by the text is not the same.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from axolotl_sdft.distillation.checks.math_worker import Allowance, MathWorker
from axolotl_sdft.distillation.checks.plain_numbers import START
from axolotl_sdft.distillation.checks.quantities import Quantity, find_quantities, plain_text

_MAX_PASSAGE = 600  # characters
_ROOT = re.compile(r"\u221a\s?(\d+|[a-z]|\([^()]{0,100}\))")
_COMMAND = re.compile(r"\\[A-Za-z]+|[\u03c0\u221a]")
_EQUALS = re.compile(r"(?<![<>!=:])=(?![=>])")
_ASIDE = re.compile(r"\([^()]{0,200}[A-Za-z]{2}[^()]{0,200}\)")
_EXPLANATION = re.compile(
    r",\s+(?!(?:i\.?e\b|or\b|and\b|that is|which (?:is|equals|makes)|not\b|but\b|then\b)|[a-zA-Z]{1,2}\s*=|as in)"
    r"(?=[a-zA-Z])"
    r"|;|\b(?:because|since|where|if|so|as|giving|leaving)\b"
)
_NEGATED = re.compile(
    r"\b(?:not|rather than|instead of)\s+(?:just\s+|only\s+|be\s+|the\s+)?[$\u20ac\u00a3]?$", re.IGNORECASE
)
_VARIABLE = re.compile(r"(?<![\w\\^])([A-Za-z](?:_?\{?\w\}?)?|\\?theta|\\?lambda)\s*(?==)")
_VARIABLE_NAME = re.compile(r"[A-Za-z](?:_?\{?\w\}?)?")
_CHOICE = re.compile(r"\W*(?:(?:option|choice|letter)\s+)?\(?([A-J])(?:[).:](?!\d)|(?=\W*$))", re.IGNORECASE)
_CHOICE_ALONE = re.compile(r"\W*(?:(?:option|choice|letter)\s+)?\(?([A-J])\)?\W*", re.IGNORECASE)
_FILLER = re.compile(
    r"(?:[\s\W]|\b(?:that|it|is|are|be|was|were|a total of|an? average of|in total|equal to|equals|exactly|about|just|"
    r"only|approximately|around|roughly|nearly|almost|therefore|thus|simply|now|US|USD|EUR|Rs|minus|negative|plus|the|by|"
    r"between|from|at least|at most|more than|less than|fewer than|no more than|no less than|no fewer than|over|under|"
    r"up to|above|below|either|both|but|[A-Za-z])\b)*",
    re.IGNORECASE,
)
_LOWER = r"at least|no less than|no fewer than|a minimum of|minimum|\N{GREATER-THAN OR EQUAL TO}"
_UPPER = r"at most|no more than|a maximum of|maximum|up to|\N{LESS-THAN OR EQUAL TO}"
_BOUNDS = (
    (">=", re.compile(rf"(?:{_LOWER})\s*[$\u20ac\u00a3]?$", re.IGNORECASE)),
    ("<=", re.compile(rf"(?:{_UPPER})\s*[$\u20ac\u00a3]?$", re.IGNORECASE)),
    (">", re.compile(r"(?:\bmore than|\bgreater than|\bover|\babove|>)\s*[$\u20ac\u00a3]?$", re.IGNORECASE)),
    ("<", re.compile(r"(?:\bless than|\bfewer than|\bunder|\bbelow|<)\s*[$\u20ac\u00a3]?$", re.IGNORECASE)),
)
_BOUND_BEHIND = (
    (">=", re.compile(r"\s*(?:[a-z]+\s+)?or (?:more|above|greater|higher)\b", re.IGNORECASE)),
    ("<=", re.compile(r"\s*(?:[a-z]+\s+)?or (?:less|fewer|below|lower)\b", re.IGNORECASE)),
)
_ASKS_FOR_A_BOUND = re.compile(
    r"\b(?:at least|at most|minimum|maximum|fewest|least|most|more than|less than|no more)\b", re.IGNORECASE
)
_WORDS = r"(?:\s+(?!and\b|or\b|to\b|by\b)[A-Za-z%\u00b0/]+){0,3}"
_LINK = re.compile(
    rf"(?:{_WORDS}\s*(?:,|;|&|/)?\s*\b(?:and|or|i\.\s?e\.|that is|which (?:is|equals|makes)|that makes)\b[,:]?\s*"
    rf"|{_WORDS}\s*[,;&(]\s*|\s*\bby\b\s*)(?:the\s+|either\s+)?[$\u20ac\u00a3\N{{MINUS SIGN}}-]?(?:minus |negative )?",
    re.IGNORECASE,
)
_COMMA_LINK = re.compile(rf"{_WORDS}\s*[,;(]\s*(?!and|or|i\.)[^A-Za-z]*", re.IGNORECASE)
_SIGN_BEFORE = re.compile(r"[(\[{]?(?:\b(?:minus|negative) )?[-\N{MINUS SIGN}\N{EN DASH}]?\s?[$\u20ac\u00a3]?$")
_BETWEEN = re.compile(r"\bbetween\s+[$\u20ac\u00a3]?$", re.IGNORECASE)
_ENDS = re.compile(r"(?:\s+[A-Za-z%\u00b0]+)?\W*$|\s*,|\s+(?:and|or)\b")
_TUPLE = re.compile(r"[(\[{]([^()\[\]{}]{1,200}[,;][^()\[\]{}]{1,200})[)\]}]")
_PERIOD = (
    r"(?:\s+(?:more|full|whole|school|business|work(?:ing)?))?[\s-]+"
    r"(?:second|minute|hour|day|night|week|month|year|decade)s?\b"
)
_ADJUNCT = re.compile(
    r"\b(?:after|before|within|during|since|than|out of|of (?:the|his|her|their|its|all|these|those)(?: \w+)?|"
    r"per|every|each|another)\s+(?:about |the |these |those |all |first |last )?[$\u20ac\u00a3]?$",
    re.IGNORECASE,
)
_TIME_ADJUNCT = re.compile(
    r"\b(?:in|for|over|of)\s+(?:the |these |those |a total of |next |last |first )?$", re.IGNORECASE
)
_PERIOD_BEHIND = re.compile(_PERIOD, re.IGNORECASE)
_YEAR = re.compile(r"\b(?:in|since|of|by|until|from)\s+$", re.IGNORECASE)

_WORKER = MathWorker()


@dataclass(frozen=True)
class Result:
    """All that a passage states as its result."""

    source: str
    quantities: tuple[Quantity, ...] = ()
    form: str = "one"
    """``one``, ``list`` (in any order), ``compound`` (6 feet 2 inches), ``names``, or a pair of brackets."""

    names: tuple[str, ...] = ()
    bound: str = ""
    """``>=``, ``<=``, ``>`` or ``<``; empty for a value."""

    letter: str = ""
    """Of a multiple choice."""

    formula: str = ""
    """In LaTeX or plain text, where the result is more than numbers."""


def read_result(passage: str, *, announced: bool, question: str = "") -> Result | None:
    """Return what a passage states as its result, or None where it states no number, choice or formula.

    Args:
        passage: A sentence, without the cue that announces it.
        announced: Whether the result stands first, as behind "The answer is"; else the last number counts.
        question: Where it asks for "at least how many", bounds don't count; where it asks "how many dozen", these are
            units.
    """
    passage = passage[:_MAX_PASSAGE] if announced else passage[-_MAX_PASSAGE:]
    text = _without_asked_units(_ASIDE.sub(_unless_tuple, plain_text(passage)), question)
    letter = ""
    if announced or len(text.split()) <= 3:
        choice = _CHOICE.match(text)
        if choice is not None and (choice[1].isupper() or "(" in choice[0]):
            letter, text = choice[1].upper(), text[choice.end() :]
    result = _read_numbers(text, passage, announced, question)
    if letter:
        values = result.quantities if result else ()
        return Result(passage.strip(), values, result.form if result else "one", letter=letter)
    return result


def may_hold_result(passage: str) -> bool:
    """Say whether a passage holds anything that a number or a formula begins with; cheaper than to read it."""
    return START.search(passage) is not None or _COMMAND.search(passage) is not None


def read_formula(text: str) -> Result | None:
    """Return the content of a box as a result: numbers, a choice, or else a formula or a word, as it stands."""
    plain = plain_text(text).strip()
    choice = _CHOICE_ALONE.fullmatch(plain)
    if choice is not None and choice[1].isupper():
        return Result(text.strip(), letter=choice[1])
    result = read_result(text, announced=True)
    if result is not None and (result.formula or _FILLER.fullmatch(plain[: _first_digit(plain)])):
        return result
    return Result(text.strip(), formula=text.strip()) if text.strip() else None


def same_result(first: Result, second: Result, allowance: Allowance) -> bool:
    """Say whether two results are the same; what can't be told within the allowance is not."""
    if first.letter and second.letter and first.letter != second.letter:
        return False
    if first.letter and second.letter and not (first.quantities and second.quantities):
        return True
    if first.formula or second.formula:
        return _same_formula(first, second, allowance)
    if not first.quantities or not second.quantities or first.bound != second.bound:
        return False
    if first.form == second.form == "names" and set(first.names) == set(second.names):
        mine, theirs = (dict(zip(each.names, each.quantities, strict=True)) for each in (first, second))
        return all(mine[name].same_as(theirs[name]) for name in mine)
    if len(first.quantities) != len(second.quantities):
        return False
    forms = {first.form, second.form}
    if len(forms - {"list", "one", "compound", "names"}) > 1:
        return False  # (0, 1) and [0, 1]
    if forms <= {"list", "{}"}:
        return _same_in_any_order(first.quantities, second.quantities)
    return all(mine.same_as(theirs) for mine, theirs in zip(first.quantities, second.quantities, strict=True))


def _same_formula(first: Result, second: Result, allowance: Allowance) -> bool:
    mine, theirs = (_tidied(each.formula or each.source) for each in (first, second))
    if "".join(mine.split()) == "".join(theirs.split()):
        return True
    if not re.search(r"[\d\\^+*/=-]|\b[a-z]\b", mine + theirs) or first.bound or second.bound:
        return False  # words
    return bool(_WORKER.are_equal(mine, theirs, allowance))


def _tidied(formula: str) -> str:
    formula = re.sub(r"^[\s$]+|[\s$.]+$", "", re.sub(r"\\[()\[\]]", "", formula)).replace("\N{MINUS SIGN}", "-")
    formula = _ROOT.sub(lambda found: rf"\sqrt{{{found[1].strip('()')}}}", formula).replace("\u03c0", r"\pi ")
    name, equals, value = formula.partition("=")
    return value.strip() if equals and _VARIABLE_NAME.fullmatch(name.strip()) else formula


def _same_in_any_order(first: tuple[Quantity, ...], second: tuple[Quantity, ...]) -> bool:
    left = list(second)
    for quantity in first:
        match = next((each for each in left if quantity.same_as(each)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _without_asked_units(text: str, question: str) -> str:
    """Take out words such as dozen where the question asks in them: "How many dozen eggs?" is answered by 3 dozen."""
    for word in ("dozen", "hundred", "thousand", "million", "billion"):
        if re.search(rf"\b(?:how many|how much in|in|number of)\s+{word}s?\b", question, re.IGNORECASE):
            text = re.sub(rf"(?<=[\d\s]){word}s?\b", "", text)
    return text


def _unless_tuple(aside: re.Match[str]) -> str:
    """Return nothing for a note in brackets; what else stands in brackets stays."""
    return aside[0] if _CHOICE.match(aside[0]) or _TUPLE.fullmatch(aside[0]) else " "


def _first_digit(text: str) -> int:
    quantities = find_quantities(text)
    return quantities[0].start if quantities else len(text)


def _read_numbers(text: str, passage: str, announced: bool, question: str) -> Result | None:
    named = _read_names(text, passage)
    if named is not None:
        return named
    clause = text
    if announced and (cut := _EXPLANATION.search(text)) and find_quantities(text[: cut.start()]):
        clause = text[: cut.start()]
    sides = [side for side in _EQUALS.split(clause) if side.strip()]
    quantities: list[Quantity] = []
    side = ""
    for side in reversed(sides):
        quantities = _without_negated(side, find_quantities(side))
        if quantities or _COMMAND.search(side):
            break
    is_first = announced or len(sides) > 1
    if announced and len(sides) > 1 and side is not sides[0]:
        side, quantities = _first_side_if_it_is_the_result(sides, side, quantities)
    if _is_formula(side, quantities, is_first):
        return Result(passage.strip(), formula=_formula(passage, side))
    if not quantities:
        return None
    return _chosen(side, quantities, is_first, question)


def _first_side_if_it_is_the_result(
    sides: list[str], side: str, quantities: list[Quantity]
) -> tuple[str, list[Quantity]]:
    """In "15 = 5 * 3", where both sides are equal, either will do; in "15 = 5 * 4", neither: both are handed back."""
    first = find_quantities(sides[0])
    is_number = bool(first) and first[0].kind == "number" and re.fullmatch(r"[^A-Za-z^]*", sides[0][: first[0].start])
    is_alone = is_number and re.fullmatch(r"[\s\W]*(?:[A-Za-z]+\s*){0,2}", sides[0][first[0].end :])
    if is_alone and len(first) == 1 and quantities and not any(first[0].same_as(each) for each in quantities):
        return f"{sides[0]} or {side}", find_quantities(f"{sides[0]} or {side}")
    return side, quantities


def _read_names(text: str, passage: str) -> Result | None:
    """Return the values of several unknowns, as in "x = 5, y = 7" or "x = 5 or x = -5"."""
    names = list(_VARIABLE.finditer(text))
    if len(names) < 2:
        return None
    quantities = []
    for number, name in enumerate(names):
        end = names[number + 1].start() if number + 1 < len(names) else len(text)
        rest = text[name.end() : end]
        found = find_quantities(rest)
        if len(found) != 1 or not re.fullmatch(r"\s*=?[\s$(\N{MINUS SIGN}\N{EN DASH}-]*", rest[: found[0].start]):
            return None
        behind = rest[found[0].end :]
        if number + 1 < len(names) and not re.fullmatch(r"[\s,;$)]*(?:and|or|&)?[\s,;$(]*(?:that\s+)?", behind):
            return None
        quantities.append(found[0])
    found_names = tuple(name[1] for name in names)
    if len(set(found_names)) < len(names):
        return Result(passage.strip(), tuple(quantities), "list")
    return Result(passage.strip(), tuple(quantities), "names", found_names)


def _without_negated(side: str, quantities: list[Quantity]) -> list[Quantity]:
    return [each for each in quantities if not _NEGATED.search(side[max(0, each.start - 30) : each.start])]


def _is_formula(side: str, quantities: list[Quantity], is_first: bool) -> bool:
    if _COMMAND.search(side):
        return True
    if not quantities:
        return False
    lead = quantities[0] if is_first else quantities[-1]
    if lead.is_formula:
        return True
    # "x + 5", "x^2", "2 < x < 5"
    has_variable = re.search(r"(?<![\w'])[a-zA-Z]\s?(?:[-+*/^]\s?[\d(a-zA-Z]|\()|\)\s?\^", side[: lead.start])
    return bool(has_variable) or len(re.findall("[<>\N{LESS-THAN OR EQUAL TO}\N{GREATER-THAN OR EQUAL TO}]", side)) > 1


def _formula(passage: str, side: str) -> str:
    spans = re.findall(r"\$\$?([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", passage)
    if spans:
        last = next(filter(None, spans[-1]))
        return last.rpartition("=")[2] if "=" in last else last
    bare = re.search(r"-?\d*\s*\\[A-Za-z]+\s*(?:\[\d+\])?(?:\{(?:[^{}]|\{[^{}]*\}){0,200}\}){0,2}", passage)
    if bare is not None and len(passage) > len(bare[0]) + 20:
        return bare[0]
    return side.strip()


def _chosen(side: str, quantities: list[Quantity], is_first: bool, question: str) -> Result:
    ordered = _read_tuple(side, quantities, is_first)
    if ordered is not None:
        brackets, parts = ordered
        return Result(_written(side, parts), tuple(parts), brackets)
    groups = _groups(side, quantities)
    if is_first and _FILLER.fullmatch(_blanked(side[: groups[0][0].start])):
        group = groups[0]
    else:
        plain = [group for group in groups if not _is_adjunct(side, group[0])]
        group = (plain or groups)[-1]
    bound = "" if _ASKS_FOR_A_BOUND.search(question) else _bound(side, group)
    if bound and not is_first and bound in "<>":
        bound = ""  # "5 more than 3" tells no bound
    source = _written(side, group)
    unique = [each for place, each in enumerate(group) if not any(each.same_as(past) for past in group[:place])]
    if len(unique) == 1 or len(group) == 1:
        return Result(source, (unique[0],), bound=bound)
    if len(group) == 2 and _BETWEEN.search(side[: group[0].start]):
        span = Quantity("range", (group[0].value, group[1].value), group[0].start, group[1].end)
        return Result(source, (span,), bound=bound)
    is_compound = all(each.unit for each in group) and len({each.unit for each in group}) == len(group)
    return Result(source, tuple(group), "compound" if is_compound else "list", bound=bound)


def _written(side: str, group: list[Quantity]) -> str:
    """Return quantities as they are written, with the sign before them and the brackets around them."""
    sign = _SIGN_BEFORE.search(side[: group[0].start])
    closing = re.compile(r"\s?[)\]}]").match(side, group[-1].end) if sign and sign[0][:1] in tuple("([{") else None
    return side[sign.start() if sign else group[0].start : closing.end() if closing else group[-1].end].strip()


def _blanked(text: str) -> str:
    """Return what stands before a result without a number that is denied there, as in "not 12 but"."""
    return re.sub(r"\bnot\s+\S+\s+(?:\w+\s+)?but\b", "", text)


def _groups(side: str, quantities: list[Quantity]) -> list[list[Quantity]]:
    """Return the quantities that belong together: with "and", "or" or a comma between them, or as 6 feet 2 inches."""
    groups = [[quantities[0]]]
    for quantity in quantities[1:]:
        before = groups[-1][-1]
        gap = side[before.end : quantity.start]
        is_compound = bool(before.unit and quantity.unit and before.unit != quantity.unit) and re.fullmatch(
            r"[\s,]*(?:and\s+)?", gap
        )
        linked = _LINK.fullmatch(gap) and not _is_adjunct(side, groups[-1][0])
        if linked and _COMMA_LINK.fullmatch(gap) and not _ENDS.match(side, quantity.end):
            linked = None  # "12 apples, 3 more than before"
        if is_compound or linked:
            groups[-1].append(quantity)
        else:
            groups.append([quantity])
    return groups


def _is_adjunct(side: str, quantity: Quantity) -> bool:
    """Say whether a number is told by the way, as in "after 2 days" or "15 of the 20"."""
    before = side[max(0, quantity.start - 40) : quantity.start]
    if _ADJUNCT.search(before):
        return True
    behind = side[quantity.end - len(quantity.unit) - 2 : quantity.end + 20]
    if _TIME_ADJUNCT.search(before) and (_PERIOD_BEHIND.search(behind) or quantity.kind == "time"):
        return True
    value = quantity.value
    is_year = isinstance(value, Fraction) and 1500 <= value <= 2100
    return is_year and bool(_YEAR.search(before)) and side[quantity.start : quantity.end].isdigit()


def _bound(side: str, group: list[Quantity]) -> str:
    before, behind = side[max(0, group[0].start - 30) : group[0].start], side[group[-1].end :][:40]
    for sign, pattern in _BOUNDS:
        if pattern.search(before):
            return sign
    return next((sign for sign, pattern in _BOUND_BEHIND if pattern.match(behind)), "")


def _read_tuple(side: str, quantities: list[Quantity], is_first: bool) -> tuple[str, list[Quantity]] | None:
    """Return the brackets and the parts of a pair, a tuple or a set, where each part is one quantity."""
    found = _TUPLE.search(side)
    if found is None or (is_first and not _FILLER.fullmatch(side[: found.start()])):
        return None
    parts = []
    for part in re.split(r"[,;]", found[1]):
        inside = find_quantities(part)
        if len(inside) != 1 or re.search(r"[A-Za-z]{2}", part[: inside[0].start]):
            return None
        parts.append(inside[0])
    return found[0][0] + found[0][-1], parts
