"""The settings of the three stages, as pydantic models that import no torch.

Every field has a text, bounds and a default that works. Names of metrics, templates, checks and backends are plain
strings here: which ones exist depends on the plugins installed, so :mod:`axolotl_sdft.plugins` resolves them.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


def nearest_key_hint(key: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the nearest known key, or the list of all when none is near."""
    names = sorted(known)
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(names)}"


class _Block(BaseModel):
    """A YAML block: frozen, described by the strings under its fields, strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _unknown_keys_name_the_nearest_known_one(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key {str(key)!r}; {nearest_key_hint(str(key), cls.model_fields)}")
        return data


class CalibrationConfig(_Block):
    """The text that the layers are scored on. Without a ``path``: the training set."""

    path: str | None = None
    """Dataset to read: a file, a folder or a Hub id. Unset: the entries of ``datasets``."""

    name: str | None = None
    """Configuration (subset) of the dataset."""

    split: str = "train"
    """Split to read."""

    type: str | dict[str, Any] | None = None
    """Row format, as in ``datasets``; ``{field: name}`` reads that column as plain text. Unset: a ``text`` column, or
    the first format whose fields are there."""

    num_samples: int = Field(128, ge=1)
    """How many rows are read, spread evenly over the dataset."""

    sequence_len: int = Field(1024, ge=8)
    """Tokens kept of each row."""

    batch_size: int = Field(4, ge=1)
    """Rows per forward pass. Only speed and memory depend on it."""


class LayerPruningConfig(_Block):
    """Which decoder layers are removed from the seed model before training. Layers count from 0."""

    num_layers: int | float | None = None
    """How many layers are removed; the metric chooses them. A number from 1 on, or a fraction of the model's layers
    such as ``0.25``, rounded to the nearest number (half a layer counts as one), at least 1. Either this or
    ``drop_layers``."""

    drop_layers: tuple[int, ...] | None = None
    """The layers to remove, counted from 0; nothing is scored. Either this or ``num_layers``."""

    metric: str = "angular_distance"
    """How layers are scored: ``angular_distance`` (the block that turns the hidden states least), ``block_influence``
    (single layers), ``perplexity`` (one after the other, the layer whose removal hurts least; many passes), ``last``
    (the deepest layers but the last, no scoring), or what a plugin registers."""

    token_average: Literal["all", "last"] = "all"
    """Average the score over all tokens of the calibration text, or over the last token of each row. Padding never
    counts."""

    protect_first: int = Field(0, ge=0)
    """This many of the first layers are never chosen."""

    protect_last: int = Field(0, ge=0)
    """This many of the last layers are never chosen."""

    calibration: CalibrationConfig = CalibrationConfig()
    """The text that the layers are scored on."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the seed model while it is scored; the checkpoint keeps its own. ``auto``: the checkpoint's on
    an accelerator, what the hardware computes fast in on a CPU."""

    device_map: str | dict[str, Any] | None = None
    """Where the seed model's parts are while it is scored, as transformers takes it, such as ``auto`` for a model
    larger than one GPU. Needs accelerate. Unset: all on this process's own device."""

    load_in_4bit: bool = False
    """Score the seed model in 4 bits (bitsandbytes, nf4), to save memory. It shapes the scores only: the pruned
    checkpoint keeps the seed's weights. Axolotl's own ``load_in_4bit`` plays no part here."""

    max_shard_size: str = "5GB"
    """Largest weight file of the pruned checkpoint, such as ``500MB`` or ``5GB``."""

    output_dir: str | None = None
    """Folder of the pruned checkpoint. Unset: a folder under ``sdft_prepared`` that is named by its content."""

    @field_validator("num_layers", mode="before")
    @classmethod
    def _num_layers_is_a_count_or_a_fraction(cls, value: Any) -> Any:
        return None if value is None else parse_num_layers(value)

    @model_validator(mode="after")
    def _num_layers_and_drop_layers_exclude_each_other(self) -> "LayerPruningConfig":
        if self.num_layers is not None and self.drop_layers is not None:
            raise ValueError(
                f"both num_layers ({self.num_layers}) and drop_layers ({list(self.drop_layers)}) are set; remove one"
            )
        if self.num_layers is None and self.drop_layers is None:
            raise ValueError("set num_layers (how many layers to remove) or drop_layers (which ones)")
        return self

    @model_validator(mode="after")
    def _drop_layers_are_distinct_and_not_negative(self) -> "LayerPruningConfig":
        if self.drop_layers is None:
            return self
        if not self.drop_layers:
            raise ValueError("drop_layers is empty; name at least one layer, or remove the layer_pruning block")
        negative = [layer for layer in self.drop_layers if layer < 0]
        if negative:
            raise ValueError(f"drop_layers holds {negative[0]}; layers count from 0")
        if len(set(self.drop_layers)) != len(self.drop_layers):
            raise ValueError(f"drop_layers names a layer twice: {list(self.drop_layers)}")
        return self

    @model_validator(mode="after")
    def _max_shard_size_is_a_size(self) -> "LayerPruningConfig":
        parse_size(self.max_shard_size)
        return self


class GenerationConfig(_Block):
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

    batch_tokens: int = Field(32768, ge=1)
    """Token budget of backend ``transformers``: rows written at once times the longest prompt plus ``max_new_tokens``.
    Where memory runs out all the same, half as many rows go on."""

    batch_rows: int = Field(64, ge=1)
    """Most rows that backend ``transformers`` writes at once."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the seed model while it writes. ``auto``: bfloat16 where the hardware computes in it."""

    device_map: str | None = None
    """Spreads a seed model that is larger than one GPU over all of them (``auto``), for backend ``transformers``. Needs
    accelerate, and one process."""

    trust_remote_code: bool = False
    """Run code that comes with the seed model, for backend ``transformers``."""

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

    extra_body: dict[str, Any] = {}
    """Further fields of each request to a server, such as ``chat_template_kwargs: {enable_thinking: false}``."""

    vllm_args: dict[str, Any] = {}
    """Further arguments of vLLM's ``LLM``, such as ``max_model_len: 8192``, ``gpu_memory_utilization: 0.8`` or
    ``tensor_parallel_size: 2`` (GPUs per process)."""

    SPEED_ONLY: ClassVar[frozenset[str]] = frozenset(
        {
            *("batch_tokens", "batch_rows", "device_map", "trust_remote_code"),
            *("base_urls", "api_key_env", "concurrency", "timeout_s", "max_retries"),
        }
    )
    """Settings that change how fast answers come, not what they are; they are no part of a fingerprint."""

    def shaping_answers(self) -> dict[str, Any]:
        """Return the settings that answers depend on, as JSON values: those that a fingerprint is made of."""
        settings = self.model_dump(mode="json", exclude=set(self.SPEED_ONLY))
        kept = {name: value for name, value in self.vllm_args.items() if name not in _VLLM_SPEED_ONLY}
        return settings | {"vllm_args": kept}

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
        taken = sorted(set(body) & _REQUEST_FIELDS.keys())
        if taken:
            raise ValueError(f"extra_body sets {taken[0]!r}, {_REQUEST_FIELDS[taken[0]]}")
        return body

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
        taken = sorted(set(arguments) & _VLLM_ARGUMENTS.keys())
        if taken:
            raise ValueError(f"vllm_args sets {taken[0]!r}, {_VLLM_ARGUMENTS[taken[0]]}")
        return arguments

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


class ExampleConfig(_Block):
    """One worked example of a rewritten answer, shown to the seed model before each request."""

    instruction: str = Field(min_length=1)
    """What a user might ask."""

    reference: str = Field(min_length=1)
    """The original answer to it."""

    answer: str = Field(min_length=1)
    """How the seed model should rewrite it."""


class SelfDistillationConfig(_Block):
    """How the seed model rewrites the answers of the training set in its own words."""

    template: str = "reference"
    """How the seed model is asked: ``reference`` (the same facts in other words), ``notes`` (more freely, for models
    that can be trusted with facts), ``mathematics`` (a worked solution), ``function_calls``, ``code``, ``self_data``
    (an answer of the model's own, for pruned models), what a plugin registers, or a Jinja text of your own that uses
    ``{{ instruction }}`` and ``{{ reference }}``."""

    examples: tuple[ExampleConfig, ...] = ()
    """Worked examples that come before each request as earlier turns of the chat, in the form of the same template:
    each has an ``instruction``, a ``reference`` and an ``answer``."""

    checks: tuple[str | dict[str, dict[str, Any]], ...] = ("empty", "truncated", "leak", "repetition")
    """What a rewritten answer must pass, in this order: ``empty``, ``truncated``, ``leak``, ``repetition``,
    ``refusal``, ``language``, ``length_ratio``, ``numeric_answer``, ``arithmetic``, ``function_call``, ``code``,
    ``exact_match``, ``normalized_match``, or what a plugin registers. A check with options is written as
    ``length_ratio: {min: 0.5, max: 2.0}``."""

    candidates: int = Field(1, ge=1, le=64)
    """How many answers the seed model may sample for each original one. Above 1 needs ``generation.temperature``."""

    choose: Literal["first", "likeliest"] = "first"
    """Which candidate is taken: the first that passes the checks, later ones being made only where earlier ones fail;
    or, of all of them, the one that passes and is likeliest per token under the seed model."""

    on_reject: Literal["original", "drop", "retry"] = "original"
    """A row whose rewritten answer fails a check keeps its original answer, or is left out. ``retry``: the seed model is
    asked again, sampling even where ``temperature`` is 0, up to ``retries`` times; then the original answer is kept."""

    retries: int = Field(2, ge=1, le=64)
    """How often a rejected answer is asked for again. Only with ``on_reject: retry``."""

    generation: GenerationConfig = GenerationConfig()
    """How the seed model writes its answers."""

    gap_samples: int = Field(256, ge=0)
    """Rows, spread evenly, on which the distribution gap is measured before and after; 0 leaves it out."""

    output_dir: str | None = None
    """Folder that holds the distilled datasets and their journals. Unset: ``sdft_prepared``."""

    @model_validator(mode="after")
    def _template_is_a_name_or_shows_the_reference(self) -> "SelfDistillationConfig":
        if "{" in self.template and "reference" not in self.template:
            raise ValueError(
                "template is a Jinja text without {{ reference }}; the seed model would never see the answer"
            )
        return self

    @field_validator("checks", mode="before")
    @classmethod
    def _a_check_without_options_is_its_name(cls, checks: Any) -> Any:
        if not isinstance(checks, list | tuple):
            return checks
        return tuple(next(iter(check)) if _is_name_without_options(check) else check for check in checks)

    @model_validator(mode="after")
    def _candidates_and_retries_can_differ(self) -> "SelfDistillationConfig":
        if self.candidates > 1 and self.generation.temperature == 0.0:
            raise ValueError(
                f"candidates is {self.candidates}, but generation.temperature 0.0 would give the same answer each time; "
                "set generation.temperature, such as 0.7, or candidates: 1"
            )
        if self.choose == "likeliest" and self.candidates == 1:
            raise ValueError("choose is likeliest, but candidates is 1; set candidates above 1 or remove choose")
        if self.retries != type(self).model_fields["retries"].default and self.on_reject != "retry":
            raise ValueError(
                f"retries is {self.retries}, but on_reject is {self.on_reject}; set on_reject: retry or remove retries"
            )
        return self

    @model_validator(mode="after")
    def _checks_are_distinct(self) -> "SelfDistillationConfig":
        for check in self.checks:
            if isinstance(check, dict) and len(check) != 1:
                raise ValueError(f"checks holds {check}, not one name with its options; give each its own '- '")
        names = [check if isinstance(check, str) else next(iter(check)) for check in self.checks]
        if len(set(names)) != len(names):
            raise ValueError(f"checks names one twice: {names}")
        return self

    def __hash__(self) -> int:  # options are mappings, which pydantic's own hash of a frozen model can't take
        return hash(self.model_dump_json())


def _is_name_without_options(check: Any) -> bool:
    """Say whether a check is written with a colon and nothing behind it, as in ``- leak:``."""
    return isinstance(check, dict) and len(check) == 1 and next(iter(check.values())) in (None, {})


class DynSDPBConfig(_Block):
    """How each mini-batch is distilled from the model's own logits of the iteration before."""

    alpha: float = Field(1.0, ge=0.0, le=100.0)
    """Influence of the distillation term. 0 trains on the same tokens with cross-entropy alone."""

    temperature: float = Field(2.0, ge=0.1, le=100.0)
    """Distillation temperature; with ``dynamic_temperature``, the highest one."""

    temperature_min: float = Field(1.0, ge=0.1, le=100.0)
    """Lowest temperature, used where the former prediction is certain. Only with ``dynamic_temperature``."""

    dynamic_alpha: bool = True
    """Let the influence of each token fall with the uncertainty of the former prediction."""

    dynamic_temperature: bool = True
    """Let the temperature of each token fall as the former prediction gets more certain."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """How the present prediction is held against the former one: ``forward_kl`` covers all that the former held likely,
    ``reverse_kl`` avoids what it held unlikely, ``jsd`` (Jensen-Shannon, weight 0.5) lies between and is bounded."""

    only_correct: bool = False
    """Distil only tokens whose label was the former prediction's likeliest one; a wrong teacher has no influence."""

    memory: Literal["auto", "hidden_states", "logits", "top_k"] = "auto"
    """What is kept of the former prediction. ``hidden_states`` (exact, small) needs a frozen output head, as with LoRA;
    ``logits`` (exact) works always; ``top_k`` approximates. ``auto``: hidden states where they are exact, else logits."""

    top_k: int = Field(64, ge=1)
    """Tokens kept for each position; all others share one bucket. Only with ``memory: top_k``."""

    offload: bool = False
    """Keep the former prediction in the memory of the CPU, and bring it back chunk by chunk."""

    chunk_tokens: int = Field(64, ge=1)
    """Tokens whose distributions are held in float32 at a time. Only speed and memory depend on it."""

    @model_validator(mode="after")
    def _temperature_min_is_at_most_temperature(self) -> "DynSDPBConfig":
        if self.dynamic_temperature and self.temperature_min > self.temperature:
            raise ValueError(
                f"temperature_min is {self.temperature_min}, above temperature {self.temperature}; "
                "lower temperature_min, raise temperature, or set dynamic_temperature: false"
            )
        return self


BLOCKS: dict[str, type[BaseModel]] = {
    "layer_pruning": LayerPruningConfig,
    "self_distillation": SelfDistillationConfig,
    "dynsdpb": DynSDPBConfig,
}
"""The YAML blocks in the order in which their stages run."""

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

_VLLM_SPEED_ONLY = frozenset(
    {
        *("gpu_memory_utilization", "kv_cache_memory_bytes", "swap_space", "cpu_offload_gb", "block_size"),
        *("max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching", "enable_chunked_prefill"),
        *("tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend"),
        *("disable_custom_all_reduce", "enforce_eager", "compilation_config", "disable_log_stats", "load_format"),
    }
)
"""Arguments of a vLLM engine that change how fast answers come; another one, such as ``quantization``, makes others."""


def _base_url(url: str) -> str:
    """Return a server's address without a slash at its end.

    Raises:
        ValueError: It is no http(s) address, or holds more than host and path. A password in it is not shown.
    """
    try:
        parts = urlsplit(url.strip())
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_address = False
    if not is_address:
        shown = "an address" if "@" in url else repr(url)
        raise ValueError(f"base_urls holds {shown}, which is no http(s) address such as http://localhost:8000/v1")
    if "@" in parts.netloc:
        raise ValueError(f"base_urls holds a password for {parts.hostname}; put it into the variable of api_key_env")
    if parts.query or parts.fragment:
        raise ValueError(f"base_urls holds {url!r}; leave out what follows the path")
    return parts.geturl().rstrip("/")


def parse_num_layers(value: Any) -> int | float:
    """Return a count of layers, or a fraction of a model's layers, from a number or its text.

    Raises:
        ValueError: It is neither a whole number from 1 on nor a fraction between 0 and 1.
    """
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    is_whole = isinstance(value, int) or (isinstance(value, str) and value.strip().isdecimal())
    if number is not None and is_whole and number >= 1:
        return int(value)
    if number is not None and not is_whole and 0 < number < 1:
        return number
    raise ValueError(
        f"{value!r} is no number of layers; write a whole number from 1 on, such as 6, or a fraction of the model's "
        "layers between 0 and 1, such as 0.25"
    )


_SIZE_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Return the bytes that a size such as ``500MB`` or ``2GiB`` stands for.

    Raises:
        ValueError: The text is no positive number followed by a unit.
    """
    compact = text.replace(" ", "").upper()
    unit = next((unit for unit in sorted(_SIZE_UNITS, key=len, reverse=True) if compact.endswith(unit)), None)
    try:
        size = int(float(compact.removesuffix(unit)) * _SIZE_UNITS[unit]) if unit else 0
    except (ValueError, OverflowError):  # infGB overflows
        size = 0
    if size <= 0:
        raise ValueError(f"{text!r} is no size; write a number and a unit, such as 500MB or 5GB")
    return size
