import json
from pathlib import Path

import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault
from datasets import Dataset

from axolotl_sdft.config import CalibrationConfig, LayerPruningConfig
from axolotl_sdft.core.errors import CheckpointError, ConfigError, DatasetError
from axolotl_sdft.core.model_folder import read_config
from axolotl_sdft.integrations.axolotl import compat
from axolotl_sdft.integrations.axolotl.calibration import calibration_entries, calibration_texts
from axolotl_sdft.integrations.axolotl.calibration_text import calibration_batches
from axolotl_sdft.integrations.axolotl.stages import prune_base_model


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(cfg, seed_dir, **settings):
    calibration = CalibrationConfig(**settings)
    cfg = DictDefault(cfg)
    return calibration_texts(cfg, calibration_entries(cfg, calibration), calibration, seed_dir)


def test_the_training_set_is_read_as_conversations_in_the_chat_template(tmp_path, tiny_llama_dir):
    rows = [{"instruction": f"Question {n}", "input": "", "output": f"Answer {n}"} for n in range(3)]
    entry = {"path": write_rows(tmp_path / "rows.jsonl", rows), "type": "alpaca"}

    read = texts({"datasets": [entry]}, tiny_llama_dir)

    assert len(read) == 3
    assert "<|im_start|>user\nQuestion 1<|im_end|>\n<|im_start|>assistant\nAnswer 1<|im_end|>" in read[1]


def test_samples_are_spread_over_all_datasets(tmp_path, tiny_llama_dir):
    entries = [
        {"path": write_rows(tmp_path / f"{name}.jsonl", [{"text": f"{name}{n}"} for n in range(4)])} for name in "ab"
    ]
    assert texts({"datasets": entries}, tiny_llama_dir, num_samples=4) == ["a0", "a2", "b0", "b2"]


def test_a_calibration_path_of_plain_text_needs_no_type(tmp_path, tiny_llama_dir):
    path = write_rows(tmp_path / "text.jsonl", [{"text": "Once upon a time."}])
    assert texts({}, tiny_llama_dir, path=path) == ["Once upon a time."]


def test_the_type_is_found_from_the_columns(tmp_path, tiny_llama_dir):
    path = write_rows(tmp_path / "qa.jsonl", [{"question": "Why?", "answer": "Because."}])
    (read,) = texts({}, tiny_llama_dir, path=path)
    assert "Why?" in read
    assert "Because." in read


def test_columns_that_fit_no_format_are_refused_by_name(tmp_path, tiny_llama_dir):
    path = write_rows(tmp_path / "odd.jsonl", [{"left": "a", "right": "b"}])
    with pytest.raises(DatasetError, match=r"calibration.type is not set, and the columns left, right fit no"):
        texts({}, tiny_llama_dir, path=path)


QUESTION = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
SHAREGPT = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": QUESTION},
        {"messages": json.dumps(QUESTION)},
        {"conversations": SHAREGPT},
        {"conversations": QUESTION},
        {"instruction": "Why?", "output": "Because."},
        {"instruction": "Why?", "context": "", "response": "Because."},
        {"prompt": "Why?", "completion": "Because."},
        {"question": "Why?", "answer": "Because.", "id": 7},
    ],
    ids=lambda row: "-".join(row),
)
def test_rows_without_a_type_are_known_by_their_columns(row, tmp_path, tiny_llama_dir):
    (read,) = texts({}, tiny_llama_dir, path=write_rows(tmp_path / "rows.jsonl", [row]))
    assert "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause.<|im_end|>" in read


ASKED, GOOD, BAD = QUESTION[0], QUESTION[1], {"role": "assistant", "content": "No."}
GOOD_TEXT, BAD_TEXT = "Because.", "No."


@pytest.mark.parametrize(
    ("entry", "row"),
    [
        ({"type": "chat_template.default"}, {"messages": [ASKED], "chosen": GOOD, "rejected": BAD}),
        ({"type": "chat_template.default"}, {"messages": "Why?", "chosen": GOOD_TEXT, "rejected": BAD_TEXT}),
        (
            {"type": "chat_template.default", "field_messages": "talk", "field_chosen": "good"},
            {"talk": [ASKED], "good": [GOOD], "bad": [BAD]},
        ),
        (
            {
                "type": "chat_template.default",
                "field_messages": "conversations",
                "message_property_mappings": {"role": "from", "content": "value"},
                "roles": {"user": ["human"], "assistant": ["gpt"]},
            },
            {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": {"from": "gpt", "value": "No."}},
        ),
        ({"type": "chat_template.argilla_chat"}, {"chosen": QUESTION, "rejected": [ASKED, BAD]}),
        ({"type": "chatml.intel"}, {"question": "Why?", "chosen": GOOD_TEXT, "rejected": BAD_TEXT}),
        ({"type": "llama3.ultra"}, {"prompt": "Why?", "chosen": QUESTION, "rejected": [ASKED, BAD]}),
        ({"type": "bradley_terry.chat_template"}, {"input": "Why?", "chosen": GOOD_TEXT, "rejected": BAD_TEXT}),
        ({"type": "chatml.argilla"}, {"instruction": "Why?", "completion": GOOD_TEXT, "label": True}),
        (
            {"type": {"field_prompt": "asked", "field_chosen": "good", "field_rejected": "bad"}},
            {"asked": "Why?", "good": GOOD_TEXT, "bad": BAD_TEXT},
        ),
        (
            {"type": {"field_prompt": "asked", "field_completion": "said", "field_label": "liked"}},
            {"asked": "Why?", "said": GOOD_TEXT, "liked": True},
        ),
        ({"type": {"field_label": "liked"}}, {"prompt": "Why?", "completion": GOOD_TEXT, "liked": True}),
        ({}, {"prompt": "Why?", "chosen": GOOD_TEXT, "rejected": BAD_TEXT}),
        ({}, {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}),
    ],
    ids=str,
)
def test_of_preferences_the_prompt_and_the_chosen_answer_are_read(entry, row, tmp_path, tiny_llama_dir):
    cfg = {"rl": "dpo", "datasets": [entry | {"path": write_rows(tmp_path / "rows.jsonl", [row])}]}
    (read,) = texts(cfg, tiny_llama_dir)
    assert "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause.<|im_end|>" in read
    assert "No." not in read


KTO_ROWS = [{"prompt": f"Why {n}?", "completion": f"{n}.", "label": n % 2 == 0} for n in range(6)]


@pytest.mark.parametrize("label", [bool, int])
def test_completions_labelled_undesirable_are_left_out_and_counted(label, tmp_path, tiny_llama_dir, caplog):
    rows = [row | {"label": label(row["label"])} for row in KTO_ROWS]
    cfg = {"rl": "kto", "datasets": [{"path": write_rows(tmp_path / "rows.jsonl", rows), "type": "chatml.ultra"}]}
    with caplog.at_level("INFO", "axolotl_sdft"):
        read = texts(cfg, tiny_llama_dir, num_samples=3)
    assert ["Why 0?" in read[0], "Why 2?" in read[1], "Why 4?" in read[2], len(read)] == [True, True, True, 3]
    assert "datasets[0]: the completions of 3 of 6 rows are labelled undesirable" in caplog.text


def test_from_python_completions_labelled_undesirable_are_left_out_and_counted(tiny_llama_dir, caplog):
    dataset = Dataset.from_list(KTO_ROWS)
    for rows in (dataset, dataset.to_iterable_dataset()):
        caplog.clear()
        with caplog.at_level("INFO", "axolotl_sdft"):
            batches = calibration_batches(rows, tiny_llama_dir, CalibrationConfig(num_samples=6))
        assert sum(len(batch["input_ids"]) for batch in batches) == 3
        assert "dataset: the completions of 3 of 6 rows are labelled undesirable" in caplog.text


def test_labels_that_are_no_truth_values_say_nothing_of_what_is_desired(tmp_path, tiny_llama_dir):
    rows = [{"prompt": "Why?", "completion": "So.", "label": number} for number in (0, 1, 2)]
    assert len(texts({}, tiny_llama_dir, path=write_rows(tmp_path / "rows.jsonl", rows))) == 3


@pytest.mark.parametrize(
    ("kind", "column"),
    [("chatml.intel", "system"), ({"field_prompt": "question", "field_system": "manner"}, "manner")],
)
def test_preferences_keep_their_system_message(kind, column, tmp_path, tiny_llama_dir):
    row = {column: "Be brief.", "question": "Why?", "chosen": "Because.", "rejected": "No."}
    (read,) = texts({"datasets": [{"path": write_rows(tmp_path / "rows.jsonl", [row]), "type": kind}]}, tiny_llama_dir)
    assert "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>" in read


def test_supervised_rows_beside_columns_of_preferences_are_read_by_their_type(tmp_path, tiny_llama_dir):
    row = {"instruction": "Why?", "input": "", "output": "Because.", "chosen": "Tea.", "rejected": "No."}
    cfg = {"datasets": [{"path": write_rows(tmp_path / "rows.jsonl", [row]), "type": "alpaca"}]}
    (read,) = texts(cfg, tiny_llama_dir)
    assert "Because." in read
    assert "Tea." not in read


@pytest.mark.parametrize(
    ("entry", "row"),
    [
        ({"type": "completion"}, {"text": "Tea."}),
        ({"type": "completion", "field": "body"}, {"body": "Tea.", "text": "not this"}),
        ({"type": {"field": "body"}}, {"body": "Tea.", "text": "not this"}),
        ({}, {"text": "Tea.", "title": "x"}),
    ],
)
def test_running_text_is_read_as_it_is(entry, row, tmp_path, tiny_llama_dir):
    cfg = {"datasets": [entry | {"path": write_rows(tmp_path / "rows.jsonl", [row])}]}
    assert texts(cfg, tiny_llama_dir) == ["Tea."]


def test_a_plain_column_can_be_named_in_the_calibration_s_type(tmp_path, tiny_llama_dir):
    path = write_rows(tmp_path / "rows.jsonl", [{"body": "Tea."}])
    assert texts({}, tiny_llama_dir, path=path, type={"field": "body"}) == ["Tea."]
    with pytest.raises(DatasetError, match=r"running text in the column 'story', but its columns are body; name the"):
        texts({}, tiny_llama_dir, path=path, type={"field": "story"})


@pytest.mark.parametrize("named", [True, False], ids=["path", "mapping"])
def test_of_a_pretraining_corpus_the_first_rows_are_read(named, tmp_path, tiny_llama_dir):
    key = "text" if named else "body"
    path = write_rows(tmp_path / "rows.jsonl", [{key: f"Line {n}."} for n in range(9)])
    corpus = path if named else [{"path": path, "text_column": "body", "skip": 2}]
    first = 0 if named else 2
    read = texts({"pretraining_dataset": corpus}, tiny_llama_dir, num_samples=3)
    assert read == [f"Line {n}." for n in range(first, first + 3)]


def test_a_pretraining_corpus_that_is_nowhere_is_refused_by_its_key(tiny_llama_dir):
    with pytest.raises(DatasetError, match=r"pretraining_dataset\[0\]\.path is 'no/where', which could not be loaded"):
        texts({"pretraining_dataset": "no/where"}, tiny_llama_dir)


TOOL = {"type": "function", "function": {"name": "boil", "description": "Boils.", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "boil", "arguments": '{"litres": 2}'}}
TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.litres }}){% endfor %}{% endfor %}"
)


@pytest.fixture
def seed_with(tiny_llama_dir, tmp_path):
    """Makes a tokenizer with another chat template, or with none."""
    from transformers import AutoTokenizer

    def make(template):
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / "seed")
        return tmp_path / "seed"

    return make


@pytest.fixture
def tool_seed(seed_with):
    """A tokenizer whose chat template writes tools and calls, and that refuses a conversation without a user."""
    refusal = "{% if messages[0].role == 'tool' %}{{ raise_exception('starts with a tool') }}{% endif %}"
    return seed_with(refusal + TEMPLATE)


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])], ids=["list", "json"])
def test_tools_their_calls_and_their_results_are_part_of_the_text(tools, tmp_path, tool_seed):
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "Tea!"}]},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "boiled"},
        {"role": "assistant", "content": "Done."},
    ]
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": json.dumps(chat), "tools": tools}])
    read = texts({"datasets": [{"path": path, "type": "chat_template"}]}, tool_seed)
    assert read == ["[boil]<user>Tea!<assistant>boil(2)<tool>boiled<assistant>Done."]


def test_a_conversation_that_the_chat_template_refuses_is_told_with_its_roles(tmp_path, tool_seed):
    chat = [{"role": "tool", "content": "boiled"}, {"role": "user", "content": "Thanks."}]
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": chat}])
    with pytest.raises(DatasetError, match=r"refuses a conversation of tool, user \(starts with a tool\); set"):
        texts({}, tool_seed, path=path)


def test_keys_roles_and_system_messages_are_read_as_the_entry_says(tmp_path, tool_seed):
    row = {"talk": [{"who": "me", "says": "Why?"}, {"who": "it", "says": "Because."}], "system": "Be short."}
    entry = {
        "path": write_rows(tmp_path / "rows.jsonl", [row]),
        "type": "chat_template",
        "field_messages": "talk",
        "message_property_mappings": {"role": "who", "content": "says"},
        "roles": {"user": ["me"], "assistant": ["it"]},
    }
    assert texts({"datasets": [entry]}, tool_seed) == ["<system>Be short.<user>Why?<assistant>Because."]
    assert texts({"datasets": [entry | {"drop_system_message": True}]}, tool_seed) == ["<user>Why?<assistant>Because."]


def test_a_template_that_shows_parts_alone_gets_every_message_in_parts(tmp_path, seed_with):
    parts = "{% for part in m.content %}{{ part.text }}{% endfor %}"
    seed = seed_with("{% for m in messages %}<{{ m.role }}>" + parts + "{% endfor %}")
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": QUESTION}])
    assert texts({}, seed, path=path) == ["<user>Why?<assistant>Because."]


def test_a_template_that_shows_nothing_of_a_conversation_is_refused(tmp_path, seed_with):
    seed = seed_with("{% for m in messages %}<{{ m.role }}>{% endfor %}")
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": QUESTION}])
    with pytest.raises(DatasetError, match=r"calibration: the seed model's chat template shows nothing of what a conv"):
        texts({}, seed, path=path)


def test_without_a_chat_template_the_messages_are_joined(tmp_path, bare_seed):
    path = write_rows(tmp_path / "rows.jsonl", [{"question": "Why?", "answer": "Because."}])
    assert texts({}, bare_seed, path=path) == ["Why?\n\nBecause."]


@pytest.mark.parametrize(
    ("row", "entry", "message"),
    [
        (
            {"chosen": "a", "rejected": "b"},  # and no prompt
            {"type": "dpo"},
            r"datasets\[0\]\.type is 'dpo', whose rows can't be read",
        ),
        (
            {"text": "a"},
            {"type": "no_such"},
            r"type is 'no_such'.*set layer_pruning\.calibration\.path to a data",
        ),
        (
            {"messages": "[{"},
            {"type": "chat_template"},
            r"datasets\[0\], column 'messages' holds a text that is no",
        ),
    ],
)
def test_rows_that_are_no_text_are_refused_with_the_way_out(row, entry, message, tmp_path, tiny_llama_dir):
    cfg = {"datasets": [entry | {"path": write_rows(tmp_path / "rows.jsonl", [row])}]}
    with pytest.raises(DatasetError, match=message):
        texts(cfg, tiny_llama_dir)


def test_a_row_without_a_prompt_or_an_answer_is_left_out_and_counted(tmp_path, tiny_llama_dir, caplog):
    rows = [{"instruction": "Why?", "output": None}, {"instruction": "Why?", "output": "Because."}]
    (read,) = texts({}, tiny_llama_dir, path=write_rows(tmp_path / "rows.jsonl", rows), type="alpaca")
    assert "Because." in read
    assert "layer_pruning.calibration: 1 of 2 rows hold no text and are left out of the calibration" in caplog.text


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("line", "gap"),
    [
        ({"text": "Tea."}, {"text": None}),
        ({"question": "Why?", "answer": "Tea."}, {"question": "Why?", "answer": None}),
        ({"messages": QUESTION}, {"messages": None}),
        ({"text": "Tea."}, {"text": " "}),
    ],
    ids=["text", "answer", "messages", "blank"],
)
def test_rows_without_text_are_left_out_wherever_they_stand(line, gap, place, tmp_path, tiny_llama_dir, caplog):
    rows = [line, line, line]
    rows[place] = gap
    read = texts({}, tiny_llama_dir, path=write_rows(tmp_path / "rows.jsonl", rows))
    assert len(read) == 2
    assert "1 of 3 rows hold no text" in caplog.text


def test_rows_that_hold_no_text_at_all_are_refused(tmp_path, tiny_llama_dir):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": None}, {"text": ""}])
    with pytest.raises(DatasetError, match=r"calibration holds no text to score the layers on in any of 2 rows; check"):
        texts({}, tiny_llama_dir, path=path)


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        (
            {"text": 42},
            None,
            r"layer_pruning\.calibration: column 'text' is to be read as running text, but holds int64",
        ),
        (
            {"body": 1.5},
            {"field": "body"},
            r"column 'body' is .* but holds float64, such as 1.5; name a column of text",
        ),
        ({"body": ["a"]}, {"field": "body"}, r"column 'body' is .* but holds list, such as \['a'\]"),
        (
            {"question": "6 * 7", "answer": 42},
            None,
            r"calibration: column 'answer' holds int64, but its type .* needs text",
        ),
    ],
)
def test_a_column_of_numbers_is_named_with_what_it_holds(line, kind, message, tmp_path, tiny_llama_dir):
    path = write_rows(tmp_path / "rows.jsonl", [line])
    with pytest.raises(DatasetError, match=message):
        texts({}, tiny_llama_dir, path=path, **({"type": kind} if kind else {}))


def test_a_question_that_is_a_number_becomes_text(tmp_path, tiny_llama_dir):
    (read,) = texts({}, tiny_llama_dir, path=write_rows(tmp_path / "r.jsonl", [{"question": 7, "answer": "Prime."}]))
    assert "<|im_start|>user\n7<|im_end|>" in read


@pytest.mark.parametrize("kind", [None, "alpaca"])
def test_rows_that_are_tokenized_are_read_as_their_tokens_say(kind, tmp_path, tiny_llama_dir):
    from transformers import AutoTokenizer

    text = "<|im_start|>user\nWhy?<|im_end|>\n"
    ids = AutoTokenizer.from_pretrained(tiny_llama_dir)(text)["input_ids"]
    row = {"input_ids": [*ids, 0, 0], "attention_mask": [1] * len(ids) + [0, 0], "labels": [*ids, -100, -100]}
    entry = {"path": write_rows(tmp_path / "rows.jsonl", [row]), "type": kind}
    assert texts({"datasets": [entry]}, tiny_llama_dir) == [text]


def test_a_conversation_over_two_columns_is_read_as_one(tmp_path, tiny_llama_dir):
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": QUESTION[:1], "completion": QUESTION[1:]}])
    (read,) = texts({}, tiny_llama_dir, path=path)
    assert "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause.<|im_end|>" in read
    fields = {"field_instruction": "prompt", "field_output": "completion"}
    with pytest.raises(DatasetError, match=r"column 'completion' holds lists of messages.*use type: chat_template"):
        texts({}, tiny_llama_dir, path=path, type=fields)


@pytest.mark.parametrize("is_list", [True, False])
def test_a_pretraining_corpus_of_local_files_is_read_as_axolotl_reads_it(is_list, tmp_path, tiny_llama_dir):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": f"Line {n}."} for n in range(5)])
    corpus = {"path": "json", "data_files": [path], "skip": 1}
    read = texts({"pretraining_dataset": [corpus] if is_list else corpus}, tiny_llama_dir, num_samples=2)
    assert read == ["Line 1.", "Line 2."]


def test_of_several_corpora_the_first_is_read_which_alone_is_trained(tmp_path, tiny_llama_dir, caplog):
    corpora = [
        {"path": "text", "data_files": write_text(tmp_path / f"{name}.txt", name), "split": "train"} for name in "ab"
    ]
    assert texts({"pretraining_dataset": corpora}, tiny_llama_dir) == ["a"]
    assert "pretraining_dataset names 2 corpora, of which Axolotl reads the first alone" in caplog.text


def write_text(path, text):
    path.write_text(text + "\n")
    return str(path)


@pytest.fixture
def bare_seed(seed_with):
    """A tokenizer without a chat template."""
    return seed_with(None)


JINJA = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("top", "own", "expected"),
    [
        ({"chat_template_jinja": JINJA}, {}, "<user>Why?<assistant>Because."),
        (
            {"chat_template": "jinja", "chat_template_jinja": JINJA},
            {"chat_template": "tokenizer_default"},
            "<user>Why?",
        ),
        ({"chat_template": "chatml"}, {"chat_template_jinja": JINJA}, "<user>Why?<assistant>Because."),
        ({"chat_template": "chatml"}, {}, "<|im_start|>user\nWhy?<|im_end|>"),
        ({"chat_template": "tokenizer_default_fallback_chatml"}, {}, "<|im_start|>user\nWhy?<|im_end|>"),
        ({"chat_template": "tokenizer_default"}, {}, "Why?\n\nBecause."),
    ],
)
def test_a_seed_without_a_chat_template_takes_that_of_the_configuration(top, own, expected, tmp_path, bare_seed):
    entry = {"path": write_rows(tmp_path / "rows.jsonl", [{"messages": QUESTION}]), "type": "chat_template", **own}
    (read,) = texts({"datasets": [entry], **top}, bare_seed)
    assert expected in read


@pytest.fixture
def seed_without_tokenizer(tiny_llama_dir, monkeypatch):
    """A model whose folder holds no tokenizer, as where tokenizer_config names another one."""

    def refused(*_args, **_settings):
        raise ValueError("no tokenizer here")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refused)
    return tiny_llama_dir


def test_a_seed_without_a_tokenizer_is_refused_where_text_is_needed(tmp_path, seed_without_tokenizer):
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": QUESTION}])
    with pytest.raises(
        CheckpointError, match=r"base_model .* can't be loaded .*no tokenizer here.* or name the layers in"
    ):
        texts({}, seed_without_tokenizer, path=path)


@pytest.mark.parametrize("settings", [{"drop_layers": (2, 3)}, {"num_layers": 2, "metric": "last"}])
def test_a_seed_without_a_tokenizer_is_cut_bare_with_a_warning_where_none_is_needed(
    settings, tmp_path, seed_without_tokenizer, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compat, "validate_early", lambda _cfg: None)
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": QUESTION}])
    cfg = DictDefault({"base_model": str(seed_without_tokenizer), "datasets": [{"path": path}]})
    prune_base_model(cfg, LayerPruningConfig(**settings))
    assert read_config(Path(cfg.base_model))["num_hidden_layers"] == 4
    assert "removed without a patch: there is no calibration text to fit it on" in caplog.text


def test_a_seed_with_a_chat_template_keeps_it(tmp_path, tiny_llama_dir):
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": QUESTION}])
    (read,) = texts({"chat_template": "jinja", "chat_template_jinja": JINJA}, tiny_llama_dir, path=path)
    assert "<|im_start|>user\nWhy?<|im_end|>" in read


def test_a_chat_template_that_axolotl_does_not_know_is_refused(tmp_path, bare_seed):
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": QUESTION}])
    with pytest.raises(
        ConfigError, match=r"chat_template is 'chatmal', which can't be used \(.*; name one of Axolotl's"
    ):
        texts({"chat_template": "chatmal"}, bare_seed, path=path)
