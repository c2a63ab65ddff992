"""The settings of the three stages, as pydantic models that import no torch.

Every field has a text, bounds and a default that works. Names of metrics, templates, checks and backends are plain
strings here: which ones exist depends on the plugins installed, so :mod:`axolotl_sdft.plugins` resolves them.
"""

import difflib
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


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
    """Row format, as in ``datasets``. Unset: a ``text`` column, or the first format whose fields are there."""

    num_samples: int = Field(128, ge=1)
    """How many rows are read, spread evenly over the dataset."""

    sequence_len: int = Field(1024, ge=8)
    """Tokens kept of each row."""

    batch_size: int = Field(4, ge=1)
    """Rows per forward pass. Only speed and memory depend on it."""


class LayerPruningConfig(_Block):
    """Which decoder layers are removed from the seed model before training. Layers count from 0."""

    num_layers: int | None = Field(None, ge=1)
    """How many layers are removed; the metric chooses them. Either this or ``drop_layers``."""

    drop_layers: tuple[int, ...] | None = None
    """The layers to remove, counted from 0; nothing is scored. Either this or ``num_layers``."""

    metric: str = "angular_distance"
    """How layers are scored: ``angular_distance``, ``block_influence``, or what a plugin registers."""

    token_average: Literal["all", "last"] = "all"
    """Average the score over all tokens of the calibration text, or over the last token of each row."""

    protect_first: int = Field(0, ge=0)
    """This many of the first layers are never chosen."""

    protect_last: int = Field(0, ge=0)
    """This many of the last layers are never chosen."""

    calibration: CalibrationConfig = CalibrationConfig()
    """The text that the layers are scored on."""

    max_shard_size: str = "5GB"
    """Largest weight file of the pruned checkpoint, such as ``500MB`` or ``5GB``."""

    output_dir: str | None = None
    """Folder of the pruned checkpoint. Unset: a folder under ``sdft_prepared`` that is named by its content."""

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
    """What generates: ``transformers`` in this process, or what a plugin registers."""

    max_new_tokens: int = Field(512, ge=1)
    """Longest answer, in tokens. A longer one is cut off, which the ``truncated`` check rejects."""

    temperature: float = Field(0.0, ge=0.0, le=5.0)
    """Sampling temperature; 0 takes the likeliest token each time."""

    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Sample from the smallest set of tokens that holds this much probability. Needs ``temperature`` above 0."""

    seed: int = Field(42, ge=0)
    """Seed of the sampling. The same seed gives the same dataset, also after a restart."""

    batch_tokens: int = Field(16384, ge=1)
    """Token budget of a batch: rows times the longest prompt plus ``max_new_tokens``. Lower it when memory runs out."""

    batch_rows: int = Field(16, ge=1)
    """Most rows in a batch."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the seed model while it writes. ``auto``: bfloat16 where the hardware computes in it."""

    @model_validator(mode="after")
    def _top_p_needs_sampling(self) -> "GenerationConfig":
        if self.top_p < 1.0 and self.temperature == 0.0:
            raise ValueError(
                f"top_p is {self.top_p}, but temperature 0.0 does not sample; set temperature or drop top_p"
            )
        return self


class SelfDistillationConfig(_Block):
    """How the seed model rewrites the answers of the training set in its own words."""

    template: str = "reference"
    """How the seed model is asked: ``reference`` (the same facts in other words), ``notes`` (more freely, for models
    that can be trusted with facts), ``mathematics`` (a worked solution), what a plugin registers, or a Jinja text of
    your own that uses ``{{ instruction }}`` and ``{{ reference }}``."""

    checks: tuple[str, ...] = ("empty", "truncated", "leak", "repetition")
    """What a rewritten answer must pass, in this order: ``empty``, ``truncated``, ``leak``, ``repetition``,
    ``numeric_answer``, or what a plugin registers."""

    on_reject: Literal["original", "drop"] = "original"
    """A row whose rewritten answer fails a check keeps its original answer, or is left out."""

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

    @model_validator(mode="after")
    def _checks_are_distinct(self) -> "SelfDistillationConfig":
        if len(set(self.checks)) != len(self.checks):
            raise ValueError(f"checks names one twice: {list(self.checks)}")
        return self


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

    chunk_tokens: int = Field(1024, ge=1)
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
