import json

import pytest

from axolotl_sdft.config import GeneralPromptsConfig
from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.evaluation.spec import general_prompts


@pytest.fixture
def prompts_of(tmp_path):
    """Give the prompts of a file with this name and text."""

    def prompts_of(name, text, **settings):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return general_prompts(GeneralPromptsConfig(path=str(tmp_path / name), **settings))

    return prompts_of


def test_the_package_brings_64_different_prompts():
    prompts = general_prompts(GeneralPromptsConfig())

    assert len(prompts) == len(set(prompts)) == 64
    assert all(prompt == prompt.strip() and len(prompt) < 200 for prompt in prompts)


def test_fewer_prompts_are_spread_over_all_fields():
    every = general_prompts(GeneralPromptsConfig())

    assert general_prompts(GeneralPromptsConfig(num_samples=3)) == [every[0], every[21], every[42]]


def test_each_line_of_a_text_file_is_a_prompt(prompts_of):
    assert prompts_of("own.txt", "\n Why?\r\n\nHow?  \n") == ["Why?", "How?"]


def test_each_line_of_a_json_file_holds_a_prompt(prompts_of):
    rows = [{"prompt": "Why\u2028so\nlate?", "topic": "trains"}, {"prompt": "How?"}]

    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)

    assert prompts_of("own.jsonl", text) == ["Why\u2028so\nlate?", "How?"]


def test_a_mark_at_the_beginning_and_the_case_of_the_suffix_play_no_part(prompts_of):
    assert prompts_of("own.txt", "\ufeffWhy?\nHow?") == ["Why?", "How?"]
    assert prompts_of("OWN.JSONL", '\ufeff{"prompt": "Why?"}') == ["Why?"]


@pytest.mark.parametrize("line", ['{"question": "How?"}', '{"prompt": 3}', '{"prompt": " "}', "How?", '["How?"]'])
def test_a_line_without_prompt_is_named(prompts_of, line):
    message = r"recovery_report\.general_prompts\.path is '.*own\.jsonl', whose line 2 is not an object with a prompt"
    with pytest.raises(DatasetError, match=message):
        prompts_of("own.jsonl", '{"prompt": "Why?"}\n' + line)


def test_a_file_without_prompts_is_refused(prompts_of):
    with pytest.raises(DatasetError, match=r"general_prompts\.path is '.*own\.txt', which holds no prompt"):
        prompts_of("own.txt", " \n\n")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"general_prompts\.path is '.*gone\.txt', which can't be read .*remove the"):
        general_prompts(GeneralPromptsConfig(path=str(tmp_path / "gone.txt")))


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "own.txt").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(DatasetError, match=r"general_prompts\.path is '.*own\.txt', which can't be read"):
        general_prompts(GeneralPromptsConfig(path=str(tmp_path / "own.txt")))
