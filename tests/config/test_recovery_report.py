import pytest
from pydantic import ValidationError

from axolotl_sdft.config import ExactMatchConfig, LmEvalConfig, MergeConfig, RecoveryReportConfig


def test_without_settings_an_answer_is_right_when_it_matches_but_for_its_form():
    assert ExactMatchConfig().checks == ("normalized_match",)


def test_the_tasks_are_those_of_the_leaderboard_with_their_shots_by_default():
    assert {task.task: task.num_fewshot for task in LmEvalConfig().tasks} == {
        "arc_challenge": 25,
        "hellaswag": 10,
        "mmlu": 5,
        "truthfulqa_mc2": 0,
        "winogrande": 5,
        "gsm8k": 5,
    }


def test_a_task_that_is_only_named_has_the_shots_of_the_leaderboard_where_it_is_on_it():
    tasks = LmEvalConfig.model_validate({"tasks": ["gsm8k", "mine", {"task": "gsm8k", "num_fewshot": 0}]}).tasks
    assert [task.num_fewshot for task in tasks] == [5, None, 0]


@pytest.mark.parametrize("name", ["seed", "pruned", "trained"])
def test_a_model_can_not_take_a_name_of_the_report(name):
    with pytest.raises(ValidationError, match=f"models names one '{name}', which the report calls one of its own"):
        RecoveryReportConfig.model_validate({"models": {name: "./out"}})


def test_equal_settings_are_equal_also_where_they_are_hashed():
    one, other = (RecoveryReportConfig.model_validate({"models": {"plain": "./out"}}) for _ in range(2))
    assert len({one, other}) == 1


def test_pass_at_k_needs_k_answers():
    assert ExactMatchConfig(pass_at=(5, 1, 5)).pass_at == (1, 5)
    with pytest.raises(
        ValidationError, match="pass_at names 20, but num_answers is 10; raise num_answers to at least 20"
    ):
        ExactMatchConfig(pass_at=(20,))
    with pytest.raises(ValidationError, match=r"pass_at is \[0\]; name numbers of answers from 1 on"):
        ExactMatchConfig(pass_at=(0,))


@pytest.mark.parametrize("temperature", [float("inf"), float("nan"), 0.0])
def test_answers_are_sampled_at_the_temperatures_that_rewriting_has_but_0(temperature):
    with pytest.raises(ValidationError, match=r"less than or equal to 5|greater than 0"):
        ExactMatchConfig(temperature=temperature)


@pytest.mark.parametrize("other", ["out/a", "./out/a", "out/a/"])
def test_a_model_is_not_merged_with_itself_however_its_folder_is_written(other):
    with pytest.raises(ValidationError, match="which is one model twice; name two models"):
        MergeConfig(models=("out/a", other))


def test_no_more_than_five_prompts_are_shown():
    with pytest.raises(ValidationError, match="at most 5 items"):
        RecoveryReportConfig.model_validate({"prompts": ["Why?"] * 6})
