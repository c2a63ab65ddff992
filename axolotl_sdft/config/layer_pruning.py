"""The settings of layer pruning."""

from typing import Any, Literal

from pydantic import ByteSize, Field, field_validator, model_validator

from axolotl_sdft.config.block import Block, Size, parse_num_layers
from axolotl_sdft.config.functions import MetricSetting


class CalibrationConfig(Block):
    """The text that layers are scored and patches fitted on. Without a ``path``: the training set."""

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


class LayerPruningConfig(Block):
    """Which decoder layers are removed from the seed model before training. Layers count from 0."""

    num_layers: int | float | None = None
    """How many layers are removed; the metric chooses them. A number from 1 on, or a fraction of the model's layers
    such as ``0.25``, rounded to the nearest number (half a layer counts as one), at least 1. Either this or
    ``drop_layers``."""

    drop_layers: tuple[int, ...] | None = None
    """The layers to remove, counted from 0; none is scored. Either this or ``num_layers``."""

    metric: MetricSetting = "angular_distance"
    """How layers are scored: ``angular_distance`` (the block that turns the hidden states least), ``block_influence``
    (single layers), ``perplexity`` (one after the other, the layer whose removal hurts least; many passes), ``last``
    (the deepest layers but the last, no scoring), or what a plugin registers; from Python also a function."""

    token_reduction: Literal["all", "last"] = "all"
    """Average the score over all tokens of the calibration text, or over the last token of each row. Padding never
    counts."""

    protect_first: int = Field(0, ge=0)
    """This many of the first layers are never chosen."""

    protect_last: int = Field(0, ge=0)
    """This many of the last layers are never chosen."""

    patch: Literal["linear", "none"] = "linear"
    """What takes over for the layers that go. ``linear``: the last projection of the layer before each cut is
    multiplied by a map that is fitted on the calibration text, where that brings the model nearer to the seed model on
    held-out text; no tensor is added. ``none``: nothing, the bare cut."""

    calibration: CalibrationConfig = CalibrationConfig()
    """The text that the layers are scored and the patch is fitted on."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the seed model while it is scored and the patch is fitted; the checkpoint keeps its own.
    ``auto``: the checkpoint's on an accelerator, what the hardware computes fast in on a CPU."""

    device_map: str | dict[str, Any] | None = None
    """Where the seed model's parts are while it is scored, as transformers takes it, such as ``auto`` for a model
    larger than one GPU. Needs accelerate. Unset: all on this process's own device."""

    load_in_4bit: bool = False
    """Score the seed model in 4 bits (bitsandbytes, nf4), to save memory. It shapes the scores only: the pruned
    checkpoint keeps the seed's weights. Axolotl's own ``load_in_4bit`` plays no part here."""

    max_shard_size: Size = ByteSize(5 * 10**9)
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
