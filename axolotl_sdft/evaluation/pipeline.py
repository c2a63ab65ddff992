"""The recovery report as a task: what is checked before hours of work, what comes of it, and the report's files."""

import datetime
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axolotl_sdft.config import RecoveryReportConfig
from axolotl_sdft.core.artifacts import ensure_writable, package_versions
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.core.safe_output import masked
from axolotl_sdft.core.sampling import evenly_spaced
from axolotl_sdft.evaluation.metrics import RecoveryReport
from axolotl_sdft.evaluation.models import ReportedModel
from axolotl_sdft.evaluation.store import write_whole
from axolotl_sdft.inference.interfaces import Target

if TYPE_CHECKING:
    from axolotl_sdft.evaluation.measuring import Measuring

REPORT_FILE, JSON_FILE, CARD_FILE = "report.html", "report.json", "model_card.md"


@dataclass(frozen=True)
class RecoveryTask:
    """One report to be measured. :meth:`check` refuses what would stop it later; :meth:`run` measures."""

    models: tuple[ReportedModel, ...]
    """The seed first."""
    config: RecoveryReportConfig
    output_dir: Path
    """Finished figures are kept in ``figures`` in it, and found again."""
    held_out: tuple[Target, ...] = ()
    """Answers that no model was trained on."""
    notes: tuple[str, ...] = ()
    """What is missing already, and why."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where models and rows come from."""
    trust_remote_code: bool = False
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    chat_template: str | None = None
    """Chat template of models that have none, as Jinja text."""

    """What the chat template is given besides."""

    @property
    def seed(self) -> ReportedModel:
        """The model that the others are compared with."""
        return self.models[0]

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts from outside the task."""
        from axolotl_sdft.evaluation.measures.general_prompts import general_prompts

        return general_prompts(self.config.general_prompts)

    @property
    def template_identity(self) -> dict[str, Any]:
        """What shapes a chat beside its messages."""
        given = {} if self.chat_template is None else {"chat_template": self.chat_template}
        return {**self.template_arguments, **given}

    @property
    def exact_match_targets(self) -> list[Target]:
        """The held-out answers that the models are to find themselves."""
        assert self.config.exact_match is not None
        return [
            self.held_out[place] for place in evenly_spaced(len(self.held_out), self.config.exact_match.num_samples)
        ]

    def check(self) -> None:
        """Refuse names, files, sizes and folders that would stop the report later. No model is loaded.

        Raises:
            SdftError: One of them can't work; the message names its key.
        """
        from axolotl_sdft.evaluation.measures.answering import require_template
        from axolotl_sdft.evaluation.measures.speed import check_speed
        from axolotl_sdft.inference.prompts import load_tokenizer

        config = self.config
        ensure_writable(self.output_dir, "recovery_report.output_dir")
        _ = self.prompts
        if config.exact_match is not None:
            self._check_exact_match()
        if config.lm_eval is not None:
            from axolotl_sdft.evaluation.measures.task_scores import check_tasks

            check_tasks(config.lm_eval)
        check_speed(self.models, config.speed, trust_remote_code=self.trust_remote_code)
        seed = self.seed.folder
        require_template(
            load_tokenizer(seed, trust_remote_code=self.trust_remote_code, chat_template=self.chat_template)
        )

    def _check_exact_match(self) -> None:
        from axolotl_sdft.evaluation.measures.answer_accuracy import right_answer_checks

        assert self.config.exact_match is not None
        right_answer_checks(self.config.exact_match)
        if not self.held_out:
            raise ConfigError(
                "recovery_report.exact_match is set, but there are no held-out rows; set "
                "recovery_report.held_out.path, test_datasets or val_set_size, or remove exact_match"
            )

    def run(self) -> RecoveryReport:
        """Return the report. What was measured before, with the same models, settings and rows, is not measured again.

        A measure that fails for one model becomes a note, so that the figures of the others are not lost.

        Raises:
            SdftError: The seed can't be measured.
        """
        from axolotl_sdft.evaluation.measuring import Measuring

        measured = Measuring(self)
        models = measured.figures()
        return RecoveryReport(
            models=tuple(models),
            settings=masked(self.config.model_dump(mode="json")),
            notes=(*self.notes, *measured.notes),
            provenance=self._provenance(measured),
        )

    def _provenance(self, measured: "Measuring") -> dict[str, Any]:
        packages = ("torch", "transformers", "peft", "lm_eval")
        return {
            **self.provenance,
            "general_prompts": self.config.general_prompts.path or "those that come with the package",
            "model_fingerprints": measured.fingerprints,
            "device": measured.device,
            "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            "created": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
            "package_versions": package_versions(*packages),
        }


def write_report(report: RecoveryReport, folder: Path) -> dict[str, Path]:
    """Write page, figures and model card section into a folder; return their paths by what they are."""
    from axolotl_sdft.evaluation.report.model_card import model_card_section
    from axolotl_sdft.evaluation.report.page import render_page

    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "report": (REPORT_FILE, render_page(report)),
        "figures": (JSON_FILE, finite(report.to_json())),
        "model card section": (CARD_FILE, model_card_section(report)),
    }
    for name, content in files.values():
        write_whole(folder / name, content)
    return {what: folder / name for what, (name, _) in files.items()}


def finite(value: Any) -> Any:
    """Return a JSON-like value with None for numbers that are not finite, which JSON can't hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
