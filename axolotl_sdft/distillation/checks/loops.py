"""The ``repetition`` check: the answer runs in circles.

A circle may be made of words, of characters where a script or an endless word has no spaces, of marks such as dots,
dashes, fences and emoji, or of numbers that count on. Refrains, tables, schemas and code repeat themselves rightly:
their lines count only where the same one comes again and again without another in between.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from axolotl_sdft.core.texts import shortened
from axolotl_sdft.inference.interfaces import Answer, Target

_TAIL = 3000  # words or characters at the end in which loops are looked for
_LONGEST_LOOP = 80  # words
_LONG_LOOP = 12  # words; whoever says that many again begins anew, shorter ones may come twice
_FEWEST_LOOPING_WORDS = 12
_FEWEST_LOOPING_DIGITS = 60  # a row of zeros in a matrix is not a loop
_LONGEST_UNIT = 60  # characters
_FEWEST_LOOPING_CHARACTERS = 60
_FEWEST_MARKS = 120  # a ruler or a table's second line has fewer
_PHRASE = 4  # words
_LEAST_FRESH, _LEAST_FRESH_OF_A_LIST = 0.55, 0.35
_FEWEST_PHRASES = 40
_FEWEST_COUNTED = 50  # numbers, or words with numbers, that follow each other
_BULLET = re.compile(r"^[ \t]*(?:(?:step )?\d+[.):]|[-*\u2022])[ \t]+", re.IGNORECASE | re.MULTILINE)
_STRUCTURE = re.compile(r"^[ \t]*(?:\||[\"'{}\[\]<]|```|~~~).*$|^.*(?:[{};,\[(]|=>|:=|/>)[ \t]*$", re.MULTILINE)
_FENCED = re.compile(r"^[ \t]*```[^\n`]*\S[^\n`]*\n[^`]*```", re.MULTILINE)
_BLANK_RUN = re.compile(r"\n[ \t\r]*(?:\n[ \t\r]*){39,}|[ \t\u00a0]{400,}")
_WORD_RUN = re.compile(r"\b(\w{1,30})(?:[^\w\n]{1,3}\1\b){19,}", re.IGNORECASE)
_MARK_RUN = re.compile(r"([^\w\s])(?:[ \n]{0,2}\1){119,}|([\u2600-\u27bf]|[^\w\s\u0000-\u2bff])(?:\s?\2){24,}")
_HASH_TAGS = re.compile(r"(?:#\w{1,60}[ ,\n]{1,3}){40,}")
_ENDLESS_WORD = re.compile(r"(?<![a-z])[a-z]{150,}")
_NUMBER = re.compile(r"\d+")
_MAY_COUNT = re.compile(
    r"\b(?:count|numbers?|list|table|sequence|series|digits|first \d+|\d+ (?:\w+ )?(?:items|names|words))\b", re.I
)
_MAY_SING = re.compile(
    r"\b(?:song|lyrics?|poem|chorus|refrain|chant|mantra|rhyme|ballad|hymn|repeat\w*)\b", re.IGNORECASE
)
_MAY_TAG = re.compile(r"hash ?tag|#\w", re.IGNORECASE)


def repetition(answer: Answer, target: Target) -> str | None:
    """Reject an answer that says things over and over, unless the original answer or the instruction does so too.

    What the instruction asks for, such as a song, a count or hash tags, may repeat more.
    """
    text, reference = _BULLET.sub("", answer.text), _BULLET.sub("", target.reference)
    return (
        _runs(answer.text, target)
        or _word_loop(text, reference, target.instruction)
        or _character_loop(answer.text, target.reference)
        or _count(answer.text, target)
        or _repeated_line(text, reference, target.instruction)
        or _stale(text, reference)
    )


def _runs(text: str, target: Target) -> str | None:
    """Return where one mark, blank or word stands dozens of times in a row."""
    known = f"{target.reference}\n{target.instruction}"
    for pattern, what in (
        (_BLANK_RUN, "blanks"),
        (_MARK_RUN, "marks"),
        (_WORD_RUN, "words"),
        (_HASH_TAGS, "hash tags"),
    ):
        found = pattern.search(text)
        if found is None or pattern.search(known) or (pattern is _HASH_TAGS and _MAY_TAG.search(target.instruction)):
            continue
        if pattern is _WORD_RUN and found[1].isdigit() and len(_words(found[0])) < _FEWEST_LOOPING_DIGITS:
            continue
        return f"{len(found[0]):,} characters of the same {what} in a row"
    found = _ENDLESS_WORD.search(text)
    if found is not None and not _ENDLESS_WORD.search(known):
        return f"a word of {len(found[0]):,} letters"
    return None


def _word_loop(text: str, reference: str, instruction: str) -> str | None:
    looping = _looping_words(_words(text), 2 if _MAY_SING.search(instruction) else 1)
    if looping and _looping_words(_words(reference), 1) < looping / 2:
        return f"the last {looping} words run in a loop"
    return None


def _character_loop(text: str, reference: str) -> str | None:
    looping = _looping_characters(text)
    if looping and _looping_characters(reference) < looping / 2:
        return f"the last {looping} characters run in a loop"
    return None


def _count(text: str, target: Target) -> str | None:
    """Return how far an answer counts on at its end, where nobody asked it to."""
    if _MAY_COUNT.search(target.instruction):
        return None
    counted = _counted(text)
    if counted >= _FEWEST_COUNTED and _counted(target.reference) < counted / 2:
        return f"counts on {counted} times"
    return None


def _counted(text: str) -> int:
    """Return how many of the last tokens are alike but for their numbers, as in "#tea1 #tea2 #tea3"."""
    tokens = [token for token in re.split(r"\s+", text[-20_000:]) if token]
    shapes = [_NUMBER.sub("0", token.strip(",.;:)")) for token in tokens]
    if not shapes or "0" not in shapes[-1] or len(set(tokens[-_FEWEST_COUNTED:])) < 2:
        return 0
    counted = 0
    while counted < len(shapes) and shapes[-counted - 1] == shapes[-1]:
        counted += 1
    return 0 if _is_table(tokens[len(tokens) - counted :]) else counted


def _is_table(rows: Sequence[str]) -> bool:
    """Whether tokens of several numbers each, as in ``|3|9| |4|16|``, say more than how far they have counted."""
    numbers = [[int(number[:15]) for number in _NUMBER.findall(row)] for row in rows]
    columns = list(zip(*numbers, strict=True))
    steps = [{later - earlier for earlier, later in pairwise(column)} for column in columns]
    return len(columns) > 1 and any(len(each) > 1 for each in steps)


def _repeated_line(text: str, reference: str, instruction: str) -> str | None:
    line, count = _most_repeated(text)
    if _MAY_SING.search(instruction):
        count //= 2
    if count > max(_most_repeated(reference)[1], _most_repeated(instruction)[1]):
        return f"'{shortened(line, 40)}' {count} times"
    return None


def _stale(text: str, reference: str) -> str | None:
    prose = _STRUCTURE.sub("", _FENCED.sub("", text))
    lines = [line for line in prose.splitlines() if line.strip()]
    is_list = len(lines) > 5 and sum(len(line.split()) < 15 for line in lines) > len(lines) / 2
    fresh = _fresh_share(_words(prose))
    if fresh < min(_LEAST_FRESH_OF_A_LIST if is_list else _LEAST_FRESH, _fresh_share(_words(reference))):
        return f"only {fresh:.0%} of its phrases are new"
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _looping_words(words: Sequence[str], patience: int) -> int:
    """Return how many words at the end go round in the same loop, at least three times or twice in a long one, or 0.

    ``a b c a b c a b c``, four times as long, loops over three words: each equals the one three places before it.
    """
    words = words[-_TAIL:]
    most = 0
    for length in range(1, min(_LONGEST_LOOP, len(words) // 2) + 1):
        looping = _looping(words, length)
        times = patience * (2 if length >= _LONG_LOOP else 3)
        is_digits = all(word.isdigit() for word in words[-length:])
        fewest = _FEWEST_LOOPING_DIGITS if is_digits else patience * _FEWEST_LOOPING_WORDS
        if looping >= max(fewest, length * times):
            most = max(most, looping)
    return most


def _looping_characters(text: str) -> int:
    """Return how many characters at the end go round in a loop of at most 60, four times at least, or 0.

    For scripts without spaces, endless words, emoji and marks. Where no letter is in the loop, it takes more.
    """
    characters = " ".join(text[-2 * _TAIL :].split())[-_TAIL:]
    most = 0
    for length in range(1, min(_LONGEST_UNIT, len(characters) // 4) + 1):
        looping = _looping(characters, length)
        unit = characters[-length:]
        has_letters = any(character.isalpha() or ord(character) >= 0x2600 for character in unit)
        if looping >= max(_FEWEST_LOOPING_CHARACTERS if has_letters else 2 * _FEWEST_MARKS, 4 * length):
            most = max(most, looping)
    return most


def _looping(items: Sequence[str], length: int) -> int:
    """Return how many items at the end equal the one ``length`` places before them, the first round included."""
    looping = length
    while looping < len(items) and items[-looping - 1] == items[-looping - 1 + length]:
        looping += 1
    return looping


def _most_repeated(text: str) -> tuple[str, int]:
    """Return the line or sentence that stands there most often without another in between, and how often.

    Less than three times (four for fewer than six words) is 0 times: a refrain, a closing brace. A sentence of prose
    counts wherever it stands, from five times on.
    """
    parts = [part.strip() for part in re.split(r"\n+|(?<=[.!?\u3002\uff01\uff1f])[ ]*(?=\S)", text)]
    parts = [part for part in parts if part]
    lengths = {part: len(_words(part)) for part in set(parts)}
    most, run = ("", 0), 0
    for place, part in enumerate(parts):
        run = run + 1 if place and part == parts[place - 1] else 1
        if lengths[part] > 2 and run >= (3 if lengths[part] > 5 else 4) and run > most[1]:
            most = (part, run)
    counts = Counter(part for part in parts if lengths[part] > 5 and part[-1] in ".!?" and part[0].isupper())
    for part, count in counts.items():
        if count >= 5 and count > most[1]:
            most = (part, count)
    return most


def _fresh_share(words: Sequence[str]) -> float:
    """Return the share of different ones among the four-word phrases; 1.0 for a short text."""
    phrases = list(zip(*(words[start:] for start in range(_PHRASE)), strict=False))
    return len(set(phrases)) / len(phrases) if len(phrases) >= _FEWEST_PHRASES else 1.0
