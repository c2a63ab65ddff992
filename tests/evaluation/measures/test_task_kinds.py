import pytest

from axolotl_sdft.evaluation.measures.task_scores import task_kind


@pytest.mark.parametrize(
    ("configs", "kind"),
    [
        ({"arc_easy": {"output_type": "multiple_choice"}}, "multiple_choice"),
        ({"a": {"output_type": "generate_until"}, "b": {"output_type": "generate_until"}}, "generate_until"),
        ({"a": {"output_type": "generate_until"}, "b": {"output_type": "multiple_choice"}}, ""),
        ({"a": {}}, ""),
        ({}, ""),
    ],
)
def test_a_task_is_of_the_kind_that_all_its_parts_are_of(configs, kind):
    assert task_kind({"results": {}, "configs": configs}) == kind


def test_results_that_do_not_tell_have_no_kind():
    assert task_kind({"results": {}}) == ""
