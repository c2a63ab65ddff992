"""Cards and reports as others may see them: models by their public names, and no folder of this machine."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData
from markupsafe import escape

from axolotl_sdft.core.artifacts import read_json
from axolotl_sdft.core.cards import CARD_FILE, card_with, escaped, is_hub_id, is_local, public_name
from axolotl_sdft.core.model_folder import is_adapter
from axolotl_sdft.core.texts import texts_with_keys
from axolotl_sdft.core.trained_on import PROVENANCE_FILE
from axolotl_sdft.pruning.checkpoint.model_card import card_body, inherited_metadata

if TYPE_CHECKING:
    from axolotl_sdft.evaluation.summary import Artifacts

_SECTION_FILE = "model_card.md"
_REPORT_FILES = ("report.html", "report.json")
_PATH = re.compile(r"""(?<![\w.<>:/-])(?:~|\.{1,2})?/[^\s'"`,;:()<>|]+""")
_COMMENT = re.compile(r"<!--.*?-->\s*", re.DOTALL)


def published_model_card(
    folder: Path, artifacts: "Artifacts", report_dir: Path | None, base: str | None, licence: str | None
) -> str:
    """Return the card of a pruned or trained model: what it is made of, its licence, how, and the report's figures.

    Args:
        folder: The model.
        artifacts: What the stages made.
        report_dir: Where the recovery report of this model is, whose section is added; None where there is none.
        base: What an adapter stands on, by its Hub id; None for a whole model.
        licence: The Hub's name of a licence; unset, the seed model's where its card says it.
    """
    provenance = _provenance(artifacts)
    seed = public_name(str(provenance["seed_model"])) if provenance else _seed_name(artifacts)
    data = _metadata(artifacts, seed, base, licence)
    parts = [_title(folder, seed, provenance, is_pruned_only=folder == artifacts.pruned_dir)]
    if provenance:
        parts.append(card_body(provenance))
    parts += list(_made_from(artifacts)) if folder != artifacts.pruned_dir else []
    if report_dir is not None and (report_dir / _SECTION_FILE).is_file():
        parts.append(_COMMENT.sub("", (report_dir / _SECTION_FILE).read_text(encoding="utf-8")))
    return card_with(data, "\n\n".join(part.strip() for part in parts) + "\n")


def published_report(report_dir: Path, licence: str | None) -> dict[str, str]:
    """Return the files of a recovery report by their path in a repository, with the last part of each path of this
    machine in its place."""
    report = read_json(report_dir / "report.json")
    folder = report_dir.absolute()
    paths = (*_local_paths(report), str(report_dir), str(folder), str(folder.parent))
    names = {path: public_name(path) for path in paths if Path(path).name}
    files = {}
    for name in _REPORT_FILES:
        if (report_dir / name).is_file():
            text = (report_dir / name).read_text(encoding="utf-8")
            files[name] = _renamed(text, names)
    section = report_dir / _SECTION_FILE
    body = _COMMENT.sub("", section.read_text(encoding="utf-8")) if section.is_file() else "# Recovery report\n"
    data = ModelCardData(tags=["axolotl-sdft", "recovery-report"], license=licence)
    files[CARD_FILE] = card_with(data, body)
    return files


def _local_paths(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a report names of this machine: its models, paths among its settings, and those within sentences."""
    yield from (model["folder"] for model in report["models"] if model.get("folder"))
    settings = {key: value for key, value in (report.get("settings") or {}).items() if key != "prompts"}
    provenance, notes = report.get("provenance"), report.get("notes")
    yield from (text for _, text in texts_with_keys([settings, provenance]) if is_local(text))
    for _, sentence in texts_with_keys([provenance, notes]):
        yield from _PATH.findall(sentence)


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """Replace paths by names, the longest first: one may lie in another.

    JSON and HTML write some letters in their own ways, and the page breaks settings into lines at spaces.
    """
    for path in sorted(names, key=len, reverse=True):
        in_json = {path, json.dumps(path)[1:-1], json.dumps(path, ensure_ascii=False)[1:-1]}
        for written in in_json | {str(escape(form)) for form in in_json}:
            pattern = r"\s+".join(map(re.escape, written.split(" ")))
            text = re.sub(rf"(?<![\w.<]){pattern}", names[path].replace("\\", r"\\"), text)
    return text


def _provenance(artifacts: "Artifacts") -> dict[str, Any]:
    folder = artifacts.pruned_dir
    return read_json(folder / PROVENANCE_FILE) if folder and (folder / PROVENANCE_FILE).is_file() else {}


def _seed_name(artifacts: "Artifacts") -> str:
    return public_name(artifacts.seed_name or str(artifacts.seed_dir or "model"))


def _metadata(artifacts: "Artifacts", seed: str, base: str | None, licence: str | None) -> ModelCardData:
    inherited = inherited_metadata(artifacts.seed_dir) if artifacts.seed_dir is not None else {}
    if licence is not None:
        inherited = {key: value for key, value in inherited.items() if not key.startswith("license")}
        inherited["license"] = licence
    return ModelCardData(
        base_model=base or (seed if is_hub_id(seed) else None),
        library_name="peft" if base else "transformers",
        tags=["axolotl-sdft"],
        **inherited,
    )


def _title(folder: Path, seed: str, provenance: Mapping[str, Any], is_pruned_only: bool) -> str:
    name = seed.rpartition("/")[2]
    if provenance:
        name += f" without {len(provenance['drop_layers'])} of its {provenance['num_layers_before']} layers"
    kind = "" if is_pruned_only else ", trained (a LoRA adapter)" if is_adapter(folder) else ", trained"
    link = f"[{escaped(seed)}](https://huggingface.co/{seed})" if is_hub_id(seed) else escaped(seed)
    return f"# {escaped(name)}{kind}\n\nMade from {link} with axolotl-sdft."


def _made_from(artifacts: "Artifacts") -> Iterator[str]:
    """Yield what the model was trained on."""
    from axolotl_sdft.distillation.output.dataset import read_summary
    from axolotl_sdft.distillation.rows.left_alone import rewritten_of

    lines = [f"- a self-distilled dataset: {rewritten_of(read_summary(folder))}" for folder in artifacts.distilled_dirs]
    yield "## Trained on\n\n" + ("\n".join(lines) or "Rows as they were; say which, and under which licence.")
