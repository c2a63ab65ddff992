"""The texts of a calibration: one dataset, or a mixture with shares, the seed model's own answers among them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axolotl_sdft.config import CalibrationConfig, GeneralPromptsConfig, TransformersGeneration
from axolotl_sdft.core.artifacts import (
    DEFAULT_ROOT,
    atomic_folder,
    ensure_writable,
    find_or_make,
    fingerprint,
    read_json,
    write_json,
)
from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.core.identity import model_identity
from axolotl_sdft.core.model_folder import slug
from axolotl_sdft.evaluation.spec import general_prompts
from axolotl_sdft.integrations.axolotl.calibration import calibration_entries, calibration_texts
from axolotl_sdft.integrations.axolotl.datasets import entry_fingerprint

LOG = logging.getLogger(__name__)

_ANSWERS_FILE = "answers.json"
_MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Source:
    """Where some of the calibration text comes from: entries of datasets, or prompts that the seed model answers."""

    config: CalibrationConfig
    """How many rows are read."""
    entries: tuple[tuple[str, Any], ...] = ()
    prompts: tuple[str, ...] = ()

    @property
    def identity(self) -> Any:
        """What changes with the text."""
        if self.prompts:
            return {"prompts": fingerprint(self.prompts), "max_new_tokens": _MAX_NEW_TOKENS}
        return [entry_fingerprint(entry) for _, entry in self.entries]


def calibration_sources(cfg: Any, calibration: CalibrationConfig) -> list[Source]:
    """Return what the text comes from; no rows are read and nothing is generated."""
    if not calibration.parts:
        return [Source(calibration, tuple(calibration_entries(cfg, calibration)))]
    sources = []
    for number, (part, config) in enumerate(zip(calibration.parts, calibration.sources, strict=True)):
        if part.general_prompts:
            sources.append(Source(config, prompts=_prompts(config.num_samples)))
        else:
            where = f"layer_pruning.calibration[{number}]"
            sources.append(Source(config, tuple(calibration_entries(cfg, config, where))))
    return sources


def source_texts(cfg: Any, sources: Sequence[Source], seed_dir: Path) -> list[str]:
    """Return the texts of all sources.

    Raises:
        DatasetError: A source names no dataset, or one that can't be read.
    """
    texts: list[str] = []
    for source in sources:
        if source.prompts:
            texts += _answered(cfg, source.prompts, seed_dir)
        elif source.entries:
            texts += calibration_texts(cfg, source.entries, source.config, seed_dir)
        else:
            raise DatasetError(
                "neither datasets, pretraining_dataset nor layer_pruning.calibration.path is set; set the last, or "
                "layer_pruning.patch: none"
            )
    return texts


def _prompts(count: int) -> tuple[str, ...]:
    prompts = general_prompts(GeneralPromptsConfig(num_samples=count))
    if len(prompts) < count:
        LOG.info("the calibration asks for %d general prompts; there are %d", count, len(prompts))
    return tuple(prompts)


def _answered(cfg: Any, prompts: Sequence[str], seed_dir: Path) -> list[str]:
    """Return conversations of prompts and the seed model's greedy answers, generated unless they are kept."""
    from axolotl_sdft.inference.prompts import load_tokenizer

    tokenizer = load_tokenizer(
        seed_dir, trust_remote_code=bool(cfg.get("trust_remote_code")), chat_template=cfg.get("chat_template_jinja")
    )
    name = f"{slug(str(cfg.base_model))}-general-{fingerprint([model_identity(seed_dir), prompts, _MAX_NEW_TOKENS])}"
    folder = Path(DEFAULT_ROOT).absolute() / name
    ensure_writable(folder.parent, "layer_pruning.calibration (answers to general prompts)")

    def make() -> None:
        answers = _generated(prompts, seed_dir)
        with atomic_folder(folder) as temporary:
            write_json(temporary / _ANSWERS_FILE, dict(zip(prompts, answers, strict=True)))

    find_or_make(folder, make, lambda: (folder / _ANSWERS_FILE).is_file())
    answered = {prompt: answer for prompt, answer in read_json(folder / _ANSWERS_FILE).items() if answer.strip()}
    if len(answered) < len(prompts):
        LOG.warning(
            "the seed model gave no answer to %d of %d general prompts", len(prompts) - len(answered), len(prompts)
        )
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], tokenize=False
        )
        for prompt, answer in answered.items()
    ]


def _generated(prompts: Sequence[str], seed_dir: Path) -> list[str]:
    from axolotl_sdft.inference.backends import transformers_backend
    from axolotl_sdft.inference.interfaces import Prompt

    backend = transformers_backend(seed_dir, TransformersGeneration(max_new_tokens=_MAX_NEW_TOKENS))
    backend.check()
    asked = [Prompt((number, 0), ({"role": "user", "content": text},)) for number, text in enumerate(prompts)]
    answers = [""] * len(prompts)
    try:
        for batch, written in backend.generate(backend.batches(asked)):
            for prompt, answer in zip(batch, written, strict=True):
                answers[prompt.key[0]] = answer.text
    finally:
        backend.close()
    return answers
