"""Writes the model card of a pruned checkpoint: ``README.md`` with metadata for the Hugging Face Hub.

Axolotl copies each file of the checkpoint into the folder of a merged adapter, the card too. So it says what is true of
both, and names no folder of this machine.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from axolotl_sdft.core.cards import CARD_FILE, card_with, is_hub_id, metadata_of, public_name, versions_text
from axolotl_sdft.pruning.patching.record import card_cell

_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""What the seed model's own card says that holds without some layers as well."""
_TAGS = ("axolotl-sdft", "layer-pruning")


def write_model_card(folder: Path, seed_dir: Path, provenance: Mapping[str, Any]) -> None:
    """Write the card of a pruned checkpoint into its folder.

    Args:
        folder: Where the checkpoint is written.
        seed_dir: The seed model, whose card names the licence.
        provenance: What the provenance file of the checkpoint holds.
    """
    (folder / CARD_FILE).write_text(model_card(seed_dir, provenance), encoding="utf-8")


def model_card(seed_dir: Path, provenance: Mapping[str, Any]) -> str:
    """Return the card."""
    dropped, before = provenance["drop_layers"], provenance["num_layers_before"]
    seed = public_name(str(provenance["seed_model"]))
    data = _metadata(seed_dir, seed)
    markdown = f"""\
<!-- Before you publish: say what the model was trained on{_licence_request(data)}. -->

# {seed.rpartition("/")[2]} without {len(dropped)} of its {before} layers

`{seed}` from which {len(dropped)} of {before} decoder layers were removed. A model that was trained from it carries
this card on, such as one into which a LoRA adapter was merged; then the layers that stay were trained since.

{card_body(provenance)}"""
    return card_with(data, markdown)


def card_body(provenance: Mapping[str, Any]) -> str:
    """Return the table of what was removed, and how."""
    before = provenance["num_layers_before"]
    return f"""\
| | |
|---|---|
| Layers removed, counted from 0 | {", ".join(map(str, provenance["drop_layers"]))} |
| Layers left | {provenance["num_layers_after"]} of {before} |
| Parameters | {_millions(provenance["parameters_after"])} of {_millions(provenance["parameters_before"])} |
| Layers chosen by | {_chooser(provenance)} |
| Patch | {card_cell(provenance.get("patch"))} |
| Versions | {versions_text(provenance)} |
"""


def inherited_metadata(seed_dir: Path) -> dict[str, Any]:
    """Return what the seed model's own card says that holds for what is made of it, its licence above all."""
    said = metadata_of(seed_dir)
    return {key: said[key] for key in _INHERITED if said.get(key)}


def _metadata(seed_dir: Path, seed: str) -> ModelCardData:
    return ModelCardData(
        base_model=seed if is_hub_id(seed) else None,
        library_name="transformers",
        tags=list(_TAGS),
        **inherited_metadata(seed_dir),
    )


def _licence_request(data: ModelCardData) -> str:
    return "" if data.license else ", and add the seed model's `license` to the lines above"


def _chooser(provenance: Mapping[str, Any]) -> str:
    metric = provenance.get("metric")
    return f"`{metric}`" if metric else "hand"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f}M"
