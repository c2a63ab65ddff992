"""Writes the dataset card: ``README.md`` with metadata for the Hugging Face Hub, and how the rows were made.

The card is made to be published, so it names no folder of this machine, no server and no key.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCardData

from axolotl_sdft.core.cards import (
    CARD_FILE,
    card_with,
    code,
    fenced,
    is_hub_id,
    metadata_of,
    public_name,
    versions_text,
)
from axolotl_sdft.distillation.output.gap import gap_text, is_pure_sample

_SHAPING = ("template", "checks", "max_attempts", "selection", "min_attempts", "on_reject")
_SHAPING_GENERATION = ("backend", "model", "max_new_tokens", "temperature", "top_p", "seed", "dtype")


def write_card(folder: Path, dataset_dir: Path, summary: dict[str, Any]) -> None:
    """Write the card into a folder.

    Args:
        folder: Where it is written.
        dataset_dir: Where the dataset will be.
        summary: What ``summary.json`` holds.
    """
    (folder / CARD_FILE).write_text(card_text(dataset_dir, summary), encoding="utf-8")


def published_card(
    dataset_dir: Path, summary: dict[str, Any], rows_file: str, seed_dir: Path | None, licence: str | None
) -> str:
    """Return the card under which a dataset is published: without requests to its author, and with a licence.

    Args:
        dataset_dir: Where the dataset is.
        summary: What ``summary.json`` holds.
        rows_file: Where its rows are in the repository.
        seed_dir: The seed model, whose card names the licence that its answers come under; None where it is gone.
        licence: The Hub's name of a licence for the dataset itself; unset, it stays unsaid.
    """
    seed_licence = metadata_of(seed_dir).get("license") if seed_dir is not None else None
    data = _metadata(summary, rows_file, licence)
    about = [
        f"Licence of the seed model, whose terms may hold for what it wrote: {seed_licence or 'not known here'}.",
        f"Licence of these rows: {licence or 'not said; the original rows have one of their own'}.",
    ]
    return card_with(data, f"{_markdown(dataset_dir, summary)}\n## Licence\n\n{chr(10).join(about)}\n")


def publish_commands(dataset_dir: Path) -> str:
    """Return the Python lines that upload a dataset with its card.

    The card goes first: ``push_to_hub`` adds columns and sizes to the card that it finds there, and would write an
    empty one otherwise. It takes nothing from the folder but the rows.
    """
    return f'''\
from datasets import load_from_disk
from huggingface_hub import HfApi

folder = {str(dataset_dir)!r}
name, card, api = "your-name/your-dataset", "{CARD_FILE}", HfApi()
api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
api.upload_file(repo_id=name, repo_type="dataset", path_in_repo=card, path_or_fileobj=f"{{folder}}/{{card}}")
load_from_disk(folder).push_to_hub(name, split="train")'''


def card_text(dataset_dir: Path, summary: dict[str, Any]) -> str:
    """Return the card."""
    request = """\
<!-- Before you publish: say where the original rows come from and under which licence, and add `license` and `language`
to the lines above; neither is known to the program that wrote this. The commands that upload this card with the rows
stand at the end of report.html. -->

"""
    return card_with(_metadata(summary), request + _markdown(dataset_dir, summary))


def _markdown(dataset_dir: Path, summary: dict[str, Any]) -> str:
    provenance = summary["provenance"]
    seed_model = _linked(public_name(provenance["seed_model"]))
    return f"""\
# Self-distilled answers

{_origin(provenance["settings"], seed_model)}

| | |
|---|---|
| Rows | {summary["rows"] - summary["rows_dropped"]:,} of {summary["rows"]:,} original ones |
| Trained answers rewritten | {summary["turns_distilled"]:,} of {_num_trained(summary):,} |
| Answers rejected | {_rejections(summary)} |
| Answers left alone | {_left_alone(summary)} |
| Distribution gap | {_gap(summary["gap"], provenance["settings"]["generation"])} |

An answer that failed a check {_fate(provenance["settings"]["on_reject"])}. Two columns say so for each row:
`sdft_source` is `distilled` where at least one answer was rewritten and `original` elsewhere; `sdft_reasons` holds for
each trained answer why it was not rewritten, or an empty text; answers that were left alone come last. All other
columns are those of the original rows.

## How it was made

- Seed model: {seed_model}, fingerprint `{provenance["seed_model_fingerprint"]}`
- Finished: {provenance["created"]}
- Versions: {versions_text(provenance)}
- Dataset: `{dataset_dir.name}`

{fenced(yaml.safe_dump(_public_settings(provenance["settings"]), sort_keys=False, allow_unicode=True), "yaml")}
"""


def is_unaided(settings: Mapping[str, Any]) -> bool:
    """Say whether the seed model never saw an original answer."""
    return settings.get("template") in ("unaided", ["unaided"])


def _origin(settings: Mapping[str, Any], seed_model: str) -> str:
    if is_unaided(settings):
        return f"""\
The answers of this dataset are those of {seed_model} itself, which saw the questions alone. Training on them keeps the
model near to what it says anyway."""
    return f"""\
The answers of this dataset were rewritten by {seed_model} in its own words, guided by the original answers
(SDFT, arXiv 2402.13669). Training on them pulls the model less far from what it knows than training on the originals.\
"""


def _linked(name: str) -> str:
    """Return a model's name as code, with a link to its page where it has one."""
    return f"[{code(name)}](https://huggingface.co/{name})" if is_hub_id(name) else code(name)


def _metadata(summary: dict[str, Any], rows_file: str = "data-*.arrow", licence: str | None = None) -> DatasetCardData:
    """Return the card's metadata; the file pattern is that of the folder, which ``push_to_hub`` replaces by its own."""
    return DatasetCardData(
        license=licence,
        task_categories=["text-generation"],
        tags=["self-distilled", "axolotl-sdft", "synthetic"],
        size_categories=[size_category(summary["rows"] - summary["rows_dropped"])],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": rows_file}]}],
    )


def size_category(num_rows: int) -> str:
    """Return the Hub's name for a number of rows, such as ``1K<n<10K``."""
    bounds = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    for power, bound in enumerate(bounds, start=3):
        if num_rows < 10**power:
            return f"{bounds[power - 4]}<n<{bound}" if power > 3 else f"n<{bound}"
    return f"n>{bounds[-1]}"


def _public_settings(settings: dict[str, Any]) -> dict[str, Any]:
    generation = settings["generation"]
    chosen = {name: generation[name] for name in _SHAPING_GENERATION if generation.get(name) is not None}
    return {name: settings[name] for name in _SHAPING if settings.get(name) is not None} | {"generation": chosen}


def _rejections(summary: dict[str, Any]) -> str:
    return ", ".join(f"{code(name)} {count:,}" for name, count in summary["rejections"].items()) or "none"


def _num_trained(summary: dict[str, Any]) -> int:
    return int(summary["turns"] + summary["turns_left_alone"])


def _left_alone(summary: dict[str, Any]) -> str:
    reasons = summary["left_alone"].items()
    return ", ".join(f"{code(reason)} {counts['answers']:,}" for reason, counts in reasons) or "none"


def _gap(gap: dict[str, Any] | None, generation: dict[str, Any]) -> str:
    if gap is None:
        return "not measured"
    told = gap_text(gap["nats_per_token_before"], gap["nats_per_token_after"], is_pure_sample(generation))
    return f"{told} ({gap['answers']:,} answers under the seed model)"


def _fate(on_reject: str) -> str:
    return "took its whole row with it" if on_reject == "drop" else "left the original in its place"
