"""The ``refusal`` check: the answer refuses where the original does not.

A refusal stands at the start, behind greetings and thanks at most: a person in a story may refuse anything. English is
told by its sentences; in other languages an apology must come with the inability, as in "es tut mir leid, aber ich kann
nicht".
"""

# ruff: noqa: RUF001 - letters of other languages are meant
import re

from axolotl_sdft.core.texts import shortened
from axolotl_sdft.inference.interfaces import Answer, Target

_HEAD = 600  # characters; who refuses does so by then
_UNABLE = (
    r"(?:not able|unable|not (?:allowed|permitted|authorized|designed|programmed|comfortable|in a position)) "
    r"(?:to|with)"
)
_CAN_NOT = rf"(?:can(?:no|')t|can not|(?:am|'m) (?:(?:just|only|simply|currently) )?{_UNABLE})"
_WILL_NOT = r"(?:won't|will not|(?:am|'m) not going to)"
_LACKS = (
    r"(?:do not|don't) (?:have (?:access|the (?:ability|capability)|enough information)|feel comfortable|"
    r"know the answer(?: to (?:that|this|your)|[.!]))"
)
_HELP = r"(?:help|assist|answer|respond|provide|fulfil+|comply|engage|discuss|support|do (?:this|that|so)\b)"
_TASK = (
    rf"(?:{_HELP}|do it|generate|write|create|offer|complete|continue|share|rewrite|browse|accommodate|"
    r"give (?:you )?(?:any |an? |the |such )?(?:advice|answer|guidance|information|instructions|opinion|response|"
    r"that|this)|"
    r"open (?:the|your|any)|see (?:the|your|any)|read (?:the|your)|access|in good conscience)"
)
_SORRY = r"(?:i(?:'m| am) (?:very |really |so |truly )?sorry|i (?:sincerely )?apologi[sz]e|(?:my )?apologies|sorry)"
_REFUSES = "|".join(
    (
        rf"i ?(?:{_CAN_NOT} {_TASK}|{_WILL_NOT} {_HELP}|{_LACKS})(?!\w)",
        r"(?:this|that|it|your (?:request|question))(?: request| question)? (?:is|goes|would be|"
        r"violates?)[^.!?\n]{0,60}?\b"
        r"(?:decline|against my|my (?:programming|guidelines|policies|capabilities|scope|limits)|"
        r"not (?:appropriate|ethical) for me)",
        r"it(?:'s| is| would) (?:not )?(?:be )?"
        r"(?:within my|appropriate (?:for me )?to|ethical to (?:help|assist|provide)|something i can)",
        r"i (?:must|have to|need to|will have to|would have to|'ll have to) (?:respectfully |politely )?(?:decline|"
        r"refuse)\b",
        rf"i (?:respectfully |politely )?(?:decline|refuse) to (?:{_HELP}|give|write|do)",
        r"i(?:'d| would) (?:rather|prefer) not\b|i(?:'m| am) not comfortable\b",
        r"my (?:programming|guidelines|training|policies)\b[^.!?\n]{0,40}?"
        r"(?:prevent|forbid|do not allow|don't allow|prohibit)",
    )
)
_LEAD = (
    rf"(?:{_SORRY}|unfortunately|regrettably|i(?:'m| am) (?:afraid|(?:just |only )?an? )|as an? |as your |however|"
    rf"but|no|well|"
    r"and|so|for (?:that|this) reason|at this time|i (?:understand|appreciate))\b[^.!?\n]{0,100}?\b"
)
_REFUSAL = re.compile(rf"[\s\W]*(?:{_LEAD})?(?:{_REFUSES})", re.IGNORECASE)
_GREETING = re.compile(
    r"[\s\W]*(?:hello|hi|hey|greetings|dear|thanks|thank you|good (?:morning|day|afternoon|evening)|welcome|sure|"
    r"certainly|"
    r"(?:that|this)(?: is|'s) an? |(?:what an? )?(?:great|good|interesting|important)\b|i (?:understand|appreciate|"
    r"see|hear)|"
    rf"of course|okay|ok|{_SORRY}|unfortunately)\b[^.!?\n]{{0,120}}(?:[.!?\n]+\s*|\Z)",
    re.IGNORECASE,
)
# Nobody but a model that gives up begins so.
_APOLOGY = (
    r"(?:i(?:'m| am) (?:very |really |so )?sorry(?: for (?:the|any) (?:confusion|misunderstanding)|"
    r",? (?:but )?i (?:do not|don't) "
    r"understand)|i apologi[sz]e(?:,? but| for (?:the|any) (?:confusion|misunderstanding|inconvenience|error|"
    r"mistake)))\b"
)
_AS_AN_AI = (
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b[^.!?\n]{0,60}?"
    r"\b(?:can(?:no|')t|can not|don't|do not|unable|not able|am not)\b"
)
_APOLOGIZES = re.compile(rf"\W*{_APOLOGY}", re.IGNORECASE)
_SPEAKS_AS_AI = re.compile(_AS_AN_AI, re.IGNORECASE)
_BARE_SORRY = re.compile(rf"\A\W*{_SORRY}[.!,]*\W*\Z", re.IGNORECASE)
_ABOUT_APOLOGIES = re.compile(r"\b(?:apolog|sorry|excuse|refund|complain)", re.IGNORECASE)

# Per language: what is said of being unable or unwilling to help, and of being a machine.
_ELSEWHERE = (
    # German
    r"\b(?:kann|darf|möchte|werde) ich\b[^.!?\n]{0,80}?\bnicht\b[^.!?\n]{0,40}?(?:helfen|beantworten|erfüllen|"
    r"nachkommen|"
    r"bereitstellen|unterstützen|antworten|geben|anbieten|behilflich)",
    r"\bich (?:kann|darf|werde)\b[^.!?\n]{0,80}?\b(?:nicht|keine)\b[^.!?\n]{0,60}?(?:helfen|beantworten|erfüllen|"
    r"nachkommen|"
    r"bereitstellen|unterstützen|antworten|geben|anbieten|behilflich)",
    r"\bich bin nicht in der lage\b|\bals (?:eine? )?(?:ki|künstliche intelligenz|sprachmodell|"
    r"ki-\w+)\b[^.!?\n]{0,60}?\b(?:nicht|kein)",
    # French
    r"\bje ne (?:peux|puis|pourrai|suis) pas (?:vous |t'|te |en mesure|y |autorisée? |répondre|aider|fournir|"
    r"satisfaire|accéder)",
    r"\ben tant qu[e'] ?(?:ia|intelligence artificielle|modèle|assistant)[^.!?\n]{0,60}?\bne\b",
    # Spanish
    r"\bno (?:puedo|podré|me es posible|estoy (?:en condiciones|autorizad[oa])) (?:ayudar|responder|proporcionar|"
    r"cumplir|asistir|"
    r"ofrecer|dar|brindar|de )",
    r"\bno (?:te|le|les|os) puedo (?:ayudar|responder|proporcionar|dar|ofrecer)",
    r"\bcomo (?:una? )?(?:ia|inteligencia artificial|modelo de lenguaje)\b[^.!?\n]{0,60}?\bno\b",
    # Italian
    r"\bnon (?:posso|sono in grado di|mi è possibile) (?:aiutar|risponder|fornir|soddisfar|assister|dar|offrir)",
    r"\bcome (?:un')?(?:ia|intelligenza artificiale|modello linguistico)\b[^.!?\n]{0,60}?\bnon\b",
    # Portuguese
    r"\bnão (?:posso|consigo|sou capaz de|me é possível) (?:ajudar|te ajudar|lhe ajudar|responder|fornecer|atender|"
    r"oferecer|dar)",
    r"\bcomo (?:uma? )?(?:ia|inteligência artificial|modelo de linguagem)\b[^.!?\n]{0,60}?\bnão\b",
    # Dutch, Swedish, Polish, Czech, Turkish, Indonesian, Vietnamese
    r"\bkan ik\b[^.!?\n]{0,60}?\bniet\b[^.!?\n]{0,20}?(?:helpen|beantwoorden|voldoen|geven)",
    r"\bik kan\b[^.!?\n]{0,60}?\bniet\b[^.!?\n]{0,20}?(?:helpen|beantwoorden|voldoen|geven)",
    r"\b(?:jag kan|kan jag)(?: tyvärr)? inte (?:hjälpa|svara|ge|tillhandahålla)",
    r"\bnie (?:mogę|jestem w stanie) (?:\w+ ){0,2}?(?:pomóc|odpowiedzieć|spełnić|udzielić|dostarczyć)",
    r"\bnemohu (?:\w+ ){0,2}?(?:pomoci|odpovědět|poskytnout|splnit)",
    r"\byardımcı olamam|\bcevap veremem|\byanıt veremem|\byardımcı olamıyorum",
    r"\b(?:saya|aku) tidak (?:dapat|bisa) (?:membantu|menjawab|memberikan|memenuhi)",
    r"\btôi không thể (?:giúp|trả lời|cung cấp|hỗ trợ|thực hiện)",
    # Russian, Ukrainian
    r"\bне могу\b[^.!?\n]{0,40}?(?:помочь|ответить|выполнить|предоставить|дать|обсуждать)",
    r"\bне можу\b[^.!?\n]{0,40}?(?:допомогти|відповісти|виконати|надати)",
    r"\bкак (?:ии|искусственный интеллект|языковая модель)\b[^.!?\n]{0,60}?\bне\b",
    # Chinese, Japanese, Korean
    r"我(?:无法|無法|不能|没办法|沒辦法|不可以)[^。！？\n]{0,30}?(?:提供|回答|帮|幫|协助|協助|满足|滿足|完成|讨论|討論|处理|處理)",
    r"作[为為](?:一个|一個|一名|一款)?(?:ai|人工智能|人工智慧|语言模型|語言模型)[^。！？\n]{0,40}?(?:无法|無法|不能|没有|沒有)",
    r"(?:お手伝い|お答え|回答|お応え|ご案内|提供|対応|お力に)[^。！？\n]{0,12}?(?:できません|出来ません|"
    r"できかねます|致しかねます|いたしかねます|なれません)",
    r"(?:도와드릴|도울|답변(?:을|해)? ?드릴|답변할|제공(?:해 드릴)?할?|제공해 드릴|응할) 수 ?(?:가 )?없",
    # Arabic, Hindi
    r"(?:لا (?:أستطيع|يمكنني)|لا أقدر)[^.!؟\n]{0,20}?(?:مساعد|الإجابة|تقديم|تلبية)",
    r"मैं[^।!?\n]{0,60}?(?:मदद|सहायता|उत्तर|जानकारी)[^।!?\n]{0,20}?नहीं[^।!?\n]{0,10}?(?:सकता|सकती|पाऊंगा)",
)
_FOREIGN = re.compile("|".join(_ELSEWHERE), re.IGNORECASE)
_FIRST_SENTENCES = re.compile(r"\A(?:[^.!?。！？\n]{0,250}[.!?。！？\n]+\s*){1,2}|\A.{1,250}", re.DOTALL)


def refusal(answer: Answer, target: Target) -> str | None:
    """Reject an answer that refuses at its start, in one of twenty languages, or that is unable as an AI.

    An answer may refuse where the original does, and apologize where the instruction is about apologies.
    """
    found = _refusal(answer.text, target.instruction)
    if found is None or _refusal(target.reference, target.instruction):
        return None
    return f"'{shortened(found)}' in the answer"


def _refusal(text: str, instruction: str) -> str | None:
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    found = _english_refusal(text[:_HEAD]) or _SPEAKS_AS_AI.search(text)
    if found is None and len(text) < 200:
        found = _BARE_SORRY.search(text)
    if found is None and not _ABOUT_APOLOGIES.search(instruction):
        found = _APOLOGIZES.match(text)
    if found is None:
        first = _FIRST_SENTENCES.match(text[:_HEAD].lstrip())
        found = _FOREIGN.search(first.group()) if first else None
    return found.group().strip() if found else None


def _english_refusal(head: str) -> re.Match[str] | None:
    """Return the refusal that a text begins with, behind up to three greetings."""
    place = 0
    for _ in range(4):
        found = _REFUSAL.match(head, place)
        if found is not None:
            return found
        greeting = _GREETING.match(head, place)
        if greeting is None:
            return None
        place = greeting.end()
    return None
