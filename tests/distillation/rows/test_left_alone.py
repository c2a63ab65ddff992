"""Trained answers that are never asked about are counted, with the reason and the way out, wherever a user looks."""

import json
import logging

import pytest
from datasets import Dataset, load_from_disk

from axolotl_sdft import SelfDistillationConfig
from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.distillation.output.dataset import read_summary
from axolotl_sdft.distillation.output.preview import preview, preview_lines
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.rows.formats import resolve_row_format
from axolotl_sdft.distillation.rows.left_alone import LeftAlone, LeftAloneCounts, rewritten_of
from axolotl_sdft.distillation.spec import DistillationSpec
from tests.distillation.rows.test_chat import CHAT, TWO_TURNS, says

CALL = '<tool_call>{"name": "tide", "arguments": {"port": "Brest"}}</tool_call>'
ASKED = [says("user", "When is high water in Brest?")]


def reasons(row, **config):
    return [why.reason for why in resolve_row_format({**CHAT, **config}).left_alone(row)]


def chat(*messages, **more):
    return {"messages": [*messages], **more}


# What the formats tell


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (TWO_TURNS, []),
        ([says("assistant", "Welcome."), *TWO_TURNS], ["no user turn before it"]),
        ([*TWO_TURNS, says("assistant", "Still?")], ["follows neither a user turn nor the result of a call"]),
        ([*ASKED, says("critic", "Hm."), says("assistant", "At noon.")], ["role 'critic' before it"]),
        (
            [says("developer", "Be brief."), *ASKED, says("observation", "12:00"), says("assistant", "At noon.")],
            ["role 'developer', 'observation' before it"],
        ),
        ([*ASKED, says("assistant", None)], ["a turn of the role 'assistant' without content"]),
        ([says("user", None), *TWO_TURNS[1:2]], ["a turn of the role 'user' without content"]),
        (
            [says("user", [{"type": "image"}]), says("assistant", "A cat.")],
            ["a turn of the role 'user' whose content is not text alone"],
        ),
        ([*ASKED, says("assistant", "", tool_calls=[{"name": "tide"}])], ["calls a function"]),
        (
            [*ASKED, says("assistant", None, function_call={"name": "tide", "arguments": "{}"})],
            ["calls a function under the old key function_call"],
        ),
        ([*ASKED, says("assistant", "<think>Noon, or")], ["its thinking part has no end"]),
        (
            [*ASKED, says("assistant", [{"text": "At noon.", "train": True}])],
            ["marks within it say what is trained of it"],
        ),
    ],
)
def test_each_trained_turn_that_is_not_rewritten_has_its_reason(messages, expected):
    assert reasons(chat(*messages)) == expected


def test_every_trained_turn_is_either_a_target_or_left_alone():
    row = chat(*TWO_TURNS, says("critic", "Hm."), *TWO_TURNS)
    assert resolve_row_format(CHAT).num_targets(row) == 2
    assert reasons(row) == ["role 'critic' before it"] * 2
    assert (
        reasons(chat(*TWO_TURNS, images=["x.png"])) == ["the row has pictures, which the seed model is not shown"] * 2
    )


def test_trained_turns_of_other_roles_are_named_and_untrained_ones_are_told_apart():
    row = chat(*TWO_TURNS[:2], says("narrator", "Rain."))
    assert reasons(row, roles_to_train=["assistant", "narrator"]) == ["role 'narrator'"]
    told = resolve_row_format({**CHAT, "roles_to_train": ["user"]}).left_alone(chat(*TWO_TURNS[:2]))
    assert told == [
        LeftAlone("role 'user'", "only turns of the assistant are rewritten"),
        LeftAlone("not trained: roles_to_train lacks the assistant", is_trained=False),
    ]
    off = resolve_row_format({**CHAT, "message_field_training": "train"})
    [why] = off.left_alone(chat(TWO_TURNS[0], says("assistant", "Hello.", train=False)))
    assert (why.reason, why.is_trained) == ("not trained: its 'train' is false", False)


def test_roles_count_as_they_are_spelt_as_they_do_for_axolotl():
    row = chat(says("User", "Hi"), says("ASSISTANT", "Hello."))
    [why] = resolve_row_format(CHAT).left_alone(row)
    assert why.reason == "role 'ASSISTANT'"
    assert "as they are spelt, and Axolotl trains no turn of this one; map it with `roles`" in why.way_out
    mapped = resolve_row_format({**CHAT, "roles": {"user": ["User"], "assistant": ["ASSISTANT"]}})
    assert (mapped.num_targets(row), mapped.left_alone(row)) == (1, [])


@pytest.mark.parametrize(
    ("config", "row", "expected"),
    [
        ({"type": "alpaca"}, {"instruction": "Hi", "output": None}, "column 'output' holds no text (null)"),
        ({"type": "alpaca"}, {"instruction": ["Hi"], "output": "x"}, "column 'instruction' holds no text (list)"),
        ({"type": "input_output"}, {"segments": None}, "its segments are not a list"),
        ({"type": "input_output"}, {"segments": [{"label": True, "text": "Hi."}]}, "no untrained text before it"),
        ({"type": "completion", "prompt_field": "p"}, {"text": "a b", "p": "b"}, "does not begin with its prompt"),
        ({"type": "completion", "prompt_field": "p"}, {"text": "a", "p": "a"}, "nothing follows its prompt"),
    ],
)
def test_rows_of_other_formats_tell_their_reasons(config, row, expected):
    row_format = resolve_row_format(config)
    assert row_format.num_targets(row) == 0
    [why] = row_format.left_alone(row)
    assert expected in why.reason


def test_a_running_text_that_begins_otherwise_than_its_prompt_tells_which_column_is_meant():
    row_format = resolve_row_format({"type": "completion", "prompt_field": "title"})
    [why] = row_format.left_alone({"title": "Ice", "text": "What is ice? Frozen water."})
    assert why.way_out == "name the column that the text begins with as `prompt_field`"


# Calls that are written as text


def spec_for(rows, seed_dir, tmp_path, config=CHAT, **settings):
    settings = {"template": "plain", "checks": (), "generation": {"backend": "echo"}} | settings
    return DistillationSpec(
        Dataset.from_list(rows),
        SelfDistillationConfig(output_dir=str(tmp_path / "out"), **settings),
        seed_dir,
        config,
        "seed",
        "datasets[0]",
    )


def call_rows(kind):
    if kind == "chat_template":
        return [chat(*ASKED, says("assistant", CALL)), chat(*TWO_TURNS)]
    return [{"instruction": "When?", "output": f"I look.\n{CALL}"}, {"instruction": "Hi", "output": "Hello."}]


@pytest.mark.usefixtures("echo_plugin")
@pytest.mark.parametrize("kind", ["chat_template", "alpaca"])
def test_calls_written_as_text_stay_as_they_are(seed_dir, tmp_path, kind):
    rows = call_rows(kind)
    distilled = load_from_disk(str(run_distillation(spec_for(rows, seed_dir, tmp_path, {"type": kind})))).to_list()
    assert {key: distilled[0][key] for key in rows[0]} == rows[0]
    assert distilled[0]["sdft_reasons"] == ["left alone: calls a function, written as text"]
    assert distilled[1]["sdft_source"] == "distilled"


@pytest.mark.usefixtures("echo_plugin")
@pytest.mark.parametrize("kind", ["chat_template", "alpaca"])
def test_where_calls_are_checked_an_answer_that_lost_the_markup_is_rejected(seed_dir, tmp_path, kind, monkeypatch):
    from tests.distillation.echo_backend import EchoBackend

    bare = 'tide(port="Brest")'
    monkeypatch.setattr(EchoBackend, "answer", lambda self, prompt: said(bare if prompt.key[0] == 0 else CALL))
    first = call_rows(kind)[0]
    rows = [first, json.loads(json.dumps(first).replace("When", "And when"))]
    settings = {"checks": ("function_call",), "template": "{{ instruction }} {{ reference }}"}
    spec = spec_for(rows, seed_dir, tmp_path, {"type": kind}, **settings)
    distilled = load_from_disk(str(run_distillation(spec)))
    assert [row[0] for row in distilled["sdft_reasons"]] == [
        "function_call: no <tool_call>, in which the original's call stands",
        "",
    ]


@pytest.mark.usefixtures("echo_plugin")
def test_an_answer_that_calls_where_the_original_does_not_is_rejected_whatever_the_checks(
    seed_dir, tmp_path, monkeypatch
):
    from tests.distillation.echo_backend import EchoBackend

    monkeypatch.setattr(EchoBackend, "answer", lambda self, prompt: said(CALL))
    distilled = load_from_disk(str(run_distillation(spec_for([chat(*TWO_TURNS)], seed_dir, tmp_path))))
    assert distilled["messages"][0] == TWO_TURNS
    assert distilled["sdft_reasons"] == [["function_call: makes a call (<tool_call>), the original none"] * 2]


def said(text):
    from axolotl_sdft.inference.interfaces import Answer

    return Answer(text, "stop", 3)


@pytest.mark.parametrize("role", ["function_call", "tool_call"])
def test_turns_of_a_calling_role_that_is_mapped_to_the_assistant_are_left_alone(seed_dir, tmp_path, echo_plugin, role):
    config = {**CHAT, "roles": {"assistant": ["gpt", role], "user": ["user"], "tool": ["observation"]}}
    result = [says("observation", "12:00"), says("gpt", "At noon.")]
    row = chat(*ASKED, says(role, "tide Brest"), *result)
    row_format = spec_for([row], seed_dir, tmp_path, config).row_format
    assert [why.reason for why in row_format.left_alone(row)] == ["calls a function, written as text"]
    assert row_format.target(row, 0).reference == "At noon."


def test_a_call_under_the_old_key_is_shown_like_any_other():
    called = says("assistant", None, function_call={"name": "tide", "arguments": '{"port": "Brest"}'})
    empty = says("assistant", "At noon.", function_call={"name": None, "arguments": None})
    row = chat(*ASKED, called, says("function", "12:00", name="tide"), empty)
    target = resolve_row_format(CHAT).target(row, 0)
    assert target.reference == "At noon."
    assert 'Function call: tide({"port": "Brest"})\n\nResult of tide: 12:00' in target.context[-1]["content"]


@pytest.mark.parametrize("value", [None, "", " ", "[]", "null", [], {"name": None}])
def test_empty_calls_are_none(value):
    for key in ("tool_calls", "function_call"):
        if not (key == "tool_calls" and isinstance(value, dict)):
            assert reasons(chat(*ASKED, says("assistant", "At noon.", **{key: value}))) == []


def test_calls_as_json_text_are_calls():
    as_list, as_one = '[{"name": "tide", "arguments": {}}]', '{"name": "tide", "arguments": {}}'
    assert reasons(chat(*ASKED, says("assistant", "", tool_calls=as_list))) == ["calls a function"]
    old = says("assistant", "", function_call=as_one)
    assert reasons(chat(*ASKED, old)) == ["calls a function under the old key function_call"]


@pytest.mark.parametrize("role", [None, 7, ["user"], {"a": 1}])
def test_a_role_that_is_not_text_is_an_unknown_one(role):
    row = chat(says(role, "Hi"), *TWO_TURNS[:2])
    assert reasons(row) == [f"role {str(role)!r} before it"]


# What the user is told


MIXED = [
    chat(*TWO_TURNS[:2]),
    chat(*ASKED, says("observation", "12:00"), says("assistant", "At noon.")),
    chat(says("developer", "Be brief."), *ASKED, says("assistant", "At noon.")),
]


@pytest.mark.usefixtures("echo_plugin")
def test_log_summary_report_card_and_rows_say_what_was_left_alone(seed_dir, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = run_distillation(spec_for(MIXED, seed_dir, tmp_path))

    told = (
        "1 of 3 trained answers rewritten, 2 left alone: role 'observation' before it (1 row), role 'developer' before "
        "it (1 row); map it with `roles` of this dataset"
    )
    summary = read_summary(folder)
    assert told in caplog.text
    assert rewritten_of(summary).startswith(told)
    assert (summary["turns"], summary["turns_left_alone"], summary["acceptance"]) == (1, 2, 1.0)
    assert [(name, told["answers"], told["rows"]) for name, told in summary["left_alone"].items()] == [
        ("role 'observation' before it", 1, 1),
        ("role 'developer' before it", 1, 1),
    ]
    page, card = (folder / "report.html").read_text(), (folder / "README.md").read_text()
    assert "role &#39;developer&#39; before it</td>" in page
    assert "| Trained answers rewritten | 1 of 3 |" in card
    assert "`role 'developer' before it` 1" in card
    assert load_from_disk(str(folder))["sdft_reasons"][1] == ["left alone: role 'observation' before it"]


@pytest.mark.usefixtures("echo_plugin")
def test_a_preview_says_what_is_left_alone(seed_dir, tmp_path):
    spec = spec_for(MIXED, seed_dir, tmp_path, gap_samples=0)
    lines = list(preview_lines(preview(spec, 3), "datasets[0]", 3))
    assert any(line.startswith("left alone: role 'observation' before it (1 row)") for line in lines)
    [line] = preview_lines(preview(spec_for(MIXED[1:], seed_dir, tmp_path), 1), "datasets[0]", 1)
    assert line.startswith("datasets[0]: none of the 1 rows holds an answer to rewrite: role 'observation' before it")


def test_a_dataset_of_which_no_row_can_be_used_is_refused_with_the_reasons(seed_dir, tmp_path, echo_plugin):
    message = r"datasets\[0\] holds no answer to rewrite: role 'observation' before it \(1 row\).*; map it with `roles`"
    with pytest.raises(DatasetError, match=message):
        run_distillation(spec_for(MIXED[1:], seed_dir, tmp_path))
    rows = [chat(says("User", "Hi"), says("ASSISTANT", "Hello."))]
    with pytest.raises(DatasetError, match=r"role 'ASSISTANT' \(1 row\); roles count as they are spelt, and Axolotl"):
        run_distillation(spec_for(rows, seed_dir, tmp_path))
    untrained = [chat(TWO_TURNS[0], says("assistant", "Hello.", train=False))]
    with pytest.raises(DatasetError, match=r"not trained: its 'train' is false \(1 row\)"):
        run_distillation(spec_for(untrained, seed_dir, tmp_path, {**CHAT, "message_field_training": "train"}))


def test_a_dataset_of_calls_alone_stays_as_it_is_with_a_warning(seed_dir, tmp_path, echo_plugin, caplog):
    rows = [chat(*ASKED, says("assistant", CALL))] * 2
    folder = run_distillation(spec_for(rows, seed_dir, tmp_path))
    assert load_from_disk(str(folder))["messages"] == [row["messages"] for row in rows]
    assert "holds no answer to rewrite and stays as it is: calls a function, written as text (2 rows)" in caplog.text


def test_a_role_with_odd_characters_is_named_in_one_printable_line():
    counts = LeftAloneCounts()
    counts.add([LeftAlone("role 'a\x1b[2J\nb\ud83d'")])
    assert counts.named() == "role 'a\ufffd[2J b\ufffd' (1 row)"
    json.dumps(counts.to_json(), ensure_ascii=False).encode()


# No text is never an answer


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b", "<think>It is noon.</think>\n"])
def test_an_answer_without_text_is_rejected_whatever_the_checks(seed_dir, tmp_path, echo_plugin, monkeypatch, text):
    from tests.distillation.echo_backend import EchoBackend

    monkeypatch.setattr(EchoBackend, "answer", lambda self, prompt: said("Good." if prompt.key[0] else text))
    rows = [{"instruction": "Hi", "output": text} for text in ("Hello.", "Good day.")]
    folder = run_distillation(spec_for(rows, seed_dir, tmp_path, {"type": "alpaca"}))
    distilled = load_from_disk(str(folder))
    assert distilled["output"] == ["Hello.", "Good."]
    assert distilled["sdft_reasons"] == [["empty: no text"], [""]]


@pytest.mark.parametrize("kind", ["failed", "empty"])
def test_a_dataset_without_any_answer_is_not_a_finished_one(seed_dir, tmp_path, echo_plugin, monkeypatch, kind):
    from axolotl_sdft.inference.interfaces import Answer
    from tests.distillation.echo_backend import EchoBackend

    answer = Answer("", "stop", 0) if kind == "empty" else Answer("", "error", 0, error="no room \x1b[1m")
    monkeypatch.setattr(EchoBackend, "answer", lambda self, prompt: answer)
    spec = spec_for([{"instruction": "Hi", "output": "Hello."}] * 3, seed_dir, tmp_path, {"type": "alpaca"})
    reason = "no text" if kind == "empty" else "no room .\\[1m"
    message = rf"datasets\[0\]: the seed model answered none of 3 prompts: {kind} 3 \(such as: {reason}\)\. Correct"
    with pytest.raises(DatasetError, match=message):
        run_distillation(spec)
    assert not spec.is_done
    assert spec.answers_dir.exists()
    assert load_from_disk(str(spec.dataset_dir))["output"] == ["Hello."] * 3  # to look at, with the reasons
    assert load_from_disk(str(spec.dataset_dir))["sdft_reasons"][0] != [""]
    dropping = spec_for(spec.dataset.to_list(), seed_dir, tmp_path, {"type": "alpaca"}, on_reject="drop")
    with pytest.raises(DatasetError, match=message):
        run_distillation(dropping)
    with pytest.raises(DatasetError, match=message):  # a second start finds nothing finished either
        run_distillation(spec)


@pytest.mark.usefixtures("echo_plugin")
def test_rows_without_any_answer_are_counted_and_alone_they_are_refused(seed_dir, tmp_path, caplog):
    rows = [chat(*TWO_TURNS[:2]), {"messages": []}, chat(TWO_TURNS[0])]
    caplog.set_level(logging.INFO)
    run_distillation(spec_for(rows, seed_dir, tmp_path))
    assert "datasets[0]: left alone: no answer in it that its type trains (2 rows); check the type" in caplog.text
    with pytest.raises(DatasetError, match=r"holds no answer to rewrite: no answer in it .* \(2 rows\)"):
        run_distillation(spec_for(rows[1:], seed_dir, tmp_path))
