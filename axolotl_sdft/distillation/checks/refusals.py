"""The ``refusal`` check: the answer refuses where the original does not."""

import re

from axolotl_sdft.distillation.interfaces import Answer, Target
from axolotl_sdft.distillation.texts import shortened

_UNABLE = r"(?:not able|unable) to"
_CAN_NOT = rf"(?:can(?:no|')t|can not|could(?: not|n't)|am {_UNABLE}|'m {_UNABLE}|won't|will not)"
_LACKS = r"(?:do not|don't) (?:have (?:access|the (?:ability|capability)|enough information)|know the answer)"
_TASK = (
    r"(?:help|assist|answer|respond|provide|fulfil+|comply|do (?:this|that|it|so)|generate|write|create|give|offer|"
    r"discuss|engage|complete|continue|share|support|rewrite|access|browse|open|see (?:the|your|any)|read (?:the|your))"
)
_SORRY = r"(?:i(?:'m| am) (?:very |really |so )?sorry|i apologi[sz]e)\b"
_OPENING = rf"\A\W*(?:(?:sorry|unfortunately|{_SORRY})\b[^.!?\n]{{0,40}}?)?\b(?:but )?"
_REFUSALS = re.compile(
    rf"{_OPENING}i ?(?:{_CAN_NOT} {_TASK}|{_LACKS})\b"
    rf"|\A\W*{_SORRY}(?!,? (?:to (?:hear|learn)|for your|that you|you))"
    r"|\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b[^.!?\n]{0,60}?"
    r"\b(?:can(?:no|')t|can not|don't|do not|unable|not able|am not)\b",
    re.IGNORECASE,
)


def refusal(answer: Answer, target: Target) -> str | None:
    """Reject an answer that refuses, apologizes at its start, or is unable as an AI, unless the original is so."""
    found = _refusal(answer.text)
    return f"'{shortened(found)}' in the answer" if found and not _refusal(target.reference) else None


def _refusal(text: str) -> str | None:
    found = _REFUSALS.search(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return found.group().strip() if found else None
