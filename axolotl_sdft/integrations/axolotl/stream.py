"""What a training run says in Axolotl's stream of log lines: each stage as it begins, what is kept, what came of it."""

import logging
import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from tqdm.auto import tqdm
from transformers import TrainerCallback

from axolotl_sdft.core.artifacts import read_json
from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.core.model_folder import folder_of, holds_model
from axolotl_sdft.core.runtime import rank
from axolotl_sdft.core.terminal import terminal_handlers
from axolotl_sdft.core.trained_on import PROVENANCE_FILE
from axolotl_sdft.distillation.output.dataset import read_summary
from axolotl_sdft.distillation.spec import SUMMARY_FILE
from axolotl_sdft.evaluation.records import STATE_FILE
from axolotl_sdft.evaluation.summary import Artifacts, RunSummary
from axolotl_sdft.integrations.axolotl import compat
from axolotl_sdft.integrations.axolotl.blocks import SEED_KEY, Blocks, pruned_before, seed_dir_of, seed_of
from axolotl_sdft.integrations.axolotl.pruned_base import output_dir_of

LOG = logging.getLogger(__name__)

PRUNING, REWRITING, TRAINING = "layer pruning", "self-distilled dataset", "training"
_TERMS = {"logit_distillation": "logit distillation", "dynsdpb": "DynSDPB"}


def stages_of(blocks: Blocks) -> list[str]:
    """Return the stages that the running command goes through, in order."""
    stages = [PRUNING] if blocks.layer_pruning is not None else []
    stages += [REWRITING] if blocks.self_distillation is not None else []
    return stages if compat.running_command() == "preprocess" else [*stages, TRAINING]


def announce(blocks: Blocks, stage: str, more: str = "") -> None:
    """Log that a stage begins, and which of how many it is; on the main rank.

    Args:
        blocks: Those of the configuration.
        stage: One of :func:`stages_of`; another is not announced.
        more: What is said behind it, such as what is reused.
    """
    stages = stages_of(blocks)
    if rank() == 0 and stage in stages:
        LOG.info("%d of %d: %s%s", stages.index(stage) + 1, len(stages), stage, f" ({more})" if more else "")


def announce_training(blocks: Blocks) -> None:
    """Log that training begins, and what is added to its loss."""
    announce(blocks, TRAINING, " and ".join(f"with {_TERMS[name]}" for name in blocks.trainer_blocks))


def artifacts_of_run(cfg: Any) -> Artifacts:
    """Return what a configuration that the stages have changed trains from and into."""
    folders = [Path(str(entry.get("path"))) for entry in cfg.get("datasets") or []]
    return Artifacts(
        seed_dir=_seed_dir_here(cfg),
        pruned_dir=Path(cfg.base_model) if cfg.get(SEED_KEY) else pruned_before(cfg),
        distilled_dirs=[folder for folder in folders if (folder / SUMMARY_FILE).is_file()],
        output_dir=output_dir_of(cfg),
    )


def _seed_dir_here(cfg: Any) -> Path | None:
    """Return the seed model's folder if it is on this machine; the end of a run downloads nothing for its table."""
    if pruned_before(cfg) is None:
        return folder_of(*seed_of(cfg), files=("config.json",))
    with suppress(CheckpointError):
        return seed_dir_of(cfg)
    return None


def stage_figures(artifacts: Artifacts) -> dict[str, float]:
    """Return the figures of pruning and rewriting, by the names that trackers show."""
    figures: dict[str, Any] = {}
    if artifacts.pruned_dir is not None:
        provenance = read_json(artifacts.pruned_dir / PROVENANCE_FILE)
        patch = provenance.get("patch") or {}
        figures |= {
            "layers_removed": len(provenance["drop_layers"]),
            "layers_before": provenance["num_layers_before"],
            "parameters_before": provenance["parameters_before"],
            "parameters_after": provenance["parameters_after"],
            "kl_without_patch": patch.get("divergence_bare"),
            "kl_with_patch": patch.get("divergence_patched"),
        }
    many = len(artifacts.distilled_dirs) > 1
    for number, folder in enumerate(artifacts.distilled_dirs):
        figures |= {f"{name}_{number}" if many else name: value for name, value in _of_dataset(folder).items()}
    return {f"sdft/{name}": float(value) for name, value in figures.items() if value is not None}


def _of_dataset(folder: Path) -> dict[str, Any]:
    summary = read_summary(folder)
    gap = summary["gap"] or {}
    return {
        "acceptance": summary["acceptance"],
        "gap_before": gap.get("nats_per_token_before"),
        "gap_after": gap.get("nats_per_token_after"),
    }


class _AboveBars:
    """A stream of log lines that leaves the terminal's line to the bars of ``tqdm``, which the trainer shows."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with tqdm.external_write_mode(file=self._stream):
            return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class StageCallback(TrainerCallback):
    """Hands the figures of the stages to the trackers of a training, and says what is kept where it is interrupted."""

    def __init__(self, cfg: Any, trainer: Any) -> None:
        self._cfg, self._trainer = cfg, trainer
        self._ends = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the figures as the trainer logs its own: the trackers are set up by now."""
        figures = stage_figures(artifacts_of_run(self._cfg))
        if figures and args.report_to:
            self._trainer.callback_handler.on_log(args, state, control, figures)
        if rank() == 0:
            self._explain_interrupt()
            for handler in terminal_handlers():
                self._ends.callback(handler.setStream, handler.stream)
                handler.setStream(cast(TextIO, _AboveBars(handler.stream)))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let log lines come out as before."""
        self._ends.close()

    def _explain_interrupt(self) -> None:
        """Say what is kept before Axolotl's own handler saves the model and ends the process."""
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler) or handler is signal.default_int_handler:
            return

        trains = os.getpid()

        def explain(number: int, frame: Any) -> None:
            if os.getpid() == trains:  # processes that load data are forks, and get Ctrl-C as well
                LOG.warning("%s", kept_in_training(self._cfg))
            handler(number, frame)

        signal.signal(signal.SIGINT, explain)


def kept_in_training(cfg: Any) -> str:
    """Return what remains of a training that is stopped now, and how to go on."""
    folder = output_dir_of(cfg)
    # The trainer writes its state last: one that is being saved just now can't be resumed from.
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{STATE_FILE}")]
    saved = sorted(whole, key=lambda path: path.stat().st_mtime_ns)
    reused = "the pruned checkpoint and the rewritten rows are found again"
    if not saved:
        return f"stopped: Axolotl saves the model as it is to {folder}; no checkpoint is there to resume from; {reused}"
    resume = f"axolotl train {_config_name(cfg)} --resume-from-checkpoint {saved[-1]}"
    return f"stopped: Axolotl saves the model as it is to {folder}; {reused}. To go on: {resume}"


def log_results(cfg: Any) -> None:
    """Log what a finished training has made, as a table, with the paths and the next commands; on the main rank."""
    if rank() != 0:
        return
    lines = [*RunSummary.of(artifacts_of_run(cfg)).lines(), "", *next_commands(cfg)]
    LOG.info("%s", "\n".join(["done", *lines]))


def next_commands(cfg: Mapping[str, Any]) -> list[str]:
    """Return what to type next, each with what it does."""
    name = _config_name(cfg)
    folder = output_dir_of(cfg)
    is_adapter = holds_model(folder) and (folder / "adapter_config.json").is_file()
    merge = [f"next: axolotl merge-lora {name}    # one checkpoint, without an adapter"] if is_adapter else []
    return [
        *merge,
        f"next: axolotl sdft-summary {name} --prompt 'What is a glacier?'    # answers side by side",
        f"next: axolotl recovery-report {name}    # what was lost and won back",
    ]


def _config_name(cfg: Mapping[str, Any]) -> str:
    return str(cfg.get("axolotl_config_path") or "config.yml")
