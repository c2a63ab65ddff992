"""What a chat request to a server holds, and how its answer is read."""

from collections.abc import Callable
from typing import Any

from axolotl_sdft.config import GenerationConfig
from axolotl_sdft.distillation.backends.http_retries import Failed
from axolotl_sdft.distillation.interfaces import Answer, Prompt
from axolotl_sdft.distillation.seeds import attempt_temperature, sampling_seed

_SEEDS = 2**31  # llama.cpp takes 32 bits, others a signed integer
_CUT_SHORT_BY_THE_SERVER = ("abort", "error")
_OPTIONAL = {"logprobs", "min_p", "seed", "top_k"}

CANARY = Prompt((0, 0), ({"role": "user", "content": "Say yes."},), attempt=1)
"""A harmless prompt that any working server answers at once: where it fails, no row is to blame.

A second attempt, since those are sampled under any settings, with all the fields that this takes.
"""


def chat_request(config: GenerationConfig, model: str, prompt: Prompt, without: frozenset[str]) -> dict[str, Any]:
    """Return the body that asks for the answer to a prompt.

    Args:
        config: How answers are sampled.
        model: The name under which the server knows the model.
        prompt: The chat; its key and attempt decide the seed of the sampling.
        without: Optional fields that the server is known to refuse.
    """
    temperature = attempt_temperature(config.temperature, prompt.attempt)
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": config.top_p}
    if temperature > 0:
        # Servers have cut-offs of their own unless told otherwise, and then don't sample what the model would.
        sampling |= {
            "seed": sampling_seed(config.seed, prompt.key, prompt.attempt) % _SEEDS,
            "top_k": -1,
            "min_p": 0.0,
            "logprobs": True,
        }
    fields = {"model": model, "messages": list(prompt.messages), "max_tokens": config.max_new_tokens, **sampling}
    return {name: value for name, value in fields.items() if name not in without} | config.request_fields


def optional_fields(request: dict[str, Any], config: GenerationConfig) -> frozenset[str]:
    """Return the fields of a request that a server may refuse without harm."""
    return frozenset(_OPTIONAL & request.keys() - config.request_fields.keys())


def refused_fields(reason: str, optional: frozenset[str]) -> frozenset[str]:
    """Return the optional fields that a refusal names, or all of them when it names none."""
    return frozenset(name for name in optional if name in reason) or optional


def read_answer(body: Any, accepts_model: Callable[[str], bool], count_tokens: Callable[[str], int]) -> Answer:
    """Return the answer in a response.

    Args:
        body: The parsed JSON.
        accepts_model: Whether the model that was asked goes by a name.
        count_tokens: Counts the tokens of a text where the server does not.

    Raises:
        Failed: The response is no answer, or comes from another model.
    """
    try:
        choice = body["choices"][0]
        content, finish_reason = choice["message"].get("content"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        error = body.get("error") if isinstance(body, dict) else None
        raise Failed(f"no answer in the response, but {_kind(body)}{f': {error}' if error else ''}") from None
    if not isinstance(content, str | None):
        raise Failed(f"no text in the answer, but {_kind(content)}")
    if finish_reason in _CUT_SHORT_BY_THE_SERVER:
        raise Failed(f"the server gave up the answer (finish_reason {finish_reason!r})")
    name = body.get("model")
    if isinstance(name, str) and name and not accepts_model(name):
        raise Failed(f"the answer comes from another model, {name!r}")
    text = (content or "").strip()
    num_tokens = _completion_tokens(body)
    return Answer(
        text,
        "length" if finish_reason == "length" else "stop",
        count_tokens(text) if num_tokens is None else num_tokens,
        mean_logprob=_mean_logprob(choice),
    )


def _completion_tokens(body: dict[str, Any]) -> int | None:
    usage = body.get("usage")
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return counted if isinstance(counted, int) and counted >= 0 else None


def _mean_logprob(choice: dict[str, Any]) -> float | None:
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        return None
    values = [token["logprob"] for token in tokens if isinstance(token.get("logprob"), int | float)]
    return sum(values) / len(values) if values and len(values) == len(tokens) else None


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
