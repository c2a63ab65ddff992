"""How the seed model writes its answers: the settings of all backends."""

import ipaddress
import re
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from axolotl_sdft.config.block import Block
from axolotl_sdft.core.safe_output import masked

_REQUEST_FIELDS = {
    "max_completion_tokens": "which generation.max_new_tokens sets",
    "max_tokens": "which generation.max_new_tokens sets",
    "messages": "which the template makes",
    "model": "which generation.model sets",
    "n": "but one answer is asked for at a time",
    "seed": "which generation.seed sets",
    "stream": "but answers are read whole",
    "temperature": "which generation.temperature sets",
    "top_p": "which generation.top_p sets",
}
"""What a request to a server holds anyway, and where it comes from."""

_VLLM_ARGUMENTS = {
    "dtype": "which generation.dtype sets",
    "model": "which base_model sets",
    "seed": "which generation.seed sets",
    "tokenizer": "which base_model sets",
    "skip_tokenizer_init": "but the seed model's own tokenizer is needed",
}
"""What a vLLM engine is given anyway, and where it comes from."""

_MADE_BY_THE_TEMPLATE = "but the rewriting template makes the chat"
_TOKENIZED_BY_THE_BACKEND = "but the backend turns the prompt into tokens"
_WRITTEN_BY_THE_ASSISTANT = "but a prompt ends where the assistant begins to write"
_TEMPLATE_ARGUMENTS = {
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

_VLLM_SPEED_ONLY = frozenset(
    {
        *("gpu_memory_utilization", "kv_cache_memory_bytes", "swap_space", "cpu_offload_gb", "block_size"),
        *("max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching", "enable_chunked_prefill"),
        *("tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend"),
        *("disable_custom_all_reduce", "enforce_eager", "compilation_config", "disable_log_stats", "load_format"),
    }
)
"""Arguments of a vLLM engine that change how fast answers come; another one, such as ``quantization``, makes others."""


class GenerationConfig(Block):
    """How the seed model writes its answers."""

    backend: str = "transformers"
    """What generates: ``transformers`` in this process, ``vllm`` (on this machine's GPUs, much faster), ``openai``
    (servers anywhere), or what a plugin registers."""

    max_new_tokens: int = Field(512, ge=1)
    """Longest answer, in tokens. A longer one is cut off, which the ``truncated`` check rejects."""

    temperature: float = Field(0.0, ge=0.0, le=5.0)
    """Sampling temperature; 0 takes the likeliest token each time."""

    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Sample from the smallest set of tokens that holds this much probability. Needs ``temperature`` above 0."""

    seed: int = Field(42, ge=0)
    """Seed of the sampling. The same seed gives the same dataset, also after a restart."""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the seed model's chat template, for all backends, such as ``{enable_thinking: false}`` for
    models that would think aloud first (Qwen3, SmolLM3). Axolotl's top-level key of this name is about the rows that
    are trained, and plays no part here."""
    # It may ask for the thinking that the rows hold, while rewriting is better off without; so it is no default.

    chat_template: str | None = None
    """Chat template of a seed model that has none, as Jinja text. Unset: the template that the configuration's own
    ``chat_template`` names. Servers of backend ``openai`` must be started with it. The seed's own template stays."""

    max_batch_tokens: int = Field(32768, ge=1)
    """Token budget of backend ``transformers``: rows written at once times the longest prompt plus ``max_new_tokens``.
    Where memory runs out all the same, half as many rows go on."""

    max_batch_size: int = Field(64, ge=1)
    """Most rows that backend ``transformers`` writes at once."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the seed model while it writes. ``auto``: bfloat16 where the hardware computes in it."""

    device_map: str | None = None
    """Spreads a seed model that is larger than one GPU over all of them (``auto``), for backend ``transformers``. Needs
    accelerate, and one process."""

    trust_remote_code: bool = False
    """Run code that comes with the seed model, for backend ``transformers``. Unset: as the configuration's own
    ``trust_remote_code`` says."""

    base_urls: tuple[str, ...] = ()
    """Servers of backend ``openai``, such as ``http://gpu1:8000/v1``: anything that speaks the OpenAI protocol and
    serves the seed model. Requests go to the least busy one; the rows of one that dies go to the others."""

    model: str | None = None
    """Name under which the servers know the seed model. Unset: the served model whose name or path is the seed's."""

    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the servers' key; the key itself is never written anywhere. Not set there: no key
    is sent. All ``base_urls`` get the same key."""

    concurrency: int = Field(64, ge=1, le=4096)
    """Requests in flight per server, shared among ranks. A server that answers 429 (too many requests) gets fewer."""

    timeout_s: float = Field(600.0, gt=0.0, le=86400.0)
    """Seconds until a request that got no answer is sent again."""

    max_retries: int = Field(8, ge=0, le=100)
    """How often a row is asked again before it counts as failed, and a silent server before it counts as dead."""

    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request to a server, such as ``top_k: 20``. ``chat_template_kwargs`` in it are joined with
    the setting of that name."""

    vllm_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's ``LLM``, such as ``max_model_len: 8192``, ``gpu_memory_utilization: 0.8`` or
    ``tensor_parallel_size: 2`` (GPUs per process)."""

    SPEED_ONLY: ClassVar[frozenset[str]] = frozenset(
        {
            *("max_batch_tokens", "max_batch_size", "device_map", "trust_remote_code"),
            *("base_urls", "api_key_env", "concurrency", "timeout_s", "max_retries"),
        }
    )
    """Settings that change how fast answers come, not what they are; they are no part of a fingerprint."""

    def shaping_answers(self) -> dict[str, Any]:
        """Return the settings that answers depend on, as JSON values: those that a fingerprint is made of."""
        settings = self.model_dump(mode="json", exclude=set(self.SPEED_ONLY))
        kept = {name: value for name, value in self.vllm_args.items() if name not in _VLLM_SPEED_ONLY}
        arguments = settings.pop("chat_template_kwargs")
        if self.chat_template is None:
            del settings["chat_template"]
        if self.backend == "openai":  # a request is the same whichever of the two keys its arguments come from
            settings["extra_body"] = _with_template_arguments(settings["extra_body"], arguments)
        elif arguments:  # without any, answers in the folders of earlier releases are found
            settings["chat_template_kwargs"] = arguments
        return settings | {"vllm_args": kept}

    @property
    def request_fields(self) -> dict[str, Any]:
        """``extra_body`` with ``chat_template_kwargs``: what a request to a server holds beside its own fields."""
        return _with_template_arguments(self.extra_body, self.chat_template_kwargs)

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What the seed model's chat template is given beside the chat, by this process or by a server."""
        arguments = self.request_fields.get("chat_template_kwargs")
        return arguments if isinstance(arguments, dict) else {}

    def __hash__(self) -> int:  # extra_body is a mapping, which pydantic's own hash of a frozen model can't take
        return hash(self.model_dump_json())

    @field_validator("base_urls", mode="before")
    @classmethod
    def _one_url_is_a_list_of_one(cls, urls: Any) -> Any:
        return (urls,) if isinstance(urls, str) else urls

    @field_validator("base_urls")
    @classmethod
    def _base_urls_are_distinct_http_addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        cleaned = tuple(_base_url(url) for url in urls)
        if len(set(cleaned)) != len(cleaned):
            raise ValueError(f"base_urls names one server twice: {', '.join(cleaned)}")
        return cleaned

    @field_validator("api_key_env")
    @classmethod
    def _api_key_env_is_the_name_of_a_variable(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):  # never shown: somebody may have put the key itself here
            raise ValueError(
                "api_key_env is the name of an environment variable, in capitals, digits and underscores, such as "
                "OPENAI_API_KEY; put the key itself into that variable"
            )
        return name

    @field_validator("extra_body")
    @classmethod
    def _extra_body_leaves_alone_what_the_backend_sets(cls, body: dict[str, Any]) -> dict[str, Any]:
        return _without("extra_body", body, _REQUEST_FIELDS)

    @field_validator("chat_template_kwargs")
    @classmethod
    def _chat_template_kwargs_leave_alone_what_the_backend_sets(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return _without("chat_template_kwargs", arguments, _TEMPLATE_ARGUMENTS)

    @model_validator(mode="after")
    def _both_ways_to_give_chat_template_kwargs_agree(self) -> "GenerationConfig":
        given = self.extra_body.get("chat_template_kwargs", {})
        if not isinstance(given, dict):
            if self.chat_template_kwargs:
                raise ValueError(
                    f"extra_body sets chat_template_kwargs to {masked(given)!r}, which can't be joined with "
                    "generation.chat_template_kwargs; keep one of the two"
                )
            return self
        _without("extra_body.chat_template_kwargs", given, _TEMPLATE_ARGUMENTS)
        for name in sorted(given.keys() & self.chat_template_kwargs.keys()):
            if given[name] != self.chat_template_kwargs[name]:
                ours, theirs = masked(self.chat_template_kwargs[name], name), masked(given[name], name)
                raise ValueError(
                    f"generation.chat_template_kwargs sets {name}: {ours!r}, but "
                    f"generation.extra_body.chat_template_kwargs sets {name}: {theirs!r}; remove one of the two"
                )
        return self

    @model_validator(mode="after")
    def _servers_belong_to_backend_openai(self) -> "GenerationConfig":
        if self.backend == "openai" and not self.base_urls:
            raise ValueError(
                "backend openai needs base_urls, the addresses of the servers, such as [http://localhost:8000/v1]"
            )
        needless = [name for name in ("base_urls", "model", "extra_body") if getattr(self, name)]
        if self.backend != "openai" and needless:
            raise ValueError(
                f"{needless[0]} is set, but backend {self.backend!r} asks no server; "
                f"set backend: openai, or remove {needless[0]}"
            )
        return self

    @field_validator("vllm_args")
    @classmethod
    def _vllm_args_leave_alone_what_the_backend_sets(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return _without("vllm_args", arguments, _VLLM_ARGUMENTS)

    @model_validator(mode="after")
    def _vllm_args_belong_to_backend_vllm(self) -> "GenerationConfig":
        if self.vllm_args and self.backend != "vllm":
            raise ValueError(
                f"vllm_args is set, but the backend is {self.backend!r}; set backend: vllm, or remove vllm_args"
            )
        return self

    @model_validator(mode="after")
    def _top_p_needs_sampling(self) -> "GenerationConfig":
        if self.top_p < 1.0 and self.temperature == 0.0:
            raise ValueError(
                f"top_p is {self.top_p}, but temperature 0.0 does not sample; set temperature or drop top_p"
            )
        return self


def _without(key: str, given: dict[str, Any], taken: dict[str, str]) -> dict[str, Any]:
    """Return what a user gives, refused where it holds one of the names that come from elsewhere."""
    found = sorted(given.keys() & taken.keys())
    if found:
        raise ValueError(f"{key} sets {found[0]!r}, {taken[found[0]]}")
    return given


def _with_template_arguments(body: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request with further arguments of the chat template, where there are any."""
    if not arguments:
        return body
    return body | {"chat_template_kwargs": {**body.get("chat_template_kwargs", {}), **arguments}}


def _base_url(url: str) -> str:
    """Return a server's address without a slash at its end.

    Raises:
        ValueError: It is not an http(s) address, or holds more than host and path. No password or query is shown.
    """
    url = url.strip()
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError as err:  # a port that is not a number, a bracket that is not closed
        raise ValueError(_not_an_address(url, f" ({err})" if "@" not in url and "?" not in url else "")) from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError(_not_an_address(url))
    if "@" in parts.netloc:
        raise ValueError(f"base_urls holds a password for {host}; put it into the variable of api_key_env")
    if parts.query or parts.fragment:
        shown = parts._replace(query="", fragment="").geturl()
        raise ValueError(f"base_urls holds {shown!r} with a query or fragment; leave out what follows the path")
    if re.search(r"[\s\x00-\x1f\x7f-\x9f\\]", url):
        raise ValueError(f"base_urls holds {url!r}, with a space, a backslash or a control character; take it out")
    if not _is_host(host):
        raise ValueError(f"base_urls holds {url!r}, but {host!r} can't be the name of one server; correct it")
    return parts.geturl().rstrip("/")


def _not_an_address(url: str, why: str = "") -> str:
    shown = "an address" if "@" in url or "?" in url else repr(url)
    is_bare = re.fullmatch(r"(?:[\w.-]+|\[[\da-fA-F:]+\])(?::\d{1,5})?(?:/[\w./-]*)?", url)
    way_out = f"did you mean http://{url}?" if is_bare else "write it as http://localhost:8000/v1"
    return f"base_urls holds {shown}, which is not an http(s) address{why}; {way_out}"


def _is_host(host: str) -> bool:
    """Say whether a host can be looked up: an IP address, or a name of labels of up to 63 letters, digits, - and _."""
    if ":" in host:  # IPv6, perhaps with the name of an interface
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return False
        return True
    try:
        name = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return False
    labels = name.removesuffix(".").split(".")
    return len(name) <= 253 and all(re.fullmatch(r"[A-Za-z0-9_](?:[\w-]{0,61}\w)?", label) for label in labels)
