"""Scores of lm-evaluation-harness: real runs of tiny tasks beside the harness's own aggregates."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lm_eval")

from axolotl_sdft.config.evaluation import LmEvalConfig, TaskConfig
from axolotl_sdft.core.errors import ConfigError, DatasetError, MissingExtraError
from axolotl_sdft.evaluation.measures.bootstrap import Resampler
from axolotl_sdft.evaluation.measures.task_scores import (
    check_tasks,
    joined_results,
    results_table,
    task_fingerprint,
    task_scores,
)
from axolotl_sdft.evaluation.spec import ReportedModel

QUESTIONS = [
    ("The sky is", ["blue", "a kind of soup", "made out of wood"], 0),
    ("Two and two make", ["five or so", "four"], 1),
    ("A dog has", ["wheels", "leaves and roots", "legs"], 2),
    ("Snow is", ["cold", "loud"], 0),
    ("Bread is made from", ["ore", "flour and water"], 1),
    ("At night it is", ["dark", "Tuesday every time"], 0),
]
METRICS = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]


def _choices(name: str, path: Path, **settings: Any) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": METRICS,
        **settings,
    }


def _written(path: Path) -> dict[str, Any]:
    """A task with generated answers; one reading finds none in them, which here is right, the other any character."""
    task = _choices("tiny_written", path)
    del task["doc_to_choice"]
    first = {"function": "take_first"}
    return task | {
        "output_type": "generate_until",
        "doc_to_target": "[invalid]",  # what the harness reads where nothing matches
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": ["no end"], "max_gen_toks": 4, "do_sample": False},
        "filter_list": [
            {"name": "flexible-extract", "filter": [{"function": "regex", "regex_pattern": r"([\s\S])"}, first]},
            {"name": "strict-match", "filter": [{"function": "regex", "regex_pattern": "(^never$)"}, first]},
        ],
    }


def _group(name: str, **aggregate: Any) -> dict[str, Any]:
    return {
        "group": name,
        "task": ["tiny_choices", "tiny_few"],
        "aggregate_metric_list": [{"metric": "acc", **aggregate}],
    }


@pytest.fixture(scope="module")
def include_path(tmp_path_factory) -> str:
    """Tasks over local files: one of six questions, one of two, and what groups them."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in (("six", QUESTIONS), ("two", QUESTIONS[:2])):
        lines = [json.dumps(dict(zip(("question", "choices", "label"), row, strict=True))) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    tasks = {
        "choices": _choices("tiny_choices", folder / "six.jsonl", tag="tiny_tag"),
        "few": _choices("tiny_few", folder / "two.jsonl", tag="tiny_tag"),
        "written": _written(folder / "six.jsonl"),
        "by_size": _group("tiny_by_size", weight_by_size=True),
        "alike": _group("tiny_alike"),
        "lost": _choices("tiny_lost", folder / "nowhere.jsonl"),
        "odd": _choices("tiny_odd", folder / "six.jsonl", metric_list=[{"metric": "f1", "aggregation": "f1"}]),
    }
    for name, settings in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    return str(folder)


@pytest.fixture
def harness_results(monkeypatch) -> list[dict[str, Any]]:
    """What the harness itself returns, run by run."""
    import lm_eval

    returned, evaluate = [], lm_eval.simple_evaluate

    def recording(*args, **kwargs):
        returned.append(evaluate(*args, **kwargs))
        return returned[-1]

    monkeypatch.setattr(lm_eval, "simple_evaluate", recording)
    return returned


def _config(include_path: str, *tasks: dict[str, Any] | str, **settings: Any) -> LmEvalConfig:
    return LmEvalConfig(tasks=tasks, include_path=include_path, **settings)


@pytest.fixture
def model(tiny_llama_dir) -> ReportedModel:
    return ReportedModel("seed", tiny_llama_dir)


def test_scores_are_those_of_the_harness(include_path, model, harness_results):
    config = _config(include_path, "tiny_choices", {"task": "tiny_few", "metric": "acc"}, "tiny_written")
    scores = task_scores(model, config, "float32", Resampler(200))
    own = [result["results"] for result in harness_results]
    expected = [
        own[0]["tiny_choices"]["acc_norm,none"],
        own[1]["tiny_few"]["acc,none"],
        own[2]["tiny_written"]["exact_match,strict-match"],
    ]
    assert [told.score.value for told in scores.values()] == pytest.approx(expected)
    assert own[2]["tiny_written"]["exact_match,flexible-extract"] < own[2]["tiny_written"]["exact_match,strict-match"]
    assert list(scores) == ["tiny_choices", "tiny_few", "tiny_written"]
    assert [told.score.rows for told in scores.values()] == [6, 2, 6]
    for figure, questions, _ in scores.values():
        assert figure.value == pytest.approx(statistics.fmean(questions))
        assert figure.low <= figure.value <= figure.high


def test_a_score_is_that_of_the_task_files_and_the_data_that_they_read_as_these_are_now(tmp_path):
    rows, elsewhere = tmp_path / "tasks" / "rows.jsonl", tmp_path / "elsewhere.jsonl"
    rows.parent.mkdir()
    for path in (rows, elsewhere):
        path.write_text("{}")
    settings = _choices("tiny_elsewhere", elsewhere)
    (rows.parent / "task.yaml").write_text(yaml.safe_dump(settings))

    def told():
        return task_fingerprint(TaskConfig(task="tiny_elsewhere"), str(rows.parent))

    before = told()
    (rows.parent / "__pycache__").mkdir()
    (rows.parent / "__pycache__" / "utils.pyc").write_text("compiled")
    assert told() == before
    elsewhere.write_text('{"question": "changed"}')
    with_data = told()
    (rows.parent / "task.yaml").write_text(yaml.safe_dump(settings | {"doc_to_text": "{{question}}?"}))
    assert len({before, with_data, told()}) == 3


def test_a_task_of_the_harness_has_no_files_of_one_s_own():
    assert task_fingerprint(TaskConfig(task="gsm8k"), None) == ""


def test_the_harness_s_own_results_come_along_as_its_tools_read_them(include_path, model, harness_results):
    config = _config(include_path, "tiny_choices", {"task": "tiny_by_size", "metric": "acc"})
    filed = [told.results for told in task_scores(model, config, "float32", Resampler(0)).values()]
    own = harness_results[0]["results"]["tiny_choices"]
    assert filed[0]["results"]["tiny_choices"]["acc,none"] == own["acc,none"]
    # The sample's standard deviation over the root of the number of questions.
    right = [sample["acc"] for sample in harness_results[0]["samples"]["tiny_choices"]]
    assert filed[0]["results"]["tiny_choices"]["acc_stderr,none"] == pytest.approx(statistics.stdev(right) / 6**0.5)
    assert filed[0]["model_name"] == str(model.folder)
    assert "samples" not in filed[0]
    both = joined_results(filed)
    assert both["results"].keys() == {"tiny_choices", "tiny_few", "tiny_by_size"}
    assert both["n-samples"].keys() == {"tiny_choices", "tiny_few"}
    table = results_table(both)
    assert table.splitlines()[0].split("|")[1].strip() == "Tasks"
    assert table == results_table(both)


@pytest.mark.parametrize(("task", "weights"), [("tiny_by_size", (6, 2)), ("tiny_alike", (1, 1)), ("tiny_tag", (6, 2))])
def test_a_group_is_averaged_as_the_harness_does(include_path, model, harness_results, task, weights):
    config = _config(include_path, {"task": task, "metric": "acc"})
    (figure, questions, _) = task_scores(model, config, "float32", Resampler(50))[task]
    own = harness_results[0]["results"]
    parts = [own[name]["acc,none"] for name in ("tiny_choices", "tiny_few")]
    assert parts[0] != parts[1]  # or all ways of averaging were the same
    by_hand = sum(part * weight for part, weight in zip(parts, weights, strict=True)) / sum(weights)
    assert figure.value == pytest.approx(by_hand)
    assert own.get(task, {}).get("acc,none", by_hand) == pytest.approx(by_hand)
    assert (figure.rows, len(questions)) == (8, 8)
    assert statistics.fmean(questions) == pytest.approx(by_hand)


def test_two_models_answer_the_same_questions_of_a_group(include_path, model, harness_results):
    config = _config(include_path, "tiny_by_size")
    first, second = (task_scores(model, config, "float32", Resampler(20)) for _ in range(2))
    assert [told.questions for told in first.values()] == [told.questions for told in second.values()]
    assert harness_results[0]["samples"].keys() == harness_results[1]["samples"].keys()


def test_shots_and_limits_reach_the_harness(include_path, model, harness_results):
    config = _config(include_path, {"task": "tiny_choices", "num_fewshot": 2}, "tiny_few", limit=1)
    scores = task_scores(model, config, "float32", Resampler(0))
    assert [result["n-shot"] for result in harness_results] == [{"tiny_choices": 2}, {"tiny_few": 0}]
    assert [told.score.rows for told in scores.values()] == [1, 1]
    prompt = harness_results[0]["samples"]["tiny_choices"][0]["arguments"][0][0]
    assert prompt.count("\n\n") == 2  # after each solved question
    assert "<|im_start|>" not in prompt


def test_data_that_can_not_be_loaded_is_named_before_the_model_is(include_path, tmp_path):
    config = _config(include_path, "tiny_choices", "tiny_lost")
    with pytest.raises(DatasetError, match=r"the data of recovery_report\.lm_eval task 'tiny_lost' can't be loaded"):
        task_scores(ReportedModel("nowhere", tmp_path), config, "float32", Resampler(0))


def test_known_tasks_and_metrics_pass(include_path):
    check_tasks(_config(include_path, *LmEvalConfig().tasks, "tiny_tag", {"task": "tiny_choices", "metric": "acc"}))


def test_an_unknown_task_is_refused_with_the_nearest_names(include_path):
    with pytest.raises(ConfigError, match=r"names 'tiny_choice', which .* not know; did you mean 'tiny_choices'.*\?"):
        check_tasks(_config(include_path, "tiny_choice"))


def test_a_name_near_no_task_is_refused_with_where_to_look(include_path):
    with pytest.raises(ConfigError, match=r"not know; `lm_eval ls tasks` lists all\."):
        check_tasks(_config(include_path, "no task by any means !"))


@pytest.mark.parametrize(
    ("task", "metric", "known"),
    [
        ("tiny_choices", "acc_nor", "acc, acc_norm"),
        ("tiny_by_size", "acc_norm", "acc"),  # which the group does not make of its tasks' scores
        ("gsm8k", "acc", "exact_match"),
        ("mmlu", "exact_match", "acc"),
    ],
)
def test_an_unknown_metric_is_refused_with_the_known_ones(include_path, task, metric, known):
    with pytest.raises(
        ConfigError, match=rf"{task}' with metric '{metric}', but the metrics .* are: {known}; set metric"
    ):
        check_tasks(_config(include_path, {"task": task, "metric": metric}))


def test_a_task_without_scores_that_are_means_is_refused(include_path):
    with pytest.raises(ConfigError, match=r"'tiny_odd' and no metric is set, but the metrics .* are: none"):
        check_tasks(_config(include_path, "tiny_odd"))


def test_a_task_named_twice_is_refused(include_path):
    tasks = (TaskConfig(task="tiny_few"), TaskConfig(task="tiny_few", num_fewshot=2))
    with pytest.raises(ConfigError, match="names 'tiny_few' twice"):
        check_tasks(_config(include_path, *tasks))


def test_a_missing_folder_of_tasks_is_refused():
    with pytest.raises(ConfigError, match="include_path is 'nowhere', which is not a folder"):
        check_tasks(_config("nowhere", "gsm8k"))


def test_a_missing_harness_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.tasks", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'axolotl-sdft\[lm-eval\]'"):
        check_tasks(LmEvalConfig())


def test_automatic_batches_stay_small_on_a_cpu(include_path, model, harness_results):
    task_scores(model, _config(include_path, "tiny_few"), "float32", Resampler(0))
    assert LmEvalConfig().batch_size == "auto"
    assert harness_results[0]["config"]["batch_sizes"] == []  # none was searched for
