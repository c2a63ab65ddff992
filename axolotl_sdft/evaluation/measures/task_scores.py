"""Scores of lm-evaluation-harness (the package ``lm_eval``), question by question. torch comes with the first score."""

import copy
import difflib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from axolotl_sdft.config.evaluation import LmEvalConfig, TaskConfig
from axolotl_sdft.core.artifacts import fingerprint
from axolotl_sdft.core.errors import ConfigError, DatasetError, MissingExtraError, first_line
from axolotl_sdft.core.identity import file_digests, local_data_files
from axolotl_sdft.core.terminal import progress
from axolotl_sdft.evaluation.figures import Estimate
from axolotl_sdft.evaluation.measures.bootstrap import Resampler
from axolotl_sdft.evaluation.spec import ReportedModel

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

LOG = logging.getLogger(__name__)


class Scores(NamedTuple):
    """What a model reaches in a task."""

    score: Estimate
    questions: list[float]
    """One number per question, whose mean is the score: models are compared question by question, which the harness's
    own standard errors can't do."""
    results: dict[str, Any]
    """What the harness itself says, as its results file holds it."""


_METRICS = ("acc_norm", "exact_match", "acc")
_FILTERS = ("strict-match", "none")
# Nothing stops the harness from trying batches that fill all memory of a machine: only accelerators refuse them.
_CPU_BATCH_SIZE = 4
# Of the harness's own standard errors, for the rare metrics of which they follow from no formula.
_BOOTSTRAPS = 1000


def check_tasks(config: LmEvalConfig) -> None:
    """Refuse tasks and metrics that are not there; loads no model and no data.

    Raises:
        ConfigError: A task or metric is unknown, or its scores are not means over questions.
        MissingExtraError: lm-evaluation-harness is not installed.
    """
    manager = _task_manager(config.include_path)
    names = [task.task for task in config.tasks]
    for task in config.tasks:
        if names.count(task.task) > 1:
            raise ConfigError(f"recovery_report.lm_eval.tasks names {task.task!r} twice; name each task once")
        if task.task not in manager.task_index:
            near = difflib.get_close_matches(task.task, manager.all_tasks, n=3, cutoff=0.6)
            hint = f"did you mean {', '.join(map(repr, near))}?" if near else "`lm_eval ls tasks` lists all."
            raise ConfigError(
                f"recovery_report.lm_eval.tasks names {task.task!r}, which lm-evaluation-harness does not know; {hint} "
                "Tasks of your own are found through include_path"
            )
        known = _known_metrics(manager, task.task)
        if known is not None:
            _chosen_metric(task, known)


def task_fingerprint(task: TaskConfig, include_path: str | None) -> str:
    """Return hex digits that change with task files of one's own, and with the local data that a task reads.

    Empty where ``include_path`` names no task files.

    Raises:
        ConfigError, MissingExtraError: As for :func:`check_tasks`.
        DatasetError: One of the files can't be read.
    """
    if include_path is None:
        return ""
    named = [(leaf.get("dataset_kwargs") or {}) for leaf in _leaves(_task_manager(include_path), task.task)]
    data = [Path(file) for settings in named for file in local_data_files(settings.get("data_files"))]
    own = [path for path in sorted(Path(include_path).rglob("*")) if "__pycache__" not in path.parts]
    try:
        return fingerprint(file_digests(path for path in (*own, *data) if path.is_file()))
    except OSError as err:
        raise DatasetError(
            f"recovery_report.lm_eval.include_path is {include_path!r}, but a file of its tasks can't be read: "
            f"{first_line(err)}"
        ) from err


def task_scores(
    model: ReportedModel,
    config: LmEvalConfig,
    dtype: str,
    resampler: Resampler,
    *,
    trust_remote_code: bool = False,
    placement: Mapping[str, Any] | None = None,
) -> dict[str, Scores]:
    """Return the scores of a model by task, as the harness itself has them.

    The questions of a group of tasks count alike where the group weights its tasks by size, as ``mmlu`` does. Else each
    task counts alike, and the numbers of the questions are scaled so that their mean is the score. A tag, which has no
    score of its own, is taken as a group weighted by size.

    All data is loaded before the model is. No chat template is applied, as on the OpenLLM Leaderboard v1.

    Args:
        model: What is scored.
        config: The ``recovery_report.lm_eval`` block.
        dtype: Number format, as ``recovery_report.dtype``.
        resampler: Makes the intervals, over questions.
        trust_remote_code: Run code that comes with the model.
        placement: As ``RecoveryReportConfig.placement``.

    Raises:
        CheckpointError: The model can't be loaded.
        ConfigError: As for :func:`check_tasks`.
        DatasetError: The data of a task can't be loaded.
        MissingExtraError: lm-evaluation-harness, or a package that a task needs, is not installed.
    """
    from axolotl_sdft.evaluation.loading import load_model

    check_tasks(config)
    for task in config.tasks:
        _load_data(task, config.include_path)
    loaded = load_model(model, dtype, **(placement or {}), trust_remote_code=trust_remote_code)
    harness_model = _harness_model(*loaded, config.batch_size)
    scores = {}
    with progress(f"Tasks of {model.name}", len(config.tasks), "tasks", LOG) as shown:
        for task in config.tasks:
            results = _evaluated(harness_model, task, config)
            questions = _question_scores(task, results, _counts_tasks_alike(task, config.include_path, results))
            score = resampler.ratio(questions, [1.0] * len(questions))
            scores[task.task] = Scores(score, questions, _as_filed(results, model))
            shown.advance(task=task.task)
    return scores


def _task_manager(include_path: str | None) -> "TaskManager":
    """Return the harness's index of tasks.

    Raises:
        ConfigError: ``include_path`` is not a folder.
        MissingExtraError: The harness is not installed.
    """
    try:
        import lm_eval.tasks  # noqa: F401
    except ModuleNotFoundError as err:
        raise MissingExtraError(
            f"recovery_report.lm_eval is set, but {err.name} is not installed; install it with: "
            "pip install 'axolotl-sdft[lm-eval]', or remove lm_eval"
        ) from err
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(f"recovery_report.lm_eval.include_path is {include_path!r}, which is not a folder; name one")
    return _index(include_path)


@lru_cache(maxsize=2)
def _index(include_path: str | None) -> "TaskManager":
    """Read the YAML files of all tasks once: there are over ten thousand, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def _known_metrics(manager: "TaskManager", name: str) -> list[str] | None:
    """Return the metrics that a task, or each task of a group, has as means; None where only running it tells."""
    listed = [leaf.get("metric_list") for leaf in _leaves(manager, name)]
    if not listed or not all(isinstance(metrics, list) for metrics in listed):
        return None
    means = [
        [metric["metric"] for metric in metrics or () if metric.get("aggregation", "mean") == "mean"]
        for metrics in listed
    ]
    of_group = _aggregates(manager, name)
    return [
        metric
        for metric in means[0]
        if all(metric in others for others in means) and (not of_group or metric in of_group)
    ]


def _leaves(manager: "TaskManager", name: str) -> Iterator[dict[str, Any]]:
    """Yield the settings of a task, or of all tasks of a group or tag, groups within included."""
    entry = manager.task_index.get(name)
    if entry is None:
        yield {}
    elif entry["type"] == "tag":
        for task in entry["task"]:
            yield from _leaves(manager, task)
    else:
        yield from _leaves_of(manager, _settings(manager, name))


def _leaves_of(manager: "TaskManager", settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    tasks = settings.get("task")
    if not isinstance(tasks, list):
        yield settings
        return
    for task in tasks:
        if isinstance(task, str):
            yield from _leaves(manager, task)
        elif isinstance(task.get("task"), str):  # a task with some of its settings changed
            yield from (leaf | task for leaf in _leaves(manager, task["task"]))
        else:
            yield from _leaves_of(manager, task)


def _settings(manager: "TaskManager", name: str) -> dict[str, Any]:
    """Return what the YAML file of a task or group says, functions left out."""
    from lm_eval.utils import load_yaml_config

    settings: dict[str, Any] = load_yaml_config(manager.task_index[name]["yaml_path"], mode="simple")
    return settings


def _aggregates(manager: "TaskManager", name: str) -> dict[str, dict[str, Any]]:
    """Return how a group makes its scores from those of its tasks, by metric; empty for tasks and tags."""
    if manager.task_index[name]["type"] != "group":
        return {}
    aggregates = _settings(manager, name).get("aggregate_metric_list") or []
    return {each["metric"]: each for each in ([aggregates] if isinstance(aggregates, dict) else aggregates)}


def _chosen_metric(task: TaskConfig, known: Sequence[str]) -> str:
    metric = task.metric or next((metric for metric in _METRICS if metric in known), None)
    if metric is not None and metric in known:
        return metric
    wanted = "and no metric is set" if metric is None else f"with metric {metric!r}"
    raise ConfigError(
        f"recovery_report.lm_eval.tasks names {task.task!r} {wanted}, but the metrics that it averages over questions "
        f"are: {', '.join(known) or 'none'}; set metric to one of them, or name other tasks"
    )


def _chosen_key(task: TaskConfig, results: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Return metric and filter, such as ``exact_match`` and ``strict-match``, that all of these tasks' results have."""
    keys = [
        [tuple(key.split(",", 1)) for key in result if "," in key and "_stderr," not in key]
        for result in results.values()
    ]
    common = [key for key in keys[0] if all(key in others for others in keys)]
    metric = _chosen_metric(task, list(dict.fromkeys(metric for metric, _ in common)))
    filters = [name for found, name in common if found == metric]
    return metric, next((name for name in _FILTERS if name in filters), filters[0])


def _load_data(task: TaskConfig, include_path: str | None) -> None:
    """Load a task with its data, so that it lies in the cache of ``datasets`` before hours of work rely on it."""
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import get_task_dict

    try:
        get_task_dict([_request(task)], _task_manager(include_path))
    except (OSError, DatasetsError) as err:
        raise DatasetError(
            f"the data of recovery_report.lm_eval task {task.task!r} can't be loaded ({first_line(err)}); load it once "
            "with a network, set include_path to tasks with files of your own, or leave the task out"
        ) from err
    except ModuleNotFoundError as err:
        raise MissingExtraError(
            f"recovery_report.lm_eval task {task.task!r} needs {err.name}, which is not installed; install it with: "
            f"pip install {err.name}, or leave the task out"
        ) from err


def _request(task: TaskConfig) -> str | dict[str, Any]:
    """Return a task as the harness takes it, which changes what it is given."""
    return task.task if task.num_fewshot is None else {"task": task.task, "num_fewshot": task.num_fewshot}


def _harness_model(model: Any, tokenizer: Any, batch_size: int | str) -> Any:
    from lm_eval.models.huggingface import HFLM

    if model.device.type == "cpu" and str(batch_size).startswith("auto"):
        batch_size = _CPU_BATCH_SIZE
    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)


def _evaluated(harness_model: Any, task: TaskConfig, config: LmEvalConfig) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    results: dict[str, Any] = simple_evaluate(
        harness_model,
        tasks=[_request(task)],
        task_manager=_task_manager(config.include_path),
        limit=config.limit,
        log_samples=True,
        bootstrap_iters=_BOOTSTRAPS,
        apply_chat_template=False,
    )
    return results


def _as_filed(results: dict[str, Any], model: ReportedModel) -> dict[str, Any]:
    """Return the harness's results as its own tracker files them, where other tools look for them."""
    from lm_eval.loggers import EvaluationTracker

    with TemporaryDirectory(prefix="sdft-lm-eval-") as folder:
        tracker = EvaluationTracker(output_path=folder)
        arguments = {"pretrained": str(model.folder)}
        tracker.general_config_tracker.log_experiment_args("hf", arguments, None, None, False)
        figures = {key: value for key, value in results.items() if key != "samples"}
        tracker.save_results_aggregated(results=figures, samples=results["samples"])
        filed: dict[str, Any] = json.loads(next(Path(folder).rglob("results_*.json")).read_text(encoding="utf-8"))
    return filed


def joined_results(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the harness's results of several runs of one model as those of one run."""
    joined: dict[str, Any] = {}
    for results in several:
        for key, value in results.items():
            parts = isinstance(value, dict) and isinstance(joined.get(key), dict)
            joined[key] = joined[key] | value if parts else value
    return joined


def task_kind(results: Mapping[str, Any]) -> str:
    """Return what a task asks for in the harness's words: ``multiple_choice``, ``generate_until``, ``loglikelihood``.

    A group of tasks of several kinds, or results that do not tell, have an empty text.
    """
    kinds = {config.get("output_type") for config in (results.get("configs") or {}).values()}
    return kinds.pop() or "" if len(kinds) == 1 else ""


def results_table(results: Mapping[str, Any]) -> str:
    """Return the harness's own table of its results: versions, filters, shots, all metrics, standard errors."""
    from lm_eval.utils import make_table

    table: str = make_table(copy.deepcopy(dict(results)))  # which takes the names of tasks out of it
    return table


def _counts_tasks_alike(task: TaskConfig, include_path: str | None, results: Mapping[str, Any]) -> bool:
    """Say whether the harness averages over the tasks of a group rather than over their questions."""
    aggregates = _aggregates(_task_manager(include_path), task.task)
    metric, _ = _chosen_key(task, _leaf_results(results))
    return metric in aggregates and not aggregates[metric].get("weight_by_size", False)


def _leaf_results(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the harness's results of the tasks that have questions, not those of groups."""
    return {name: results["results"][name] for name in results["samples"]}


def _question_scores(task: TaskConfig, results: Mapping[str, Any], counts_tasks_alike: bool) -> list[float]:
    """Return a number for each question in the order of the harness; their mean is the task's score."""
    leaves = _leaf_results(results)
    metric, filter_name = _chosen_key(task, leaves)
    by_task = {
        name: [float(sample[metric]) for sample in results["samples"][name] if sample["filter"] == filter_name]
        for name in leaves
    }
    num_questions = sum(map(len, by_task.values()))
    weights = {
        name: num_questions / (len(by_task) * len(scores)) if counts_tasks_alike else 1.0
        for name, scores in by_task.items()
    }
    return [weights[name] * score for name, scores in by_task.items() for score in scores]
