"""How the seed model writes its answers: one class of settings for each backend, chosen by the key ``backend``."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, field_validator

from axolotl_sdft.config.functions import BackendSetting
from axolotl_sdft.config.generation import GenerationConfig, without
from axolotl_sdft.config.servers import OpenAIGeneration

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
    """Number format of the seed model while it writes. ``auto``: bfloat16 where the hardware computes in it."""

    device_map: str | None = None
    """Spreads a seed model that is larger than one GPU over all of them (``auto``). Needs accelerate, and one
    process."""

    trust_remote_code: bool | None = None
    """Run code that comes with the seed model. Unset: as the configuration's own ``trust_remote_code`` says."""

    SPEED_ONLY: ClassVar[frozenset[str]] = frozenset(
        {"max_batch_tokens", "max_batch_size", "device_map", "trust_remote_code"}
    )


class VLLMGeneration(GenerationConfig):
    """How a vLLM engine on this machine writes the answers."""

    backend: Literal["vllm"] = "vllm"
    """vLLM, on this machine's GPUs; much faster."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the seed model while it writes. ``auto``: bfloat16 where the hardware computes in it."""

    vllm_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's ``LLM``, such as ``max_model_len: 8192``, ``gpu_memory_utilization: 0.8`` or
    ``tensor_parallel_size: 2`` (GPUs per process)."""

    def shaping_answers(self) -> dict[str, Any]:
        """Return the settings that answers depend on, without the arguments that only change vLLM's speed."""
        kept = {name: value for name, value in self.vllm_args.items() if name not in _VLLM_SPEED_ONLY}
        settings = super().shaping_answers()
        settings.pop("vllm_args", None)
        return settings | ({"vllm_args": kept} if kept else {})

    @field_validator("vllm_args")
    @classmethod
    def _vllm_args_leave_alone_what_the_backend_sets(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return without("vllm_args", arguments, _VLLM_ARGUMENTS)


class PluginGeneration(GenerationConfig):
    """How the backend of a plugin writes the answers."""

    backend: BackendSetting
    """The name under which a plugin registers it; from Python also what a plugin would register."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the seed model while it writes. ``auto``: bfloat16 where the hardware computes in it."""

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
