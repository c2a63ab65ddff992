"""Renders ``report.html``: one self-contained page with pictures that a person judges a recovery by, and forwards.

No script, no network, no picture files. All of it goes through escaping, whatever names, paths or settings hold.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from axolotl_sdft.core.cards import public_name
from axolotl_sdft.core.model_folder import is_adapter, read_config
from axolotl_sdft.core.pictures import note_on_pictures
from axolotl_sdft.core.texts import page_template
from axolotl_sdft.evaluation.figures import RecoveryReport
from axolotl_sdft.evaluation.report.charts import charts
from axolotl_sdft.evaluation.report.headline import SOURCES, headline, is_better
from axolotl_sdft.evaluation.report.table import CAPABILITIES, change, digits, percent_cell, plain_cell, sections

_TEMPLATE_FILE = "recovery_report.html.jinja"
_SHOWN_CHARS = 1200
_KINDS = {"yours": "your prompt", "general": "general prompt", "held out": "held-out prompt"}


def render_page(report: RecoveryReport) -> str:
    """Return the page."""
    top = headline(report)
    measured = [name for name in SOURCES if any(name in model.relative_to_seed for model in report.models)]
    return page_template(__package__, _TEMPLATE_FILE).render(
        report=report,
        title=title_of(report),
        top=top,
        change=change,
        is_better=is_better,
        percent_cell=percent_cell,
        forgetting=plain_cell(top.forgetting if top else None),
        digits=digits,
        drafts={name: "\n".join(lines) for name, lines in vllm_lines_of(report).items()},
        sources={name: SOURCES[name] for name in measured},
        sections=sections(report),
        capabilities=CAPABILITIES,
        kinds=_KINDS,
        shown_chars=_SHOWN_CHARS,
        settings=yaml.safe_dump(dict(report.settings), sort_keys=False, allow_unicode=True),
        provenance=_flat(report.provenance),
        charts=charts(report, top),
        note_on_pictures=note_on_pictures(),
        harness_tables=_harness_tables(report),
    )


def title_of(report: RecoveryReport) -> str:
    """Return what the report is about: the model, the data and the day, as far as they are known."""
    provenance = report.provenance
    model = public_name(str(provenance["seed_model"])) if provenance.get("seed_model") else ""
    data = str(provenance.get("data") or "")
    day = str(provenance.get("created") or "").partition(" ")[0]
    about = " on ".join(filter(None, (model, data)))
    return ", ".join(filter(None, (about, day)))


def _harness_tables(report: RecoveryReport) -> dict[str, str]:
    if not report.harness:
        return {}
    from axolotl_sdft.evaluation.measures.task_scores import results_table

    return {name: results_table(results) for name, results in report.harness.items()}


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Return provenance as texts; a mapping in it becomes one text."""
    return {
        name.replace("_", " "): ", ".join(f"{key} {item}" for key, item in value.items())
        if isinstance(value, Mapping)
        else str(value)
        for name, value in values.items()
    }


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
    """Return what serves the seed model with a draft: comments, a command for a POSIX shell, and the same in Python.

    Read in vLLM's own settings: ``draft_model`` works from 0.15 on (0.10 to 0.14 refuse it),
    ``use_heterogeneous_vocab`` was seen from 0.25 on. Up to 0.32, a draft of another vocabulary size than the seed
    model's is refused without the latter.

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
