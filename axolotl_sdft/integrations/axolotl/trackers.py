"""Hands figures that no training brings forth to the trackers that a configuration names: one short run of its own."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from axolotl_sdft.core.errors import first_line
from axolotl_sdft.integrations.axolotl.pruned_base import output_dir_of

LOG = logging.getLogger(__name__)

_TRACKERS = {
    "use_wandb": ("wandb", "wandb_name"),
    "use_mlflow": ("mlflow", "mlflow_run_name"),
    "use_tensorboard": ("tensorboard", None),
    "use_comet": ("comet_ml", None),
    "use_trackio": ("trackio", "trackio_run_name"),
}
"""Axolotl's switches: the name that transformers gives the tracker, and the key of the run's name."""

_BOUNDS = ("low", "high", "rows")


def named_trackers(cfg: Any) -> list[str]:
    """Return the trackers that a raw configuration names, as transformers calls them; sets up their environment."""
    from axolotl.utils.comet_ import setup_comet_env_vars
    from axolotl.utils.mlflow_ import setup_mlflow_env_vars
    from axolotl.utils.trackio_ import setup_trackio_env_vars
    from axolotl.utils.wandb_ import setup_wandb_env_vars

    for set_up in (setup_wandb_env_vars, setup_mlflow_env_vars, setup_comet_env_vars, setup_trackio_env_vars):
        set_up(cfg)
    return [name for switch, (name, _) in _TRACKERS.items() if cfg.get(switch)]


def send_figures(cfg: Any, figures: Mapping[str, float], what: str) -> list[str]:
    """Log figures to each tracker of a configuration, and return those that took them.

    A tracker that fails, or is not installed, is told in the log: what was measured is on disk by then.

    Args:
        cfg: The raw configuration.
        figures: By the names that the trackers show.
        what: Stands behind the name of the run.
    """
    sent = []
    for name in named_trackers(cfg) if figures else []:
        try:
            _send(name, cfg, figures, what)
        except Exception as err:
            LOG.warning("the figures could not be sent to %s (%s: %s)", name, type(err).__name__, first_line(err))
        else:
            sent.append(name)
    return sent


def _send(name: str, cfg: Any, figures: Mapping[str, float], what: str) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks

    run_names = [cfg.get(key) for tracker, key in _TRACKERS.values() if tracker == name and key]
    args = TrainingArguments(
        str(output_dir_of(cfg)),
        report_to=[name],
        run_name=" ".join([*filter(None, run_names), what]),
        use_cpu=True,
    )
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()
    try:
        for kind in get_reporting_integration_callbacks([name]):
            callback = kind()
            callback.on_train_begin(args, state, control)
            callback.on_log(args, state, control, logs=dict(figures))
            callback.on_train_end(args, state, control)
    finally:
        if name == "wandb":  # whose callback leaves the run open for whatever follows a training
            import wandb

            wandb.finish()


def flat_figures(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Yield all numbers below a JSON-like value with their path; of an estimate its value alone."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield name, float(value)
    elif isinstance(value, Mapping):
        if {"value", *_BOUNDS} <= set(value):
            yield from flat_figures(value["value"], name)
            return
        for key, item in value.items():
            yield from flat_figures(item, f"{name}/{key}")


def report_figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a recovery report, given as JSON values, by the names that trackers show."""
    return {
        name: number
        for model in report["models"]
        for name, number in flat_figures(
            {key: value for key, value in model.items() if key not in ("name", "folder")}, f"recovery/{model['name']}"
        )
    }
