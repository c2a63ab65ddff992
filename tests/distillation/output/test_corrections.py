"""What the model got wrong becomes conversations in which it corrects itself."""

import json

import pytest
from datasets import Dataset

from axolotl_sdft import SelfDistillationConfig
from axolotl_sdft.core.errors import ArtifactError
from axolotl_sdft.distillation.interfaces import RowLimit
from axolotl_sdft.distillation.output.corrections import REQUEST, correction_rows, write_corrections
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.inference.interfaces import Answer
from tests.distillation import echo_backend

ROW = {"instruction": "How many legs do 3 spiders have?", "output": "3 times 8 is 24."}
ALONE = {"no_input_format": "{instruction}"}  # a type that puts nothing around the instruction
OTHER_ROW = {"instruction": "How many legs do 4 pigs and 1 spider have?", "output": "16 and 8 is 24."}
CHECKS = ("empty", "truncated", "numeric_answer")


@pytest.fixture
def script(echo_plugin):
    """What the seed model answers, by row, turn and attempt; emptied for each test."""
    echo_backend.SCRIPT.clear()
    return echo_backend.SCRIPT


def answer(text, finish_reason="stop"):
    return Answer(text, finish_reason, 1)


def finished_task(tmp_path, seed_dir, rows, row_type=ALONE, row_limit=None, **settings):
    settings = {"template": "unaided", "checks": CHECKS, "max_attempts": 3} | settings
    generation = {"backend": "scripted", "temperature": 0.7}
    config = SelfDistillationConfig(output_dir=str(tmp_path / "out"), generation=generation, gap_samples=0, **settings)
    spec = DistillationSpec(Dataset.from_list(rows), config, seed_dir, {"type": row_type}, "seed", row_limit=row_limit)
    run_distillation(spec)
    return spec


def turns(row):
    return [(turn["role"], turn["content"], turn["train"]) for turn in row["messages"]]


def test_a_wrong_attempt_is_followed_by_the_right_one_which_alone_is_trained(tmp_path, seed_dir, script):
    script |= {(0, 0, 0): answer("It is 11."), (0, 0, 1): answer("8 legs each, so 24.")}
    (row,) = correction_rows(finished_task(tmp_path, seed_dir, [ROW]))
    assert turns(row) == [
        ("user", "How many legs do 3 spiders have?", False),
        ("assistant", "It is 11.", False),
        ("user", REQUEST, False),
        ("assistant", "8 legs each, so 24.", True),
    ]


def test_where_no_attempt_is_right_the_original_answer_corrects_the_first(tmp_path, seed_dir, script):
    script |= {(0, 0, number): answer(f"It is {number}.") for number in range(3)}
    (row,) = correction_rows(finished_task(tmp_path, seed_dir, [ROW]))
    assert [turn[1] for turn in turns(row)][1::2] == ["It is 0.", "3 times 8 is 24."]


def test_an_answer_that_was_right_at_once_needs_no_correction(tmp_path, seed_dir, script):
    script[0, 0, 0] = answer("24")
    assert list(correction_rows(finished_task(tmp_path, seed_dir, [ROW]))) == []


def test_an_attempt_that_was_cut_off_or_is_empty_or_failed_is_not_corrected(tmp_path, seed_dir, script):
    script |= {(0, 0, 0): answer("It is", "length"), (0, 0, 1): answer(""), (0, 0, 2): answer("24")}
    script |= {(1, 0, 0): answer("", "length"), (1, 0, 1): answer("It is 7."), (1, 0, 2): answer("24")}
    rows = list(correction_rows(finished_task(tmp_path, seed_dir, [ROW, OTHER_ROW])))
    assert [turns(row)[1][1] for row in rows] == ["It is 7."]


def test_an_attempt_that_was_right_but_made_its_row_too_long_is_not_corrected(tmp_path, seed_dir, script):
    script |= {(0, 0, 0): answer("Each of the 3 spiders has 8 legs, so it is 24."), (0, 0, 1): answer("It is 24.")}
    script |= {(1, 0, 0): answer("It is 7."), (1, 0, 1): answer("It is 24.")}
    six_words = RowLimit(6, lambda row: len(row["output"].split()))
    rows = list(correction_rows(finished_task(tmp_path, seed_dir, [ROW, OTHER_ROW], row_limit=six_words)))
    assert [turns(row)[1][1] for row in rows] == ["It is 7."]


@pytest.mark.parametrize("check", ["numeric_answer", "function_call"])
def test_an_attempt_that_has_nothing_to_be_compared_with_is_not_corrected(tmp_path, seed_dir, script, check):
    script |= {(0, 0, number): answer("It is not, since others divide it.") for number in range(3)}
    row = {"instruction": "Is every even number a prime?", "output": "No, most of them are not."}
    spec = finished_task(tmp_path, seed_dir, [row], checks=(check,))
    assert list(correction_rows(spec)) == []


def test_with_all_candidates_made_a_wrong_one_after_a_right_one_is_corrected_too(tmp_path, seed_dir, script):
    script |= {(0, 0, 0): answer("24 legs"), (0, 0, 1): answer("It is 9."), (0, 0, 2): answer("24")}
    (row,) = correction_rows(finished_task(tmp_path, seed_dir, [ROW], selection="max_logprob"))
    assert [turn[1] for turn in turns(row)][1::2] == ["It is 9.", "24 legs"]


def test_a_later_turn_comes_after_those_before_it_as_they_are_trained(tmp_path, seed_dir, script):
    messages = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Times 3?"},
        {"role": "assistant", "content": "12"},
    ]
    script |= {(0, 0, 0): answer("That is 4"), (0, 1, 0): answer("7"), (0, 1, 1): answer("4 times 3 is 12")}
    (row,) = correction_rows(finished_task(tmp_path, seed_dir, [{"messages": messages}], "chat_template"))
    assert [turn[1] for turn in turns(row)] == ["2 + 2?", "That is 4", "Times 3?", "7", REQUEST, "4 times 3 is 12"]
    assert [turn[2] for turn in turns(row)] == [False] * 5 + [True]


def test_the_file_holds_one_row_a_line_and_is_counted(tmp_path, seed_dir, script):
    script |= {(index, 0, number): answer("Ünsure: 1") for index in range(2) for number in range(3)}
    spec = finished_task(tmp_path, seed_dir, [ROW, OTHER_ROW])
    path = tmp_path / "new" / "corrections.jsonl"
    assert write_corrections(spec, path) == 2
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows == list(correction_rows(spec))
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_there_is_left_alone(tmp_path, seed_dir, script):
    script[0, 0, 0] = answer("24")
    path = tmp_path / "mine.jsonl"
    path.write_text("precious")
    with pytest.raises(ArtifactError, match=r"mine\.jsonl exists already; delete it or name another file"):
        write_corrections(finished_task(tmp_path, seed_dir, [ROW]), path)
    assert path.read_text() == "precious"


def test_training_trains_nothing_but_the_correction(tmp_path, tiny_llama_dir, seed_dir, script):
    """Axolotl's own tokenization of such a row leaves labels on the last answer alone."""
    pytest.importorskip("axolotl")
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.utils.dict import DictDefault
    from transformers import AutoTokenizer

    script |= {(0, 0, 0): answer("It is 11."), (0, 0, 1): answer("8 legs each, so 24.")}
    (row,) = correction_rows(finished_task(tmp_path, seed_dir, [ROW]))
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    entry = {"path": "x", "type": "chat_template", "field_messages": "messages", "message_field_training": "train"}
    cfg = DictDefault({"sequence_len": 512, "train_on_inputs": False, "datasets": [entry]})
    strategy = load(tokenizer, cfg, DictDefault(entry))
    tokenized = strategy.tokenize_prompt(row)
    trained = [token for token, label in zip(tokenized["input_ids"], tokenized["labels"], strict=True) if label != -100]
    assert tokenizer.decode(trained).strip().removesuffix("<|im_end|>") == "8 legs each, so 24."


def test_neither_an_attempt_nor_a_correction_is_ever_without_text(tmp_path, seed_dir, script):
    script |= {(0, 0, number): answer(f"It is {number}.") for number in range(3)}
    script |= {(1, 0, 0): answer("<think>8 each</think>"), (1, 0, 1): answer("So 24.")}
    rows = [{**ROW, "output": "<think>3 times 8 is 24.</think>"}, OTHER_ROW]
    assert list(correction_rows(finished_task(tmp_path, seed_dir, rows, checks=("numeric_answer",)))) == []


def test_a_conversation_with_half_an_emoji_is_written(tmp_path, seed_dir, script):
    script |= {(0, 0, 0): answer("It is 11."), (0, 0, 1): answer("8 legs each, so 24.")}
    chat = [{"role": "user", "content": "3 spiders \ud83d?"}, {"role": "assistant", "content": "3 times 8 is 24."}]
    spec = finished_task(tmp_path, seed_dir, [{"messages": json.dumps(chat)}], "chat_template")
    assert write_corrections(spec, tmp_path / "corrections.jsonl") == 1
    row = json.loads((tmp_path / "corrections.jsonl").read_text(encoding="utf-8"))
    assert row["messages"][0]["content"] == "3 spiders \ufffd?"
