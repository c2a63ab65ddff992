"""Lets ``self-distill --logits`` write what Axolotl's own plugin for knowledge distillation trains on."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.integrations.axolotl import compat
from axolotl_sdft.integrations.axolotl.datasets import rewritten_entry

if TYPE_CHECKING:
    from axolotl_sdft.config import TransformersGeneration
    from axolotl_sdft.distillation.output.logits import TokenizedRow
    from axolotl_sdft.distillation.spec import DistillationSpec

KD_TYPE = "axolotl.integrations.kd.chat_template"
"""The dataset type that reads the columns."""


def check_logits(specs: "list[tuple[Any, DistillationSpec]]") -> None:
    """Refuse datasets that the plugin for knowledge distillation can't read, before anything is rewritten.

    Raises:
        ConfigError: An entry is of another type than ``chat_template``.
    """
    for entry, spec in specs:
        kind = entry.get("type")
        if kind != "chat_template":
            raise ConfigError(
                f"{spec.where}.type is {kind!r}, but --logits writes for {KD_TYPE}, which reads conversations alone; "
                "convert the rows to messages and set type: chat_template, or leave out --logits"
            )


def logit_lines(cfg: Any, entry: Any, spec: "DistillationSpec", distilled_dir: Path, top_k: int) -> Iterator[str]:
    """Write the seed model's predictions beside rewritten rows, unless they are there; yield what was written.

    Args:
        cfg: The raw configuration.
        entry: Of ``datasets``.
        spec: How its rows were rewritten.
        distilled_dir: The rewritten rows.
        top_k: Tokens kept for each position.
    """
    from datasets import load_from_disk

    from axolotl_sdft.core.identity import model_identity
    from axolotl_sdft.distillation.output.logits import logits_dir, write_logits
    from axolotl_sdft.inference.loading import load_seed_model

    dataset = load_from_disk(str(distilled_dir))
    rows = list(tokenized_rows(cfg, entry, dataset))
    folder = logits_dir(distilled_dir, rows, top_k, model_identity(spec.seed_dir))
    if not folder.exists():
        write_logits(load_seed_model(spec.seed_dir, _local(spec.config.generation, cfg)), dataset, rows, top_k, folder)
    num_rows = len(load_from_disk(str(folder)))
    yield f"{spec.where}: {num_rows} of {len(dataset)} rows with the seed model's {top_k} most likely tokens: {folder}"
    yield (
        "  to train on them, add axolotl.integrations.kd.KDPlugin to plugins, set kd_trainer: true, kd_alpha and "
        f"kd_ce_alpha, and write in the place of {spec.where}: {{{_as_yaml(kd_entry(entry, folder))}}}"
    )


def kd_entry(entry: Any, folder: Path) -> dict[str, Any]:
    """Return the dataset entry that trains on a folder of predictions."""
    from axolotl_sdft.distillation.output.logits import LOG_PROBS_COLUMN

    kept = rewritten_entry(entry, folder)
    return {**kept, "type": KD_TYPE, "logprobs_field": LOG_PROBS_COLUMN}


def tokenized_rows(cfg: Any, entry: Any, dataset: Any) -> "Iterator[TokenizedRow]":
    """Yield the rows as Axolotl tokenizes them for training; those longer than ``sequence_len`` are left out."""
    from axolotl.loaders import load_tokenizer
    from axolotl.prompt_strategies import load
    from axolotl.utils.dict import DictDefault

    from axolotl_sdft.distillation.output.logits import TokenizedRow

    validated = compat.validated(cfg)
    # Axolotl fills these in later.
    validated.base_model_config = validated.base_model_config or validated.base_model
    validated.tokenizer_config = validated.tokenizer_config or validated.base_model_config
    strategy = load("chat_template", load_tokenizer(validated), validated, DictDefault(dict(entry)))
    limit = validated.sequence_len or 2048
    for place, row in enumerate(dataset):
        tokens = strategy.tokenize_prompt(row)
        if len(tokens["input_ids"]) <= limit:
            yield TokenizedRow(place, tuple(tokens["input_ids"]), tuple(tokens["labels"]))


def _local(generation: Any, cfg: Any) -> "TransformersGeneration":
    """Return how the seed model is loaded here, also where a server rewrites the answers."""
    from axolotl_sdft.config import TransformersGeneration

    if isinstance(generation, TransformersGeneration):
        return generation
    return TransformersGeneration(trust_remote_code=bool(cfg.get("trust_remote_code")))


def _as_yaml(entry: dict[str, Any]) -> str:
    import json

    return ", ".join(f"{key}: {json.dumps(value)}" for key, value in entry.items() if value is not None)
