"""The recovery report: what is checked before hours of work, what is measured, and the files that come of it."""

import datetime
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.core.artifacts import ensure_writable, package_versions, replace_json, replacing
from axolotl_sdft.core.errors import ConfigError, error_context, keyed
from axolotl_sdft.core.model_folder import slug
from axolotl_sdft.core.safe_output import masked
from axolotl_sdft.core.trained_on import weights_dir
from axolotl_sdft.evaluation.figures import ModelFigures, RecoveryReport
from axolotl_sdft.evaluation.records import training_curves, tried_removals
from axolotl_sdft.evaluation.spec import RecoverySpec

if TYPE_CHECKING:
    from axolotl_sdft.evaluation.measuring import Measuring

REPORT_FILE, JSON_FILE, CARD_FILE = "report.html", "report.json", "model_card.md"
HARNESS_FOLDER = "lm_eval"


def check_report(spec: RecoverySpec) -> None:
    """Refuse names, files, sizes and folders that would stop the report later. No model is loaded.

    Raises:
        SdftError: One of them can't work; the message names its key.
    """
    from axolotl_sdft.evaluation.measures.answer_accuracy import require_template
    from axolotl_sdft.evaluation.measures.speed import check_speed
    from axolotl_sdft.inference.loading import require_packages
    from axolotl_sdft.inference.prompts import load_tokenizer

    config = spec.config
    require_packages("recovery_report", **config.placement)
    ensure_writable(spec.output_dir, "recovery_report.output_dir")
    _ = spec.prompts
    if config.exact_match is not None:
        _check_exact_match(spec)
    if config.lm_eval is not None:
        from axolotl_sdft.evaluation.measures.task_scores import check_tasks

        check_tasks(config.lm_eval)
    check_speed(spec.models, config.speed, trust_remote_code=spec.trust_remote_code)
    with error_context(keyed(lambda _err: "recovery_report: ")):
        tokenizer = load_tokenizer(
            spec.seed.folder, trust_remote_code=spec.trust_remote_code, chat_template=spec.chat_template
        )
    require_template(tokenizer)


def _check_exact_match(spec: RecoverySpec) -> None:
    from axolotl_sdft.evaluation.measures.answer_accuracy import right_answer_checks

    assert spec.config.exact_match is not None
    right_answer_checks(spec.config.exact_match)
    if not spec.held_out:
        raise ConfigError(
            "recovery_report.exact_match is set, but there are no held-out rows; set "
            "recovery_report.held_out.path, test_datasets or val_set_size (from Python, pass held_out), or remove "
            "exact_match"
        )


def run_report(spec: RecoverySpec) -> RecoveryReport:
    """Return the report. What was measured before, with the same models, settings and rows, is not measured again.

    A measure that fails for one model becomes a note, so that the figures of the others are not lost.

    Raises:
        SdftError: The seed model can't be measured.
    """
    from axolotl_sdft.evaluation.measuring import Measuring

    measured = Measuring(spec)
    models = tuple(measured.figures())
    others = [model for model in spec.models[1:] if model.name in measured.fingerprints]
    tried = (tried_removals(weights_dir(model.folder)) for model in others)
    removals, removal_measure = next((found for found in tried if found[0]), ((), ""))
    return RecoveryReport(
        models=models,
        settings=masked(spec.config.model_dump(mode="json")),
        notes=(*spec.notes, *measured.notes),
        provenance=_provenance(spec, measured),
        answers=measured.answers,
        curves=tuple(curve for model in others for curve in training_curves(model.name, model.folder)),
        removals=removals,
        removal_measure=removal_measure,
        task_kinds=measured.task_kinds,
        unmeasured=unmeasured(spec, models, measured.task_kinds),
        harness=measured.harness,
    )


def unmeasured(spec: RecoverySpec, models: Sequence[ModelFigures], task_kinds: Mapping[str, str]) -> dict[str, str]:
    """Return by capability why nothing of it was measured of any model, and what to set; empty where all was."""
    no_rows = (
        "there are no held-out rows; set recovery_report.held_out.path, test_datasets or val_set_size (from Python, "
        "pass held_out)"
    )
    config, reasons = spec.config, {}
    if not any(model.held_out for model in models):
        reasons["likelihood of held-out answers"] = no_rows if not spec.held_out else "see the notes"
    if "multiple_choice" not in task_kinds.values():
        reasons["multiple choice"] = (
            "set recovery_report.lm_eval, which needs the data of its tasks"
            if config.lm_eval is None
            else "no task of recovery_report.lm_eval is one, or none could be measured; name arc_challenge, for one"
        )
    if config.exact_match is None:
        how = "set recovery_report.exact_match, with the checks that an answer must pass"
        reasons["right answers"] = how if spec.held_out else f"{no_rows}, and recovery_report.exact_match"
    elif not config.exact_match.pass_at:
        reasons["pass@k"] = "set recovery_report.exact_match.pass_at, such as [1, 5], to have answers sampled"
    if not any(model.tool_calls for model in models):
        reasons["tool calls"] = (
            "no reference among the held-out rows that are answered calls a tool" if spec.held_out else no_rows
        )
    if not any(model.refusals for model in models):
        reasons["refusals"] = "no model answered the general prompts; see the notes"
    return reasons


def _provenance(spec: RecoverySpec, measured: "Measuring") -> dict[str, Any]:
    packages = ("torch", "transformers", "peft", "lm_eval")
    return {
        **spec.provenance,
        "general_prompts": spec.config.general_prompts.path or "those that come with the package",
        "model_fingerprints": measured.fingerprints,
        "device": measured.device,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "created": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
        "package_versions": package_versions(*packages),
    }


def write_report(report: RecoveryReport, folder: Path) -> dict[str, Path]:
    """Write page, figures and model card section into a folder; return their paths by what they are.

    Beside them, ``lm_eval`` holds a folder for each model with a results file as lm-evaluation-harness writes it.

    Raises:
        ArtifactError: The disk refuses.
    """
    from axolotl_sdft.evaluation.report.model_card import model_card_section
    from axolotl_sdft.evaluation.report.page import render_page

    paths = {"report": folder / REPORT_FILE, "figures": folder / JSON_FILE, "model card section": folder / CARD_FILE}
    for what, text in (("report", render_page(report)), ("model card section", model_card_section(report))):
        with replacing(paths[what]) as temporary:
            temporary.write_text(text, encoding="utf-8")
    replace_json(paths["figures"], finite(report.to_json()))
    harness = {f"lm_eval results of {name}": _write_harness(name, report, folder) for name in report.harness}
    return paths | harness


def _write_harness(name: str, report: RecoveryReport, folder: Path) -> Path:
    """Write what the harness says of a model where its own tools look: in a folder for each, named by the time."""
    results = report.harness[name]
    measured = datetime.datetime.fromtimestamp(results.get("date") or 0.0)
    path = folder / HARNESS_FOLDER / slug(name) / f"results_{measured.isoformat().replace(':', '-')}.json"
    replace_json(path, finite(results))
    return path


def finite(value: Any) -> Any:
    """Return a JSON-like value with None for numbers that are not finite, which JSON can't hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
