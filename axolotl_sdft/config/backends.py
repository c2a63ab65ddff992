"""The settings of each generation backend: those that ship built in, servers among them, and those of plugins."""

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, field_validator, model_validator

from axolotl_sdft.config.block import BackendSetting
from axolotl_sdft.config.generation import TEMPLATE_ARGUMENTS, GenerationConfig, without
from axolotl_sdft.core.safe_output import masked

_REQUEST_FIELDS = {
    "add_generation_prompt": "which self_distillation.answer_prefix sets",
    "continue_final_message": "which self_distillation.answer_prefix sets",
    "max_completion_tokens": "which generation.max_new_tokens sets",
    "max_tokens": "which generation.max_new_tokens sets",
    "messages": "which the template makes",
    "model": "which generation.model sets",
    "n": "but one answer is asked for at a time",
    "seed": "which generation.seed sets",
    "stream": "but answers are read whole",
    "temperature": "which generation.temperature sets",
    "top_k": "which generation.top_k sets",
    "top_p": "which generation.top_p sets",
}
"""What a request to a server holds anyway, and where it comes from."""
_EXPONENTIAL = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]{1,2}")


class OpenAIGeneration(GenerationConfig):
    """How servers that speak the OpenAI protocol write the answers."""

    backend: Literal["openai"] = "openai"
    """Servers anywhere."""

    base_urls: tuple[str, ...] = Field((), validate_default=True)
    """Servers, such as ``http://gpu1:8000/v1``: anything that speaks the OpenAI protocol and serves the seed model. At
    least one. Requests go to the least busy one; the rows of one that dies go to the others."""

    model: str | None = None
    """Name under which the servers know the seed model. Unset: the one whose name or path is the seed model's."""

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
    """Further fields of each request to a server, such as ``min_p: 0.05``. ``chat_template_kwargs`` in it are joined
    with the setting of that name."""

    SPEED_ONLY: ClassVar[frozenset[str]] = frozenset(
        {"base_urls", "api_key_env", "concurrency", "timeout_s", "max_retries"}
    )

    def shaping_answers(self) -> dict[str, Any]:
        """Return the settings that answers depend on. It doesn't matter which key names the template's arguments."""
        settings = super().shaping_answers()
        settings.pop("chat_template_kwargs", None)
        settings.pop("extra_body", None)
        return settings | ({"extra_body": self.request_fields} if self.request_fields else {})

    @property
    def request_fields(self) -> dict[str, Any]:
        """``extra_body`` with ``chat_template_kwargs``: what a request to a server holds beside its own fields."""
        if not self.chat_template_kwargs:
            return self.extra_body
        given = self.extra_body.get("chat_template_kwargs", {})
        return self.extra_body | {"chat_template_kwargs": {**given, **self.chat_template_kwargs}}

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What the seed model's chat template is given beside the chat, whichever key names it."""
        arguments = self.request_fields.get("chat_template_kwargs")
        return arguments if isinstance(arguments, dict) else {}

    @field_validator("base_urls", mode="before")
    @classmethod
    def _one_url_is_a_list_of_one(cls, urls: Any) -> Any:
        return (urls,) if isinstance(urls, str) else urls

    @field_validator("base_urls")
    @classmethod
    def _base_urls_are_distinct_http_addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if not urls:
            raise ValueError(
                "backend openai needs base_urls, the addresses of the servers, such as [http://localhost:8000/v1]"
            )
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
        return _with_numbers(without("extra_body", body, _REQUEST_FIELDS))

    @model_validator(mode="after")
    def _both_ways_to_give_chat_template_kwargs_agree(self) -> "OpenAIGeneration":
        given = self.extra_body.get("chat_template_kwargs", {})
        if not isinstance(given, dict):
            if self.chat_template_kwargs:
                raise ValueError(
                    f"extra_body sets chat_template_kwargs to {masked(given)!r}, which can't be joined with "
                    "generation.chat_template_kwargs; keep one of the two"
                )
            return self
        without("extra_body.chat_template_kwargs", given, TEMPLATE_ARGUMENTS)
        for name in sorted(given.keys() & self.chat_template_kwargs.keys()):
            if given[name] != self.chat_template_kwargs[name]:
                ours, theirs = masked(self.chat_template_kwargs[name], name), masked(given[name], name)
                raise ValueError(
                    f"generation.chat_template_kwargs sets {name}: {ours!r}, but "
                    f"generation.extra_body.chat_template_kwargs sets {name}: {theirs!r}; remove one of the two"
                )
        return self


def _with_numbers(value: Any) -> Any:
    """Return JSON values with numbers such as ``1e-2``, which YAML 1.1 takes for text without a point, as numbers."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _EXPONENTIAL.fullmatch(value) else value


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


_BY_THIS_PROCESS = "but the server is for this process alone, which chooses it"
_VLLM_ARGUMENTS = {
    "dtype": "which generation.dtype sets",
    "model": "which base_model sets",
    "seed": "which generation.seed sets",
    "tokenizer": "which base_model sets",
    "skip_tokenizer_init": "but the seed model's own tokenizer is needed",
    "chat_template": "which generation.chat_template sets",
    **dict.fromkeys(("host", "port", "uds", "root_path", "api_key", "served_model_name"), _BY_THIS_PROCESS),
}
"""What ``vllm serve`` is given anyway, or not at all, and where it comes from."""

_VLLM_SPEED_ONLY = frozenset(
    {
        *("gpu_memory_utilization", "kv_cache_memory_bytes", "swap_space", "cpu_offload_gb", "block_size"),
        *("max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching", "enable_chunked_prefill"),
        *("tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend", "enable_expert_parallel"),
        *("data_parallel_size", "data_parallel_size_local", "data_parallel_backend", "data_parallel_address"),
        *("disable_custom_all_reduce", "enforce_eager", "compilation_config", "disable_log_stats", "load_format"),
        *("api_server_count", "uvicorn_log_level", "enable_log_requests", "disable_log_requests"),
    }
)
"""Arguments of vLLM that change how fast answers come; another one, such as ``quantization``, makes others."""


class TransformersGeneration(GenerationConfig):
    """How the seed model writes its answers in this process."""

    backend: Literal["transformers"] = "transformers"
    """What generates: ``transformers`` in this process, ``vllm`` (on this machine's GPUs, much faster), ``openai``
    (servers anywhere), or what a plugin registers. Each has settings of its own."""

    max_batch_tokens: int = Field(32768, ge=1)
    """Token budget of a batch: rows written at once times the longest prompt plus ``max_new_tokens``.
    Where memory runs out all the same, half as many rows go on."""

    max_batch_size: int = Field(64, ge=1)
    """Most rows that are written at once."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the seed model while it writes. ``auto``: bfloat16 where the hardware computes in it."""

    device_map: str | None = None
    """Spreads a seed model that is larger than one GPU over all of them (``auto``). Needs accelerate, and one
    process."""

    SPEED_ONLY: ClassVar[frozenset[str]] = frozenset({"max_batch_tokens", "max_batch_size", "device_map"})


class VLLMGeneration(GenerationConfig):
    """How a vLLM server that runs for this command alone writes the answers."""

    backend: Literal["vllm"] = "vllm"
    """vLLM, on this machine's GPUs; much faster."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the seed model while it writes. ``auto``: bfloat16 where the hardware computes in it."""

    vllm_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of ``vllm serve``, such as ``max_model_len: 8192``, ``gpu_memory_utilization: 0.8``,
    ``tensor_parallel_size: 2`` or ``distributed_executor_backend: ray``. ``data_parallel_size`` unset: as many engines
    as the launcher's processes on this machine have GPUs for."""

    python: str | None = None
    """Python interpreter of another environment that vLLM is installed in, such as ``/envs/vllm/bin/python``: vLLM's
    pins clash with Axolotl's. Unset: this environment's."""

    SPEED_ONLY: ClassVar[frozenset[str]] = frozenset({"python"})

    def shaping_answers(self) -> dict[str, Any]:
        """Return the settings that answers depend on, without the arguments that only change vLLM's speed."""
        kept = {name: value for name, value in self.vllm_args.items() if name not in _VLLM_SPEED_ONLY}
        settings = super().shaping_answers()
        settings.pop("vllm_args", None)
        return settings | ({"vllm_args": kept} if kept else {})

    @field_validator("vllm_args")
    @classmethod
    def _vllm_args_leave_alone_what_the_backend_sets(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        # As on a command line: max-model-len is max_model_len.
        named = {name.lstrip("-").replace("-", "_"): value for name, value in arguments.items()}
        return without("vllm_args", named, _VLLM_ARGUMENTS)


class PluginGeneration(GenerationConfig):
    """How the backend of a plugin writes the answers."""

    backend: BackendSetting
    """The name under which a plugin registers it; from Python also what a plugin would register."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the seed model while it writes. ``auto``: bfloat16 where the hardware computes in it."""

    max_batch_size: int = Field(64, ge=1)
    """Most rows that are written at once."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of the backend's own, as its plugin names them. All of them count as shaping the answers."""

    SPEED_ONLY: ClassVar[frozenset[str]] = frozenset({"max_batch_size"})


_BUILT_IN = ("transformers", "vllm", "openai")
_PLUGIN = "plugin"
_CLASSES: dict[str, type[GenerationConfig]] = {
    **dict(zip(_BUILT_IN, (TransformersGeneration, VLLMGeneration, OpenAIGeneration), strict=True)),
    _PLUGIN: PluginGeneration,
}


def _chosen(value: Any) -> str:
    """Return the tag of the class that settings or an instance belong to; without ``backend`` it is transformers."""
    name = value.get("backend") if isinstance(value, Mapping) else getattr(value, "backend", None)
    if name is None:
        return "transformers"
    return name if isinstance(name, str) and name in _BUILT_IN else _PLUGIN


Generation: TypeAlias = Annotated[
    Annotated[TransformersGeneration, Tag("transformers")]
    | Annotated[VLLMGeneration, Tag("vllm")]
    | Annotated[OpenAIGeneration, Tag("openai")]
    | Annotated[PluginGeneration, Tag(_PLUGIN)],
    Discriminator(_chosen),  # not the field alone: any name may be that of a plugin's backend
]
"""The settings of one backend. ``backend`` says which; a key that it does not have is unknown."""

_GENERATION: TypeAdapter[GenerationConfig] = TypeAdapter(Generation, config=ConfigDict(hide_input_in_errors=True))


def generation_config(settings: Mapping[str, Any] | None = None, /, **more: Any) -> GenerationConfig:
    """Return the settings of the backend that ``backend`` names, by default of ``transformers``.

    Raises:
        pydantic.ValidationError: A key is one of another backend, or a value is wrong.
    """
    return _GENERATION.validate_python({**(settings or {}), **more})


def overridden(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as YAML gives them with others laid over; another backend takes only what it has itself."""
    name = own.get("backend")
    if name is None or name == base.get("backend", "transformers"):
        return {**base, **own}
    before, after = (_CLASSES[_chosen(each)].model_fields.keys() for each in (base, own))
    foreign = (before - after) | {"options"}  # which are of one plugin's backend
    return {**{key: value for key, value in base.items() if key not in foreign}, **own}


def yaml_path(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return where a fault is as a user would write it: pydantic's location also names the class that was chosen."""
    chosen = {*_BUILT_IN, _PLUGIN}
    return tuple(
        part
        for place, part in enumerate(location)
        if not (part in chosen and place > 0 and location[place - 1] == "generation")
    )
