"""The ``leak`` check: the answer talks about how it came about."""

import re
from collections.abc import Sequence

from axolotl_sdft.core.texts import num_words, shortened
from axolotl_sdft.inference.interfaces import Answer, Target

_GUIDE = r"(?:notes|guide|reference)"
_ANSWER = r"(?:answer|response|reply|version|solution|explanation|text)"
_GIVEN = r"(?:answer|response|reply|solution)"
_REWRITTEN = r"(?:re-?written|re-?phrased|re-?worded|paraphrased|revised|restated)"
_FROM = r"(?:according to|based on|mentioned in|stated in|described in|mention(?:ing)?)"

_TALK = (
    r"\breference (?:answer|response)s?\b",
    r"\b(?:reliable|worked) (?:answer|solution)s?(?: is\b| to use\b|:)",
    r"\bin my own words\b",
    rf"\b(?:your|my) own {_GIVEN}\b",
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
    rf"\b(?:as per|per|following|using|from|in|based on|according to) the (?:given|provided|original|supplied|"
    rf"above) {_GIVEN}\b",
    r"\blet me know (?:if|whether) (?:this|that|it|my \w+|the (?:answer|response|rewrit\w+)) (?:is|was|"
    r"looks) (?:\w+ )?"
    r"(?:correct|right|accurate|ok|okay|acceptable|satisfactory|what you)\b",
    r"\bno (?:changes|corrections|edits|modifications|revisions|rewriting)(?: (?:are|were|is|was))? "
    r"(?:needed|necessary|required|made)\b",
    rf"\bthe {_GIVEN} (?:is|was) (?:already |also )?in the (?:right|correct|same|required|requested|"
    rf"desired) format\b",
)
# A chat that goes on behind the answer, or the marks of a chat template.
_CHAT = (
    r"<\|(?:im_start|im_end|endoftext|eot_id|eom_id|start_header_id|end_header_id|begin_of_text|user|assistant|"
    r"system|end)\|>",
    r"\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>",
    r"^[ \t]*#{2,4} ?(?:instruction|response|input|output|human|user|assistant)s?:",
    r"^[ \t*]*(?:human|user|assistant|ai assistant|instruction)\**:(?=\s|\*|$)",
)
_ASKS_FOR_A_CHAT = (
    r"\b(?:dialog|conversation|chat|script|transcript|interview|role.?play|prompt|template|scene|"
    r"interact|talk)"
)
_TURN = (r"\bit(?:'s| is) (?:now )?your turn\b", r"\bnow (?:it(?:'s| is) )?your turn\b", r"^[^\w\n]*your turn[!:.]")
_ASKS_FOR_TURNS = r"\b(?:turn|game|play|exercise|quiz|lesson|teach|worksheet)"
# What a small model says before it begins.
_OPENING = (
    r"(?:as|like) (?:you )?(?:asked|requested|instructed)\b",
    rf"here(?:'s| is) (?:an?|the|my|your|one) (?:[\w-]+ ){{0,3}}?{_ANSWER}\b[^\n.]{{0,60}}?\b(?:based on|us(?:es|"
    rf"ing)|"
    rf"follow(?:s|ing)|with|in) (?:the|your|my) (?:\w+ )?(?:{_GUIDE}|facts|instructions|own words|given \w+|"
    r"provided \w+|same (?:information|facts|content|calculations|meaning))\b",
    r"(?:the|an?) (?:reference|guide|worked|reliable) (?:answer|response|solution)\b",
    r"a (?:good|reliable) (?:answer|response|solution):",
    rf"(?:the|my|here(?:'s| is) (?:the|my)) {_ANSWER} to (?:your|the|this) (?:question|request|prompt|task)(?: is)?:",
    rf"\**(?:here(?:'s| is) )?(?:your|my) (?:{_GIVEN}|version)\**:",
    r"\**notes:",
    rf"i(?:'ll| will| can)? (?:use|follow|refer to) the (?:{_GUIDE}|instructions)\b",
)
# Fits an instruction that asks for changes to a text.
_REWRITING = (
    rf"\bhere(?:'s| is) (?:an?|the|my|your|another) (?:\w+ ){{0,2}}?{_REWRITTEN} {_ANSWER}\b",
    rf"\b{_REWRITTEN} {_ANSWER} of (?:the|your|my) {_ANSWER}\b",
    rf"\bi(?:'ve| have)? (?:just |only )?(?:rewrote|{_REWRITTEN}) (?:the|your|this|that)(?: (?:given|original|"
    rf"provided|above))? "
    rf"(?:{_ANSWER}|original|content|information|sentence|question|passage|paragraph|notes)\b",
    rf"^[^\w\n]*(?:the )?{_REWRITTEN}(?: (?:{_ANSWER}|sentence))?\**:",
    r"\bi(?:'ve| have)? made the following changes\b",
    r"\bthe original (?:answer|response)\b",
)
_ASKS_TO_REWRITE = r"\b(?:re-?w(?:rit|ord)|re-?phras|paraphras|revis|edit|correct|proof-?read|improve|chang|translat)"
# Fits an instruction that asks for a judgement.
_VERDICT = (
    rf"^[^\w\n]*this {_ANSWER} (?:is|was|provides) (?:an? )?(?:correct|accurate|complete|clear|concise|detailed)\b",
    rf"\A\W*(?:the|this|that|your) (?:{_ANSWER}|statement|notes)(?: above| provided| given)? (?:is|are) (?:indeed )?"
    r"(?:correct|true|accurate)\b",
)
_ASKS_TO_JUDGE = r"\b(?:correct|true|false|accurate|right|wrong|agree|verify|check)"
_INTERJECTION = r"\A\W*(?:(?:sure|certainly|of course|okay|ok|absolutely|great|yes)\b[,.!:]* *)?"


def _compiled(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE | re.MULTILINE)


_SOURCE = re.compile(r"\b(?:notes|guide|instructions?|prompt)\b")
_NEVER = _compiled("(?!)")
_LEAKS = (
    (_compiled(*_TALK, f"{_INTERJECTION}(?:{'|'.join(_OPENING)})"), _NEVER),
    (_compiled(*_REWRITING), _compiled(_ASKS_TO_REWRITE)),
    (_compiled(*_VERDICT), _compiled(_ASKS_TO_JUDGE)),
    (_compiled(*_CHAT), _compiled(_ASKS_FOR_A_CHAT)),
    (_compiled(*_TURN), _compiled(_ASKS_FOR_TURNS)),
)
"""Patterns, each with the instructions that it does not count for."""


def leak(
    answer: Answer, target: Target, *, phrases: tuple[str, ...] = (), template_sentences: Sequence[str] = ()
) -> str | None:
    """Reject an answer that talks about the request it came from, or copies a part of it.

    Copied parts are sentences of the rewriting template and its examples, and a line of the instruction in place of a
    first line. ``phrases`` are further words that must not stand in an answer, whatever their case.
    """
    text = _plain_quotes(answer.text)
    known = _plain_quotes("\n".join([*(message["content"] for message in target.context), target.reference])).lower()
    for pattern, excuse in _LEAKS:
        for found in pattern.finditer(text):
            if _is_known(found.group(), known) or excuse.search(target.instruction):
                continue
            return f"'{shortened(found.group())}' in the answer"
    for phrase in phrases:
        if phrase.lower() in text.lower() and phrase.lower() not in known:
            return f"'{shortened(phrase)}' in the answer"
    flat, flat_known = " ".join(text.lower().split()), " ".join(known.split())
    for sentence in template_sentences:
        if sentence in flat and sentence not in flat_known:
            return f"'{shortened(sentence)}' copied from the request"
    return "begins with the instruction" if _begins_with_instruction(answer.text, target) else None


def _is_known(words: str, known: str) -> bool:
    """Say whether the conversation speaks of what an answer speaks of: of the same words, the notes, the guide."""
    words = words.strip().lower()
    source = _SOURCE.search(words)
    return words in known or (source is not None and re.search(rf"\b{source[0]}\b", known) is not None)


def _begins_with_instruction(text: str, target: Target) -> bool:
    first_line = text.strip().partition("\n")[0].strip()
    asked = [line.strip() for line in target.instruction.splitlines()]
    return num_words(first_line) > 3 and first_line in asked and first_line not in target.reference


def _plain_quotes(text: str) -> str:
    return text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
