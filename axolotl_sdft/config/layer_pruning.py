"""The settings of layer pruning."""

from typing import Any, Literal

from pydantic import ByteSize, Field, field_validator, model_validator

from axolotl_sdft.config.block import Block, MetricSetting, Size, parse_num_layers, parse_parameters


class CalibrationPart(Block):
    """One of the texts that a mixture is made of. Without a ``path``: the training set."""

    path: str | None = None
    """Dataset to read, as ``calibration.path``. Unset: the entries of ``datasets``."""

    name: str | None = None
    """Configuration (subset) of the dataset."""

    split: str = "train"
    """Split to read."""

    type: str | dict[str, Any] | None = None
    """Row format, as ``calibration.type``."""

    general_prompts: bool = False
    """Take general prompts that come with the package, answered by the seed model, instead of a dataset; there are 128
    of them. The patch is fitted on the answers, which are kept beside the scores; layers are scored on the other
    parts."""

    share: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Share of ``num_samples``, in proportion to the shares of all parts."""

    @model_validator(mode="after")
    def _general_prompts_are_no_dataset(self) -> "CalibrationPart":
        if self.general_prompts and self.path is not None:
            raise ValueError(f"general_prompts is true, but path ({self.path!r}) is set too; remove one")
        return self


class CalibrationConfig(Block):
    """The text that layers are scored and patches fitted on.

    Without a ``path``: the training set, and for the patch also general prompts that the seed model answers. A list in
    its place is a mixture: what ``parts`` holds.
    """

    path: str | None = None
    """Dataset to read: a file, a folder or a Hub id. Unset: the entries of ``datasets``."""

    name: str | None = None
    """Configuration (subset) of the dataset."""

    split: str = "train"
    """Split to read."""

    type: str | dict[str, Any] | None = None
    """Row format, as in ``datasets``; ``{field: name}`` reads that column as plain text. Unset: a ``text`` column, or
    the first format whose fields are there."""

    num_samples: int = Field(256, ge=1)
    """How many rows are read, spread evenly over the dataset. A patch needs eight tokens for each unit of the model's
    hidden size: rows of 150 tokens are enough for a hidden size of 4,096."""

    sequence_len: int = Field(1024, ge=8)
    """Tokens kept of each row."""

    batch_size: int = Field(4, ge=1)
    """Rows per forward pass. Only speed and memory depend on it."""

    parts: tuple[CalibrationPart, ...] = ()
    """A mixture of texts, each with its ``share``, instead of one ``path``. A cut whose patch saw other tasks as well
    forgets less of them."""

    general_share: float = Field(0.5, ge=0, le=1)
    """Share of the tokens that a patch needs (ten for each unit of the hidden size) which the seed model writes
    itself, where neither ``path`` nor ``parts`` says what is read: answers of up to 128 tokens to general prompts that
    come with the package. Where the training set gives too few, it writes more. They are written once, and kept.
    ``0``: the patch is fitted on the training set alone."""

    @property
    def asks_by_default(self) -> bool:
        """Whether general prompts are answered beside the training set."""
        return not self.parts and self.path is None and self.general_share > 0

    @property
    def num_general_prompts(self) -> int:
        """How many general prompts the parts ask for."""
        return sum(
            source.num_samples for part, source in zip(self.parts, self.sources, strict=False) if part.general_prompts
        )

    @property
    def sources(self) -> tuple["CalibrationConfig", ...]:
        """The parts, each with its own number of rows; itself where it is not a mixture."""
        if not self.parts:
            return (self,)
        total = sum(part.share for part in self.parts)
        return tuple(
            CalibrationConfig(
                **part.model_dump(include={"path", "name", "split", "type"}),
                num_samples=max(1, round(self.num_samples * part.share / total)),
                sequence_len=self.sequence_len,
                batch_size=self.batch_size,
            )
            for part in self.parts
        )

    @property
    def reads_training_set(self) -> bool:
        """Whether some of the text comes from ``datasets`` or ``pretraining_dataset``."""
        if not self.parts:
            return self.path is None
        return any(part.path is None and not part.general_prompts for part in self.parts)

    @model_validator(mode="before")
    @classmethod
    def _a_list_is_a_mixture(cls, value: Any) -> Any:
        return {"parts": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _a_mixture_has_no_path(self) -> "CalibrationConfig":
        if self.parts and self.path is not None:
            raise ValueError(f"path is {self.path!r}, but parts names what is read; put the path into one of them")
        named = "parts" if self.parts else "path" if self.path is not None else None
        if named and "general_share" in self.model_fields_set and self.general_share > 0:
            raise ValueError(
                f"general_share is {self.general_share}, but {named} says what is read; remove general_share, and to "
                "mix in general prompts write parts, one of them {general_prompts: true}"
            )
        return self


class TargetConfig(Block):
    """How large the pruned model may be, in the place of a number of layers."""

    parameters: int | float
    """Largest number of parameters: a count such as ``6.5B`` or ``110M``, or a fraction of the seed model's such as
    ``0.8``. As few layers are removed as keep to it, whichever the metric chooses."""

    @field_validator("parameters", mode="before")
    @classmethod
    def _parameters_are_a_count_or_a_fraction(cls, value: Any) -> Any:
        return parse_parameters(value)


class LayerPruningConfig(Block):
    """Which decoder layers are removed from the seed model before training. Layers count from 0."""

    num_layers: int | float | None = None
    """How many layers are removed; the metric chooses them. A number from 1 on, or a fraction of the model's layers
    such as ``0.25``, rounded to the nearest number (half a layer counts as one), at least 1. Either this,
    ``target`` or ``drop_layers``."""

    target: TargetConfig | None = None
    """How large the pruned model may be; the metric chooses the layers. Either this, ``num_layers`` or
    ``drop_layers``."""

    drop_layers: tuple[int, ...] | None = None
    """The layers to remove, counted from 0; none is scored. Either this,
    ``num_layers`` or ``target``."""

    metric: MetricSetting = "angular_distance"
    """How layers are scored: ``angular_distance`` (the block that turns the hidden states least), ``block_influence``
    (single layers), ``divergence`` (the best few blocks by angular distance are tried out, and the one goes without
    which the patched model stays nearest to the seed model), ``perplexity`` (one after the other, the layer whose
    removal hurts least; many passes), ``last`` (the deepest layers but the last, no scoring), or what a plugin
    registers; from Python also a function."""

    token_reduction: Literal["all", "last"] = "all"
    """Average the score over all tokens of the calibration text, or over the last token of each row. Padding never
    counts."""

    protect_first: int = Field(0, ge=0)
    """This many of the first layers are never chosen."""

    protect_last: int = Field(0, ge=0)
    """This many of the last layers are never chosen."""

    patch: Literal["linear", "none"] = "linear"
    """What takes over for the removed layers. ``linear``: the last projection of the layer before each cut is
    multiplied by a map that is fitted on the calibration text, where that brings the model nearer to the seed model on
    held-out text; no tensor is added. ``none``: nothing, the bare cut."""

    calibration: CalibrationConfig = CalibrationConfig()
    """The text that the layers are scored and the patch is fitted on."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the seed model while it is scored and the patch is fitted; the checkpoint keeps its own.
    ``auto``: the checkpoint's on an accelerator, what the hardware computes fast in on a CPU."""

    device_map: str | dict[str, Any] | None = None
    """Where the seed model's parts are while it is scored, as transformers takes it, such as ``auto`` for a model
    larger than one GPU. Needs accelerate. Unset: all on this process's own device."""

    load_in_4bit: bool = False
    """Score the seed model, and fit the patch, in 4 bits (bitsandbytes, nf4), to save memory. The pruned checkpoint
    keeps the seed model's weights. Axolotl's own ``load_in_4bit`` plays no part here."""

    max_shard_size: Size = ByteSize(5 * 10**9)
    """Largest weight file of the pruned checkpoint, such as ``500MB`` or ``5GB``."""

    output_dir: str | None = None
    """Folder of the pruned checkpoint. Unset: a folder under ``sdft_prepared`` that is named by its content."""

    @field_validator("num_layers", mode="before")
    @classmethod
    def _num_layers_is_a_count_or_a_fraction(cls, value: Any) -> Any:
        return None if value is None else parse_num_layers(value)

    @field_validator("drop_layers", mode="before")
    @classmethod
    def _drop_layers_are_no_mask(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and any(isinstance(layer, bool) for layer in value):
            raise ValueError(f"drop_layers is {value}, which is a mask; name the numbers of the layers to remove")
        return value

    @model_validator(mode="after")
    def _one_key_says_what_goes(self) -> "LayerPruningConfig":
        shown = {
            "num_layers": self.num_layers,
            "target": self.target.model_dump() if self.target is not None else None,
            "drop_layers": list(self.drop_layers) if self.drop_layers is not None else None,
        }
        named = [f"{key} ({value})" for key, value in shown.items() if value is not None]
        if len(named) > 1:
            both = "both" if len(named) == 2 else "all of"
            raise ValueError(f"{both} {' and '.join(named)} are set; remove {'one' if len(named) == 2 else 'two'}")
        if not named:
            raise ValueError(
                "set num_layers (how many layers to remove), target (how large the model may be) or drop_layers (which "
                "layers)"
            )
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
