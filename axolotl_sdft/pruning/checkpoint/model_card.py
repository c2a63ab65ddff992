"""Writes the model card of a pruned checkpoint: ``README.md`` with metadata for the Hugging Face Hub.

Axolotl copies each file of the checkpoint into the folder of a merged adapter, the card too. So it says what is true of
both, and names no folder of this machine.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from axolotl_sdft.pruning.patching.record import card_cell

CARD_FILE = "README.md"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""What the seed model's own card says that holds without some layers as well."""
_TAGS = ("axolotl-sdft", "layer-pruning")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)


def write_model_card(folder: Path, seed_dir: Path, provenance: Mapping[str, Any]) -> None:
    """Write the card of a pruned checkpoint into its folder.

    Args:
        folder: Where the checkpoint is written.
        seed_dir: The seed model, whose card names the licence.
        provenance: What the provenance file of the checkpoint holds.
    """
    (folder / CARD_FILE).write_text(model_card(seed_dir, provenance), encoding="utf-8")


def model_card(seed_dir: Path, provenance: Mapping[str, Any]) -> str:
    """Return the card: metadata in YAML, then Markdown."""
    dropped, before = provenance["drop_layers"], provenance["num_layers_before"]
    seed = _public_name(str(provenance["seed_model"]))
    metadata = yaml.safe_dump(_metadata(seed_dir, seed), sort_keys=False, allow_unicode=True)
    return f"""\
---
{metadata}---

<!-- Before you publish: say what the model was trained on{_licence_request(metadata)}. -->

# {seed.rpartition("/")[2]} without {len(dropped)} of its {before} layers

`{seed}` from which {len(dropped)} of {before} decoder layers were removed. A model that was trained from it carries
this card on, such as one into which a LoRA adapter was merged; then the layers that stay were trained since.

| | |
|---|---|
| Layers removed, counted from 0 | {", ".join(map(str, dropped))} |
| Layers left | {provenance["num_layers_after"]} of {before} |
| Parameters | {_millions(provenance["parameters_after"])} of {_millions(provenance["parameters_before"])} |
| Layers chosen by | {_chooser(provenance)} |
| Patch | {card_cell(provenance.get("patch"))} |
| Versions | {_versions(provenance)} |
"""


def _metadata(seed_dir: Path, seed: str) -> dict[str, Any]:
    inherited = _seed_metadata(seed_dir)
    own: dict[str, Any] = {"base_model": seed} if _HUB_ID.fullmatch(seed) else {}
    own |= {key: inherited[key] for key in _INHERITED if inherited.get(key)}
    return own | {"library_name": "transformers", "tags": list(_TAGS)}


def _seed_metadata(seed_dir: Path) -> dict[str, Any]:
    """Return the metadata of the seed model's card; empty where there is none that can be read."""
    try:
        found = _FRONT_MATTER.match((seed_dir / CARD_FILE).read_text(encoding="utf-8").replace("\r\n", "\n"))
        metadata = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _public_name(name: str) -> str:
    """Return a Hub id as it is, and of a folder of this machine its own name."""
    path = Path(name).expanduser()
    if _HUB_ID.fullmatch(name) and not path.is_dir():
        return name
    return path.absolute().name or "model"


def _licence_request(metadata: str) -> str:
    return "" if "license:" in metadata else ", and add the seed model's `license` to the lines above"


def _chooser(provenance: Mapping[str, Any]) -> str:
    metric = provenance.get("metric")
    return f"`{metric}`" if metric else "hand"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f}M"


def _versions(provenance: Mapping[str, Any]) -> str:
    versions = provenance.get("package_versions") or {}
    return ", ".join(f"{package} {version}" for package, version in versions.items()) or "not recorded"
