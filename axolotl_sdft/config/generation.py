"""How the seed model writes its answers: the settings that all backends share."""

from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from axolotl_sdft.config.block import Block
from axolotl_sdft.core.callables import callable_name
from axolotl_sdft.core.texts import shortened

_MADE_BY_THE_TEMPLATE = "but the rewriting template makes the chat"
_TOKENIZED_BY_THE_BACKEND = "but the backend turns the prompt into tokens"
_WRITTEN_BY_THE_ASSISTANT = "but a prompt ends where the assistant begins to write"
TEMPLATE_ARGUMENTS = {
    "messages": _MADE_BY_THE_TEMPLATE,
    "conversation": _MADE_BY_THE_TEMPLATE,
    "chat_template": "but the seed model's own chat template is used; change it in its tokenizer",
    "tools": "but the functions of a row stand in its messages",
    "add_generation_prompt": _WRITTEN_BY_THE_ASSISTANT,
    "continue_final_message": _WRITTEN_BY_THE_ASSISTANT,
    **dict.fromkeys(
        (
            *("tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length"),
            *("return_tensors", "return_dict", "return_assistant_tokens_mask"),
        ),
        _TOKENIZED_BY_THE_BACKEND,
    ),
}
"""What a chat template is given anyway, or not at all, and why."""


class GenerationConfig(Block):
    """What the settings of all backends have in common. Each backend has a class of its own with further ones."""

    backend: Any
    """What generates."""

    max_new_tokens: int = Field(512, ge=1)
    """Longest answer, in tokens. A longer one is cut off, which the ``truncated`` check rejects."""

    temperature: float = Field(1.0, ge=0.0, le=5.0)
    """Sampling temperature; 1 draws from what the model really says, 0 takes the most likely token each time."""
    # Below 1 the model is trained to be surer than it was: at equal skill it forgets more (RESULTS.md, forgetting).

    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Sample from the smallest set of tokens that holds this much probability. Needs ``temperature`` above 0."""

    top_k: int | None = Field(None, ge=1)
    """Sample from so many most likely tokens, before ``top_p``; unset: from all. Needs ``temperature`` above 0."""

    seed: int = Field(42, ge=0)
    """Random seed of the sampling. The same one gives the same dataset, also after a restart."""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the seed model's chat template, such as ``{enable_thinking: false}`` for models that would
    think aloud first (Qwen3, SmolLM3). Axolotl's top-level key of this name is about the rows that are trained, and
    plays no part here."""
    # It may ask for the thinking that the rows hold, while rewriting is better off without; so it is not a default.

    chat_template: str | None = None
    """Chat template of a seed model that has none, as Jinja text. Unset: the template that the configuration's own
    ``chat_template`` names. Servers of backend ``openai`` must be started with it. A template of its own stays."""

    trust_remote_code: bool | None = None
    """Run code that comes with the seed model; where servers hold the model, with its tokenizer. Unset: as the
    configuration's own ``trust_remote_code`` says."""

    SPEED_ONLY: ClassVar[frozenset[str]] = frozenset()
    """Settings that change how fast answers come, not what they are; they are not part of a fingerprint."""

    def shaping_answers(self) -> dict[str, Any]:
        """Return the settings that answers depend on, as JSON values: those that a fingerprint is made of.

        What has its default is left out, so that a setting that is new changes no name. The temperature is always
        there: its default was another one once.
        """
        unrelated = {*self.SPEED_ONLY, "trust_remote_code"}  # the code itself counts with the seed model
        settings = self.model_dump(mode="json", exclude=unrelated, exclude_defaults=True)
        return {**self.model_dump(mode="json", include={"backend", "temperature"}), **settings}

    @property
    def backend_name(self) -> str:
        """What messages call the backend."""
        return callable_name(self.backend)

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What the seed model's chat template is given beside the chat, by this process or by a server."""
        return self.chat_template_kwargs

    def __hash__(self) -> int:  # some settings are mappings, which pydantic's own hash of a frozen model can't take
        return hash(self.model_dump_json())

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """Return what is wrong with a key that this backend does not have, and which one has it."""
        others = [_built_in_name(model) for model in GenerationConfig.__subclasses__() if key in model.model_fields]
        named = [name for name in others if name]
        if not named:
            return super().unknown_key(key)
        has_not = f"backend {_built_in_name(cls)}" if _built_in_name(cls) else "the backend of a plugin"
        return f"unknown key {key!r}: {has_not} has none; set backend: {' or '.join(named)}, or remove {key}"

    @field_validator("chat_template")
    @classmethod
    def _chat_template_is_a_jinja_text(cls, template: str | None) -> str | None:
        if template is not None and "{{" not in template and "{%" not in template:
            raise ValueError(
                f"chat_template is {shortened(template)!r}, which is no Jinja text; write the template itself, or name "
                "one with the configuration's own chat_template, beside base_model"
            )
        return template

    @field_validator("chat_template_kwargs")
    @classmethod
    def _chat_template_kwargs_leave_alone_what_the_backend_sets(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return without("chat_template_kwargs", arguments, TEMPLATE_ARGUMENTS)

    @model_validator(mode="after")
    def _top_p_and_top_k_need_sampling(self) -> "GenerationConfig":
        for name, value, neutral in (("top_p", self.top_p, 1.0), ("top_k", self.top_k, None)):
            if value != neutral and self.temperature == 0.0:
                raise ValueError(
                    f"{name} is {value}, but temperature 0.0 does not sample; set temperature or drop {name}"
                )
        return self


def _built_in_name(model: type[GenerationConfig]) -> str | None:
    """Return the name of the backend whose settings a model holds; None where it serves those of all plugins."""
    default = model.model_fields["backend"].default
    return default if isinstance(default, str) else None


def without(key: str, given: dict[str, Any], taken: dict[str, str]) -> dict[str, Any]:
    """Return what a user gives.

    Raises:
        ValueError: It holds one of the names that come from elsewhere; the message says from where.
    """
    found = sorted(given.keys() & taken.keys())
    if found:
        raise ValueError(f"{key} sets {found[0]!r}, {taken[found[0]]}")
    return given
