"""What a request to a server holds, and how its answer is read: chats, and how likely given answers are."""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from axolotl_sdft.config import OpenAIGeneration
from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.inference.interfaces import Answer, FinishReason, Prompt, Target, attempt_temperature, sampling_seed
from axolotl_sdft.inference.openai.api_key import HIDDEN, REDACTED
from axolotl_sdft.inference.openai.faults import QuestionRefusedError, TransientError, fault_in, message_in
from axolotl_sdft.inference.openai.servers import Server
from axolotl_sdft.inference.reasoning import framed

_SEEDS = 2**31  # llama.cpp takes 32 bits, others a signed integer
_MAX_COUNT = 2**31  # of tokens: more than any server can have written
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

# How servers say that the model ended its answer itself: OpenAI, vLLM, TGI, Anthropic, Gemini, Cohere, Together, ...
_FINISHED = frozenset(
    {
        *("stop", "eos", "eos_token", "eos_found", "end_id", "end_of_text", "end_of_turn", "end_turn", "endoftext"),
        *("stop_sequence", "stop_string", "stop_token", "stop_word", "stop_words", "complete", "completed", "finished"),
    }
)
_TOO_LONG = frozenset(
    {
        *("length", "limit", "max_length", "model_length", "max_tokens", "maximum_tokens", "max_new_tokens"),
        *("max_output_tokens", "max_completion_tokens", "token_limit", "error_limit", "context_length"),
        *("context_length_exceeded", "max_context_length", "model_context_window_exceeded"),
    }
)
# The server's own trouble, so that the same request may succeed later or elsewhere. "": it does not say at all.
_PASSING = frozenset(
    {
        *("", "abort", "aborted", "cancelled", "canceled", "user_cancel", "error", "internal_error", "timeout"),
        *("time_limit", "insufficient_system_resource", "overloaded", "not_finished", "in_progress", "pause_turn"),
    }
)
_OPTIONAL = {"logprobs", "min_p", "seed", "top_k"}

MOST_BEGIN_TOKENS = 1
"""Some servers write the token that begins a text before a template that writes it, too."""

CANARY = Prompt((0, 0), ({"role": "user", "content": "Say yes."},), attempt=1)
"""A harmless prompt that any working server answers at once: where it fails, no row is to blame.

A second attempt, since those are sampled under any settings, with all the fields that this takes.
"""


def chat_request(config: OpenAIGeneration, model: str, prompt: Prompt, without: frozenset[str]) -> dict[str, Any]:
    """Return the body that asks for the answer to a prompt.

    Args:
        config: How answers are sampled.
        model: The name under which the server knows the model.
        prompt: The chat; it and its attempt decide the random seed of the sampling.
        without: Optional fields that the server is known to refuse.
    """
    temperature = attempt_temperature(config.temperature, prompt.attempt)
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": config.top_p}
    if temperature > 0:
        # Servers have cut-offs of their own unless told otherwise, and then don't sample what the model would.
        sampling |= {
            "seed": sampling_seed(config.seed, prompt.messages, prompt.attempt) % _SEEDS,
            "top_k": config.top_k or -1,
            "min_p": 0.0,
            "logprobs": True,
        }
    # vLLM and SGLang then let the model go on in the last turn; without, they would open another one.
    going_on = {"continue_final_message": True, "add_generation_prompt": False} if prompt.answer_prefix else {}
    fields = {
        **{"model": model, "messages": list(prompt.messages), "max_tokens": config.max_new_tokens},
        **sampling,
        **going_on,
    }
    return {name: value for name, value in fields.items() if name not in without} | config.request_fields


def optional_fields(request: dict[str, Any], config: OpenAIGeneration) -> frozenset[str]:
    """Return the fields of a request that a server may refuse without harm."""
    asked = {*config.request_fields, *(["top_k"] if config.top_k else [])}
    return frozenset(_OPTIONAL & request.keys() - asked)


def refused_fields(reason: str, optional: frozenset[str]) -> frozenset[str]:
    """Return the optional fields that a refusal names, or all of them when it names none."""
    return frozenset(name for name in optional if name in reason) or optional


def finish_of(said: Any) -> FinishReason | None:
    """Return what a server's finish reason means: ``stop``, ``length``, or None when there is no whole answer.

    Servers have words of their own, in capitals or with other separators: ``eos_token``, ``MAX_TOKENS``.
    """
    word = _plain_word(said)
    return "stop" if word in _FINISHED else "length" if word in _TOO_LONG else None


def read_answer(
    body: Any,
    accepts_model: Callable[[str], bool],
    count_tokens: Callable[[str], int],
    prefix: str = "",
    control_tokens: Collection[str] = (),
) -> Answer:
    """Return the answer in a response, behind the prefix that the server was to go on from.

    Args:
        body: The parsed JSON.
        accepts_model: Whether the model that was asked goes by a name.
        count_tokens: Counts the tokens of a text where the server does not.
        prefix: How the answer begins. Servers give back what follows it; one that repeats it is read as well.
        control_tokens: What ends an answer. Some servers leave it there as text.

    Raises:
        TransientError: The response is not an answer, comes from another model, or the server gave the answer up.
        QuestionRefusedError: The answer is not a finished text, and would not be one if it were asked for again.
    """
    choice = _choice(body)
    finish = _finish(choice)
    written = _before_end(_text(choice["message"]), control_tokens)
    text = (written if prefix and written.startswith(prefix) else prefix + written).strip()
    name = body.get("model")
    if isinstance(name, str) and name and not accepts_model(name):
        raise TransientError(f"the answer comes from another model, {name!r}")
    num_tokens = _completion_tokens(body)
    return Answer(
        text,
        finish,
        count_tokens(written) if num_tokens is None else num_tokens,
        mean_logprob=_mean_logprob(choice),
    )


def require_going_on(body: Any, num_expected: int) -> None:
    """Raise unless a server read the prompt as it was meant: up to the answer's prefix, with no turn opened behind it.

    Args:
        body: The parsed response, whose ``usage`` tells how many tokens the prompt had. One that tells none passes.
        num_expected: Tokens of the prompt with the prefix, as the seed model's own tokenizer writes them.

    Raises:
        QuestionRefusedError: The prompt had more tokens.
    """
    usage = body.get("usage") if isinstance(body, dict) else None
    counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if isinstance(counted, int) and counted > num_expected + MOST_BEGIN_TOKENS:
        raise QuestionRefusedError(
            f"the server read {counted} tokens where the chat with answer_prefix has {num_expected}, so it did not go "
            "on behind the prefix, as vLLM and SGLang do; remove answer_prefix, or use such a server"
        )


def read_completion(body: Any) -> tuple[list[int], float | None]:
    """Return the token ids of a text completion, and their mean log-probability where it was asked for.

    Raises:
        TransientError: The response is not a completion with token ids, or the server gave it up.
    """
    choice = _first_choice(body)
    said = choice.get("finish_reason")
    if finish_of(said) is None:
        raise TransientError(f"no finished answer (finish_reason {said!r})")
    ids = choice.get("token_ids")
    if not isinstance(ids, list):
        raise QuestionRefusedError("the server tells no token ids, as vLLM does from 0.11 on; install a newer one")
    told = (choice.get("logprobs") or {}).get("token_logprobs") or []
    return ids, sum(told) / len(told) if told else None


def _choice(body: Any) -> dict[str, Any]:
    """Return the one answer of a response, which has a ``message``.

    Raises:
        TransientError: There is none, or the server reports a fault in its place.
    """
    choice = _first_choice(body)
    if not isinstance(choice.get("message"), dict):
        is_streamed = "delta" in choice
        raise TransientError(
            "a piece of a stream in place of the answer" if is_streamed else "no message in the response"
        )
    return choice


def _first_choice(body: Any) -> dict[str, Any]:
    fault = fault_in(body)
    if fault is not None:
        raise TransientError(f"no answer in the response, but {fault}")
    choices = body.get("choices") if isinstance(body, dict) else None
    listed = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    if not listed:
        raise TransientError(f"no answer in the response, but {message_in(body) or _kind(body)}")
    choice = next((choice for choice in listed if choice.get("index") == 0), listed[0])  # one was asked for
    fault = fault_in(choice)
    if fault is not None:
        raise TransientError(f"no answer in the response, but {fault}")
    return choice


def _finish(choice: dict[str, Any]) -> FinishReason:
    """Return how an answer ended.

    Raises:
        TransientError: The server gave it up, or does not say how it ended.
        QuestionRefusedError: It is not a finished answer, for a reason that stays.
    """
    message, said = choice["message"], choice.get("finish_reason")
    if message.get("refusal"):
        raise QuestionRefusedError(f"the server refuses to answer: {message['refusal']}")
    finish = finish_of(said)
    if finish is None:
        reason = f"no finished answer (finish_reason {said!r})"
        raise (TransientError if _plain_word(said) in _PASSING else QuestionRefusedError)(reason)
    if message.get("tool_calls") or message.get("function_call"):
        raise QuestionRefusedError(f"no finished answer, but a call of a function (finish_reason {said!r})")
    return finish


def _plain_word(said: Any) -> str:
    """Return a finish reason in lower case, its words joined by underscores: ``eosFound`` is ``eos_found``."""
    if not isinstance(said, str):
        return "" if said is None else "?"
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", said[:64].strip())
    return re.sub(r"[\s_.-]+", "_", spaced).lower()


def _text(message: dict[str, Any]) -> str:
    """Return the text of an answer, which some servers send in parts.

    Raises:
        TransientError: It holds something else than text.
        QuestionRefusedError: It holds the servers' key, or half a character, which no file can hold.
    """
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(map(_part, content))
    if not isinstance(content, str | None):
        raise TransientError(f"no text in the answer, but {_kind(content)}")
    if content and (REDACTED in content or HIDDEN in content):
        raise QuestionRefusedError("the answer holds the servers' key")
    if content and _LONE_SURROGATE.search(content):
        raise QuestionRefusedError("the answer holds half a character (a lone surrogate)")
    return content or ""


def _before_end(written: str, control_tokens: Collection[str]) -> str:
    """Return what a model wrote up to the first control token behind its thinking part.

    Raises:
        QuestionRefusedError: Text follows that token: what the model wrote is not this answer alone.
    """
    if not any(token in written for token in control_tokens):
        return written
    any_token = re.compile("|".join(map(re.escape, sorted(control_tokens, key=len, reverse=True))))
    end = any_token.search(written, len(framed(written).before))
    if end is None:
        return written
    if any_token.sub("", written[end.start() :]).strip():
        raise QuestionRefusedError(
            f"the answer goes on behind {end.group()}, a control token of the seed model; have the server end answers "
            "there and leave such tokens out, or start it with the seed model's own generation settings"
        )
    return written[: end.start()]


def _part(part: Any) -> str:
    """Return the text of a part of an answer; a thinking part, which is not an answer, has none."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if kind in ("thinking", "reasoning", "redacted_thinking"):
        return ""
    if kind in ("text", "output_text") and isinstance(part.get("text"), str):
        return part["text"]
    if kind == "refusal":
        raise QuestionRefusedError(f"the server refuses to answer: {part.get('refusal')}")
    raise TransientError(f"no text in the answer, but a part of type {kind!r}")


def _completion_tokens(body: dict[str, Any]) -> int | None:
    usage = body.get("usage")
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if not isinstance(counted, int) or isinstance(counted, bool) or not 0 <= counted < _MAX_COUNT:
        return None
    return counted


def _mean_logprob(choice: dict[str, Any]) -> float | None:
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        return None
    values = [token["logprob"] for token in tokens if isinstance(token.get("logprob"), int | float)]
    mean = sum(values) / len(values) if values and len(values) == len(tokens) else None
    return mean if mean is not None and math.isfinite(mean) else None


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


@dataclass(frozen=True)
class ScoredText:
    """A prompt and an answer as the seed model's own tokenizer splits them."""

    index: int
    ids: tuple[int, ...]
    num_prompt_tokens: int


def encode(
    tokenizer: Any, targets: Sequence[tuple[Target, str]], template_arguments: Mapping[str, Any]
) -> list[ScoredText]:
    """Return each answer behind its context, with the end-of-turn token, in the form that the seed model's template
    gives.

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
    body = await server.ask("/completions", request)
    try:
        choice = body["choices"][0]
    except (KeyError, IndexError, TypeError):
        raise TransientError("no completion in the response") from None
    logprobs = choice.get("logprobs") if isinstance(choice, dict) else None
    told = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    # A server that ignores `echo` tells of the one new token only.
    if not isinstance(told, list) or len(told) < len(text.ids):
        return None
    values = told[text.num_prompt_tokens : len(text.ids)]
    if not values or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return None
    return -sum(values) / len(values)
