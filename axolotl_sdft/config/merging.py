"""The settings of merging two trained models into one."""

from typing import Literal

from pydantic import ByteSize, Field, field_validator

from axolotl_sdft.config.block import Block, Size


class MergeConfig(Block):
    """Two models of the same shape become one, by spherical linear interpolation of their weights."""

    models: tuple[str, ...] = ("base_model", "output_dir")
    """The two: folders of checkpoints or of LoRA adapters, Hub ids, or the words ``base_model`` (what training starts
    from: the pruned model where layers are pruned) and ``output_dir`` (what it ends with).
    Settings and tokenizer come from the first."""

    method: Literal["slerp", "linear"] = "slerp"
    """``slerp`` keeps the length of the weights on the way from one model to the other; ``linear`` averages them."""

    ratio: float = Field(0.5, ge=0.0, le=1.0)
    """How far to go from the first model, 0, to the second, 1."""

    sweep: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Ratios that ``axolotl sdft-merge --sweep`` tries and measures as ``recovery_report`` says. 0 and 1 are the
    models themselves; the others are written beside the merged model's folder, to one whose name ends in
    ``_sweep``."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the merged weights. ``auto``: that of the first model. Computed in float32 in any case."""

    max_shard_size: Size = ByteSize(5 * 10**9)
    """Largest weight file of the merged model, such as ``500MB`` or ``5GB``."""

    output_dir: str | None = None
    """Folder of the merged model. Unset: ``sdft_merged`` in ``output_dir``."""

    @field_validator("models")
    @classmethod
    def _two_models_are_merged(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if len(models) != 2:
            raise ValueError(f"models names {len(models)}, but two are merged at a time; merge the result with a third")
        if models[0] == models[1]:
            raise ValueError(f"models names {models[0]!r} twice; name two models")
        return models

    @field_validator("sweep")
    @classmethod
    def _sweep_holds_ratios(cls, sweep: tuple[float, ...]) -> tuple[float, ...]:
        wrong = [ratio for ratio in sweep if not 0.0 <= ratio <= 1.0]
        if wrong or not sweep:
            raise ValueError(f"sweep is {list(sweep)}; name ratios from 0 to 1, such as [0.25, 0.5, 0.75]")
        return tuple(sorted(set(sweep)))
