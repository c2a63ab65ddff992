import logging

import pytest
from datasets import Dataset

from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.distillation.rows.recognition import recognised_config

TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
OLD_TURNS = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
PROMPT_TYPE = {
    "field_instruction": "prompt",
    "field_output": "completion",
    "format": "{instruction}",
    "no_input_format": "{instruction}",
}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": TURNS}, {"type": "chat_template", "field_messages": "messages"}),
        ({"prompt": "Why?", "completion": "So."}, {"type": PROMPT_TYPE}),
        ({"prompt": "Why?", "completion": "So.", "label": 2}, {"type": PROMPT_TYPE}),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, {"type": "trl.prompt_completion"}),
        ({"instruction": "Why?", "input": "", "output": "So."}, {"type": "alpaca"}),
        ({"question": "Why?", "answer": "So."}, {"type": "alpaca_chat.load_qa"}),
        (
            {"conversations": OLD_TURNS},
            {
                "type": "chat_template",
                "field_messages": "conversations",
                "message_property_mappings": {"role": "from", "content": "value"},
            },
        ),
    ],
)
def test_the_columns_tell_the_format(row, expected):
    assert recognised_config(Dataset.from_list([{"id": 3, **row}]).features) == expected


def test_the_log_says_which_format_was_taken(caplog):
    caplog.set_level(logging.INFO)
    recognised_config(Dataset.from_list([{"messages": TURNS}]).features, "my rows")
    assert "my rows: rows with messages are taken as {'type': 'chat_template'" in caplog.text


def test_columns_of_two_formats_are_refused_with_what_to_pass_for_each():
    features = Dataset.from_list([{"messages": TURNS, "prompt": "Why?", "completion": "So."}]).features
    with pytest.raises(DatasetError, match=r"more than one format; pass one of them: dataset_config=.*for messages; "):
        recognised_config(features)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": "Once upon a time."}, r"text is running text.*pass dataset_config, such as"),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, r"chosen and rejected answers are compared"),
        ({"prompt": "Why?", "completion": "So.", "label": False}, r"label says whether a completion is wanted"),
        ({"prompt": TURNS[:1], "completion": TURNS[1:], "label": True}, r"label says whether a completion is wanted"),
        ({"ask": "Why?", "say": "So."}, r"its columns, ask, say, show no format that is known; pass dataset_config"),
        ({"input_ids": [1], "labels": [1]}, r"its rows are tokenized already"),
    ],
)
def test_columns_that_show_no_format_are_refused_with_the_way_out(row, why):
    with pytest.raises(DatasetError, match=why):
        recognised_config(Dataset.from_list([row]).features)
