"""Has a server tell how likely given answers are, through the text completions that echo their prompt."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.inference.interfaces import Target
from axolotl_sdft.inference.openai.retries import Failed
from axolotl_sdft.inference.openai.servers import Server


@dataclass(frozen=True)
class ScoredText:
    """A prompt and an answer as the seed's own tokenizer splits them."""

    index: int
    ids: tuple[int, ...]
    num_prompt_tokens: int


def encode(
    tokenizer: Any, targets: Sequence[tuple[Target, str]], template_arguments: Mapping[str, Any]
) -> list[ScoredText]:
    """Return each answer behind its context, with the end-of-turn token, in the form that the seed's template gives.

    Left out are those whose context the template refuses.
    """
    from axolotl_sdft.inference.prompts import answer_ids, prompt_ids

    texts = []
    for index, (target, answer) in enumerate(targets):
        with suppress(DatasetError):
            prompt = prompt_ids(tokenizer, target.context, template_arguments)
            ids = (*prompt, *answer_ids(tokenizer, answer, template_arguments))
            texts.append(ScoredText(index, ids, len(prompt)))
    return texts


async def ask_likelihood(server: Server, text: ScoredText) -> float | None:
    """Return the mean negative log-likelihood, in nats per token, of an answer; None when the server doesn't tell.

    Raises:
        RequestError: The server did not answer, or refuses such requests.
    """
    request = {
        "model": server.model,
        "prompt": list(text.ids),
        "echo": True,
        "max_tokens": 1,  # some servers don't take 0
        "temperature": 0.0,
        "logprobs": 1,
    }
    body = await server.post("/completions", request, num_tokens=len(text.ids) + 1, num_logprobs=2)
    try:
        choice = body["choices"][0]
    except (KeyError, IndexError, TypeError):
        raise Failed("no completion in the response") from None
    logprobs = choice.get("logprobs") if isinstance(choice, dict) else None
    told = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    # A server that ignores `echo` tells of the one new token only.
    if not isinstance(told, list) or len(told) < len(text.ids):
        return None
    values = told[text.num_prompt_tokens : len(text.ids)]
    if not values or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return None
    return -sum(values) / len(values)
