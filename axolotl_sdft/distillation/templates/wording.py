"""The wording of a template: what it puts around an instruction and its original answer."""

import logging
import re

from axolotl_sdft.distillation.interfaces import Template
from axolotl_sdft.inference.interfaces import Target

LOG = logging.getLogger(__name__)

_FEWEST_WORDS = 6  # shorter sentences may well be an answer's own


def template_sentences(template: Template) -> tuple[str, ...]:
    """Return the sentences of more than five words that a template says to every row, examples included.

    They are in lower case, on one line each, and without what may vary: an instruction, an original answer.
    """
    # A line break ends a sentence, so what stands before and after the row's own texts is never joined.
    blank = Target(({"role": "user", "content": "\n-\n"},), "\n-\n")
    try:
        texts = [message["content"] for message in template(blank)]
    except Exception as err:  # a plugin's template may insist on rows of some form
        LOG.warning(
            "the template can't be rendered for an empty row (%s: %s), so answers that copy its wording pass the leak "
            "check",
            *(type(err).__name__, err),
        )
        return ()
    sentences = {" ".join(part.lower().split()) for text in texts for part in re.split(r"[\n.:]+", _plain_quotes(text))}
    return tuple(sorted(sentence for sentence in sentences if len(sentence.split()) >= _FEWEST_WORDS))


def _plain_quotes(text: str) -> str:
    return text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
