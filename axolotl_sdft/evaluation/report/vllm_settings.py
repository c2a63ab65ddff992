"""How vLLM is told to use a model as draft of the seed. Imports nothing of vLLM.

Read in vLLM's own settings: ``draft_model`` works from 0.15 on (0.10 to 0.14 refuse it), ``use_heterogeneous_vocab``
was seen from 0.25 on. Up to 0.32, a draft of another vocabulary size than the seed's is refused without the latter.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from axolotl_sdft.core.model_folder import is_adapter, read_config
from axolotl_sdft.evaluation.figures import RecoveryReport


def vllm_lines_of(report: RecoveryReport) -> dict[str, list[str]]:
    """Return how vLLM is started with each model that a report tried as draft, by the model's name."""
    seed, others = report.models[0], report.models[1:]
    num_tokens = (report.settings.get("drafting") or {}).get("num_draft_tokens")
    if num_tokens is None:
        return {}
    return {
        model.name: vllm_lines(Path(seed.folder), Path(model.folder), num_tokens) for model in others if model.drafting
    }


def vllm_lines(seed_dir: Path, draft_dir: Path, num_draft_tokens: int) -> list[str]:
    """Return what serves the seed with a draft: comments, a command for a POSIX shell, and the same in Python.

    A LoRA adapter can't be a draft in vLLM. For one, a comment says how to merge it, and the others name the folder
    that ``axolotl merge-lora`` writes.
    """
    lines = ["# needs vllm >= 0.15, and num_speculative_tokens of your choice: more pay where more are accepted"]
    if is_adapter(draft_dir):
        lines.append(
            "# vLLM drafts with no LoRA adapter: merge it first with `axolotl merge-lora`, which writes ./merged"
        )
        draft_dir = draft_dir / "merged"
    settings: dict[str, Any] = {
        "method": "draft_model",
        "model": str(draft_dir),
        "num_speculative_tokens": num_draft_tokens,
    }
    sizes = [_vocabulary_size(folder) for folder in (seed_dir, draft_dir)]
    if None not in sizes and sizes[0] != sizes[1]:
        lines.append(f"# the embeddings have {sizes[0]} and {sizes[1]} rows, which needs vllm >= 0.25")
        settings["use_heterogeneous_vocab"] = True
    command = ["vllm", "serve", str(seed_dir), "--speculative-config", json.dumps(settings, ensure_ascii=False)]
    return [*lines, shlex.join(command), f"vllm.LLM(model={str(seed_dir)!r}, speculative_config={settings!r})"]


def _vocabulary_size(model_dir: Path) -> int | None:
    """Return how many tokens the config counts, padding included; None where there is no config or it does not say."""
    config = read_config(model_dir) if (model_dir / "config.json").is_file() else {}
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    return size if isinstance(size, int) else None
