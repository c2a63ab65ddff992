"""Built-in answer checks, and the order in which an answer meets them.

Every check is a pure function of an answer and its target. What stands in the conversation or in the original answer
already is never held against the rewritten one.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from axolotl_sdft.distillation.final_number import are_equal, final_expression
from axolotl_sdft.distillation.interfaces import Answer, AnswerCheck, Target
from axolotl_sdft.distillation.templates import BUILT_IN
from axolotl_sdft.hookspecs import hookimpl
from axolotl_sdft.plugins import CHECKS, registry


def empty(answer: Answer, target: Target) -> str | None:
    """Reject an answer of nothing but punctuation, and one whose original is empty."""
    if not target.reference.strip():
        return "the original answer is empty"
    if not answer.text.strip():
        return "no text"
    if _is_punctuation(answer.text) and not _is_punctuation(target.reference):
        return "nothing but punctuation"
    return None


def truncated(answer: Answer, target: Target) -> str | None:
    """Reject an answer that was cut off by ``max_new_tokens``, and one that announces something and ends there."""
    if answer.finish_reason == "length":
        return f"cut off after {answer.num_tokens} tokens"
    breaks_off = answer.text.rstrip(" *\n").endswith(":") and not target.reference.rstrip().endswith(":")
    return "ends with a colon" if breaks_off else None


def numeric_answer(answer: Answer, target: Target) -> str | None:
    """Reject an answer that ends in another number, or in none, or whose original holds none to compare with."""
    expected = final_expression(target.reference)
    if expected is None:
        return "the reference holds no number"
    found = final_expression(answer.text)
    if found is None:
        return f"no number, reference {_shortened(expected)}"
    return None if are_equal(found, expected) else f"answer {_shortened(found)}, reference {_shortened(expected)}"


def _is_punctuation(text: str) -> bool:
    return all(unicodedata.category(character)[0] in "PZC" for character in text)


def _shortened(text: str, length: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


# --- leak: the answer talks about how it came about ---

_GUIDE = r"(?:notes|guide|reference)"
_ANSWER = r"(?:answer|response|reply|version|solution|explanation|text)"
_REWRITTEN = r"(?:re-?written|re-?phrased|re-?worded|paraphrased|revised|restated)"
_FROM = r"(?:according to|based on|mentioned in|stated in|described in|mention(?:ing)?)"

_TALK = (
    r"\breference (?:answer|response)s?\b",
    r"\b(?:reliable|worked) (?:answer|solution)s?(?: is\b| to use\b|:)",
    r"\bin my own words\b",
    rf"\bglad (?:that )?you found (?:the|this|these|my) (?:{_GUIDE}|{_ANSWER}|instructions?|information)\b",
    rf"\b(?:your|the) (?:{_GUIDE}|instructions?|prompt) (?:is|are|was|were) (?:very )?(?:helpful|useful|clear)\b",
    rf"\bthe (?:{_GUIDE}|instructions?|prompt) (?:that )?you(?:'ve| have)? (?:gave|given|provided|shared|wrote)\b",
    rf"\b{_FROM} (?:the|your) (?:provided |given |above )?{_GUIDE}\b",
    r"\bthe notes (?:say|state|mention|provide|describe|indicate|do not|don't|above)\b",
    rf"\bthe (?:calculations|facts|information|details|points) (?:in|from) the {_GUIDE}\b",
    rf"\bthe (?:provided|given) (?:{_GUIDE}|prompt)\b",
    r"\b(?:first|last|final) (?:line|sentence) of the (?:solution|answer|response|reference)\b",
    r"\bi(?:'m| am) ready(?: to (?:help|assist))?[.!] +(?:what|how|please)\b",
    r"\bwhat(?:'s| is) your request\b",
)
# What a small model says before it begins.
_OPENING = (
    r"(?:as|like) (?:you )?(?:asked|requested|instructed)\b",
    rf"here(?:'s| is) (?:an?|the|my|your|one) (?:[\w-]+ ){{0,3}}?{_ANSWER}\b[^\n.]{{0,60}}?\b(?:based on|us(?:es|ing)|"
    rf"follow(?:s|ing)|with|in) (?:the|your|my) (?:\w+ )?(?:{_GUIDE}|facts|instructions|own words|given \w+|"
    r"provided \w+|same (?:information|facts|content|calculations|meaning))\b",
    r"(?:the|an?) (?:reference|guide|worked|reliable) (?:answer|response|solution)\b",
    r"a (?:good|reliable) (?:answer|response|solution):",
    r"\**notes:",
    rf"i(?:'ll| will| can)? (?:use|follow|refer to) the (?:{_GUIDE}|instructions)\b",
)
# Fits an instruction that asks for changes to a text.
_REWRITING = (
    rf"\bhere(?:'s| is) (?:an?|the|my|your|another) (?:\w+ ){{0,2}}?{_REWRITTEN} {_ANSWER}\b",
    rf"\b{_REWRITTEN} {_ANSWER} of (?:the|your|my) {_ANSWER}\b",
    rf"\bi(?:'ve| have)? (?:rewrote|{_REWRITTEN}) (?:the|your) {_ANSWER}\b",
    r"\bi(?:'ve| have)? made the following changes\b",
    r"\bthe original (?:answer|response)\b",
)
_ASKS_TO_REWRITE = r"\b(?:re-?w(?:rit|ord)|re-?phras|paraphras|revis|edit|correct|proof-?read|improve|chang|translat)"
# Fits an instruction that asks for a judgement.
_VERDICT = (
    rf"\A\W*(?:the|this|that|your) (?:{_ANSWER}|statement|notes)(?: above| provided| given)? (?:is|are) (?:indeed )?"
    r"(?:correct|true|accurate)\b",
)
_ASKS_TO_JUDGE = r"\b(?:correct|true|false|accurate|right|wrong|agree|verify|check)"
_INTERJECTION = r"\A\W*(?:(?:sure|certainly|of course|okay|ok|absolutely|great|yes)\b[,.!:]* *)?"


def _compiled(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


_NEVER = _compiled("(?!)")
_LEAKS = (
    (_compiled(*_TALK, f"{_INTERJECTION}(?:{'|'.join(_OPENING)})"), _NEVER),
    (_compiled(*_REWRITING), _compiled(_ASKS_TO_REWRITE)),
    (_compiled(*_VERDICT), _compiled(_ASKS_TO_JUDGE)),
)
"""Patterns, each with the instructions that it does not count for."""


def leak(answer: Answer, target: Target) -> str | None:
    """Reject an answer that talks about the request it came from, or copies a part of it.

    Copied parts are sentences of the built-in templates, and a line of the instruction in place of a first line.
    """
    text = _plain_quotes(answer.text)
    known = _plain_quotes("\n".join([*(message["content"] for message in target.context), target.reference])).lower()
    for pattern, excuse in _LEAKS:
        for found in pattern.finditer(text):
            if found.group().strip().lower() not in known and not excuse.search(target.instruction):
                return f"'{_shortened(found.group())}' in the answer"
    for sentence in _request_sentences():
        if sentence in text.lower() and sentence not in known:
            return f"'{_shortened(sentence)}' copied from the request"
    first_line = answer.text.strip().partition("\n")[0].strip()
    asked = [line.strip() for line in target.instruction.splitlines()]
    if len(first_line.split()) > 3 and first_line in asked and first_line not in target.reference:
        return "begins with the instruction"
    return None


def _plain_quotes(text: str) -> str:
    return text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


@cache
def _request_sentences() -> tuple[str, ...]:
    """Return the sentences that the built-in templates put around an instruction and its reference, in lower case."""
    blank = Target(({"role": "user", "content": ""},), "")
    requests = [template(blank)[-1]["content"] for template in BUILT_IN.values()]
    sentences = {part.strip().lower() for request in requests for part in re.split(r"[\n.:]+", request)}
    return tuple(sorted(sentence for sentence in sentences if len(sentence.split()) > 5))


# --- repetition: the answer runs in circles ---

_LONGEST_LOOP = 80  # words
_LONG_LOOP = 12  # words; whoever says that many again begins anew, shorter ones may come twice
_FEWEST_LOOPING_WORDS = 12
_PHRASE = 4  # words
_LEAST_FRESH = 0.55
_FEWEST_PHRASES = 40
_BULLET = re.compile(r"^\s*(?:(?:step )?\d+[.):]|[-*•])\s+", re.IGNORECASE | re.MULTILINE)


def repetition(answer: Answer, target: Target) -> str | None:
    """Reject an answer that says things over and over, unless the original answer or the instruction does so too."""
    text, reference = _BULLET.sub("", answer.text), _BULLET.sub("", target.reference)
    words, reference_words = _words(text), _words(reference)
    looping = _looping_words(words)
    if looping and _looping_words(reference_words) < looping / 2:
        return f"the last {looping} words run in a loop"
    line, count = _most_repeated(text)
    if count > max(_most_repeated(reference)[1], _most_repeated(target.instruction)[1]):
        return f"'{_shortened(line, 40)}' {count} times"
    fresh = _fresh_share(words)
    if fresh < min(_LEAST_FRESH, _fresh_share(reference_words)):
        return f"only {fresh:.0%} of its phrases are new"
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _looping_words(words: Sequence[str]) -> int:
    """Return how many words at the end go round in the same loop, at least three times or twice in a long one, or 0.

    ``a b c a b c a b c``, four times as long, loops over three words: each equals the one three places before it.
    """
    most = 0
    for length in range(1, min(_LONGEST_LOOP, len(words) // 2) + 1):
        looping = length
        while looping < len(words) and words[-looping - 1] == words[-looping - 1 + length]:
            looping += 1
        if looping >= max(_FEWEST_LOOPING_WORDS, length * (2 if length >= _LONG_LOOP else 3)):
            most = max(most, looping)
    return most


def _most_repeated(text: str) -> tuple[str, int]:
    """Return the line or sentence that stands there most often, and how often; short ones need more to count.

    Less than three times (four for fewer than six words) is 0 times: a refrain, a closing brace.
    """
    parts = [part.strip() for part in re.split(r"\n+|(?<=[.!?]) +", text)]
    counts = Counter(part for part in parts if len(_words(part)) > 2)
    repeated = [(part, count) for part, count in counts.items() if count >= (3 if len(_words(part)) > 5 else 4)]
    return max(repeated, key=lambda item: item[1], default=("", 0))


def _fresh_share(words: Sequence[str]) -> float:
    """Return the share of different ones among the four-word phrases; 1.0 for a short text."""
    phrases = list(zip(*(words[start:] for start in range(_PHRASE)), strict=False))
    return len(set(phrases)) / len(phrases) if len(phrases) >= _FEWEST_PHRASES else 1.0


# --- the checks of a run ---


@hookimpl
def sdft_register_checks(register: Callable[[str, AnswerCheck], None]) -> None:
    """Register the built-in checks."""
    for check in (empty, truncated, leak, repetition, numeric_answer):
        register(check.__name__, check)


def resolve_checks(names: Iterable[str]) -> list[tuple[str, AnswerCheck]]:
    """Return names and functions of checks, in the order given.

    Raises:
        UnknownNameError: A name is not registered; the message lists those that are.
    """
    return [(name, registry().resolve(CHECKS, name, "self_distillation.checks")) for name in names]


def first_rejection(
    answer: Answer, target: Target, checks: Iterable[tuple[str, AnswerCheck]]
) -> tuple[str, str] | None:
    """Return the name of the first check that rejects an answer, with its reason, or None when all pass."""
    for name, check in checks:
        reason = check(answer, target)
        if reason is not None:
            return name, reason
    return None
