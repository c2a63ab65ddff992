"""Axolotl's own prompt strategies train exactly what the row formats call the answers, before and after rewriting."""

import json
import re
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault
from datasets import Dataset

from axolotl_sdft.distillation.rows.formats import resolve_row_format

SOME_ROWS = settings(max_examples=10, suppress_health_check=list(HealthCheck))

word = st.text("abcdefghijklmnopqrstuvwxyzäß0123456789", min_size=1, max_size=8)
sentence = st.lists(word, min_size=1, max_size=6).map(lambda words: " ".join(words).capitalize() + ".")


@cache
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@cache
def strategy(config_json: str, folder):
    """Return what Axolotl tokenizes the rows of a dataset entry with."""
    from axolotl.utils.data import wrappers

    entry = DictDefault({"path": "rows", **json.loads(config_json)})
    base, _, style = entry.type.partition(":") if isinstance(entry.type, str) else ("", "", "")
    with patch.object(wrappers, "wrap_dataset_for_tokenized_prompt", lambda strategy, *_, **__: strategy):
        found, _ = wrappers.get_dataset_wrapper(
            dataset_config=entry,
            tokenizer=tokenizer(folder),
            cfg=DictDefault(sequence_len=2048, train_on_inputs=False),
            dataset_base_type=base,
            dataset=Dataset.from_list([{"id": 1}]),
            dataset_prompt_style=style or None,
        )
    return found


def tokenized(rows: list[dict[str, Any]], config: dict[str, Any], folder) -> list[dict[str, list[int]]]:
    """Return the rows as Axolotl trains on them, read from a table, which fills up keys that only some of them have."""
    return [strategy(json.dumps(config), folder).tokenize_prompt(row) for row in Dataset.from_list(rows).to_list()]


def parts(row: dict[str, list[int]], folder) -> tuple[str, str]:
    """Return the text that is not trained, and the text that is, without the tokens that end a turn."""
    pairs = list(zip(row["input_ids"], row["labels"], strict=True))
    masked = tokenizer(folder).decode([token for token, label in pairs if label == -100])
    trained = tokenizer(folder).decode([label for _, label in pairs if label != -100])
    return masked, squeezed(trained)


def squeezed(text: str) -> str:
    """Return a text without control tokens and space, some of which is trained with an answer."""
    return "".join(re.sub(r"<\|[a-z_]+\|>", "", text).split())


def assert_trains_the_answers(rows: list[dict[str, Any]], config: dict[str, Any], folder, lead: str = "") -> None:
    """Check that the references, each after a lead, are what Axolotl trains, and all that rewriting changes."""
    row_format = resolve_row_format(config)
    rewritten = list(rows)
    for place, row in enumerate(rows):
        for index in range(row_format.num_targets(row)):
            rewritten[place] = row_format.with_answer(rewritten[place], index, f"New answer {index}.")
    before, after = (tokenized(each, config, folder) for each in (rows, rewritten))
    for row, old, new in zip(rows, before, after, strict=True):
        count = row_format.num_targets(row)
        references = [row_format.target(row, index).reference for index in range(count)]
        answers = [f"New answer {index}." for index in range(count)]
        assert parts(old, folder)[1] == squeezed("".join(lead + text for text in references))
        assert parts(new, folder)[1] == squeezed("".join(lead + text for text in answers))
        assert parts(old, folder)[0] == parts(new, folder)[0]


# What may stand in the trained text of a built-in type and is not shown: whose turn it is.
HEADINGS = {
    *(
        "###",
        "Instruction:",
        "Input:",
        "Response:",
        "System:",
        "User:",
        "Human:",
        "Assistant:",
        "Additional",
        "Context:",
    ),
    *("SYSTEM:", "USER:", "ASSISTANT:", "system", "user", "assistant"),
}


def assert_shows_the_question(rows: list[dict[str, Any]], config: dict[str, Any], folder, hidden=HEADINGS) -> None:
    """Check that what Axolotl puts before an answer is known to the letter, and shown but for headings and tokens."""
    row_format = resolve_row_format(config)
    for row, tokens in zip(rows, tokenized(rows, config, folder), strict=True):
        masked = parts(tokens, folder)[0]
        assert row_format.trained(row)[0] == masked
        shown = " ".join(message["content"] for message in row_format.target(row, 0).context)
        words = re.sub(r"<\|[a-z_]+\|>|\[/?INST\]|<</?SYS>>", " ", masked).split()
        assert [word for word in words if word not in hidden] == [word for word in shown.split() if word not in hidden]
        assert not re.search(r"<\||INST\]|SYS>>", shown)


INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "alpaca": ("instruction", "input", "output"),
    **{f"alpaca:{style}": ("instruction", "input", "output") for style in ("chat", "chatml", "phi")},
    "alpaca_chat": ("instruction", "input", "output"),
    "alpaca_instruct": ("instruction", "output"),
    "alpaca_chat.load_qa": ("question", "answer"),
    "alpaca_chat.load_concise": ("instruction", "input", "output"),
    "alpaca_chat.load_camel_ai": ("message_1", "message_2"),
    "alpaca_chat.load_no_prompt": ("instruction", "input", "output"),
    "alpaca_instruct.load_no_prompt": ("instruction", "input", "output"),
    "alpaca_w_system": ("system", "instruction", "input", "output"),
    "alpaca_w_system.load_instruct": ("system", "instruction", "output"),
    "alpaca_w_system.load_open_orca": ("system_prompt", "question", "response"),
    "alpaca_w_system.load_open_orca_chatml": ("system_prompt", "question", "response"),
    "orcamini": ("system_prompt", "question", "response"),
    "gpteacher:chat": ("instruction", "response"),
    "oasst:chatml": ("INSTRUCTION", "RESPONSE"),
    "summarizetldr:chat": ("article", "summary"),
    "gpteacher": ("instruction", "input", "response"),
    "oasst": ("INSTRUCTION", "RESPONSE"),
    "summarizetldr": ("article", "summary"),
    "metharme": ("prompt", "generation"),
    "context_qa": ("article", "question", "answer"),
    "context_qa.load_v2": ("context", "question", "answer"),
    "creative_acr.load_answer": ("instruction", "revision"),
}


@pytest.mark.parametrize("kind", INSTRUCTIONS)
@SOME_ROWS
@given(data=st.data())
def test_the_answer_of_an_instruction_row_is_what_axolotl_trains(kind, data, tokenizer_dir):
    row = st.fixed_dictionaries(dict.fromkeys(INSTRUCTIONS[kind], sentence))
    rows = data.draw(st.lists(row, min_size=2, max_size=4))
    lead = "Answer: " if kind == "context_qa.load_v2" else ""
    assert_trains_the_answers(rows, {"type": kind}, tokenizer_dir, lead)
    assert_shows_the_question(rows, {"type": kind}, tokenizer_dir)


@SOME_ROWS
@given(
    rows=st.lists(
        st.fixed_dictionaries({"q": sentence, "more": st.just("") | sentence, "a": sentence, "who": sentence}),
        min_size=2,
        max_size=4,
    )
)
def test_the_answer_of_a_user_defined_row_is_what_axolotl_trains(rows, tokenizer_dir):
    fields = {"field_instruction": "q", "field_input": "more", "field_output": "a", "field_system": "who"}
    formats = {
        "format": "[INST] Say it in French: {instruction} ({input}) [/INST]",
        "no_input_format": "[INST] Say it in French: {instruction} [/INST]",
        "system_format": "<<SYS>>\nYou are {system}\n<</SYS>>\n\n",
    }
    for more in ({"system_format": "{system} "}, formats):
        assert_trains_the_answers(rows, {"type": {**fields, **more}}, tokenizer_dir)
        assert_shows_the_question(rows, {"type": {**fields, **more}}, tokenizer_dir, hidden=())


@pytest.mark.parametrize("value", [7, 2.5, True])
def test_a_number_in_a_question_reads_as_axolotl_writes_it(value, tokenizer_dir):
    rows = [{"instruction": value, "input": value, "output": "Yes."}] * 2
    assert_shows_the_question(rows, {"type": "alpaca"}, tokenizer_dir)


def test_axolotl_trains_on_no_answer_that_is_a_number(tokenizer_dir):
    with pytest.raises((TypeError, ValueError)):
        tokenized([{"instruction": "6 * 7", "output": 42}] * 2, {"type": "alpaca"}, tokenizer_dir)


def turns(role="role", content="content", user="user", assistant="assistant"):
    """Conversations of one to three questions and answers, some with a system message."""
    pair = st.tuples(sentence, sentence).map(
        lambda said: [{role: user, content: said[0]}, {role: assistant, content: said[1]}]
    )
    system = st.lists(sentence.map(lambda text: {role: "system", content: text}), max_size=1)
    pairs = st.lists(pair, min_size=1, max_size=3).map(lambda several: [turn for each in several for turn in each])
    return st.tuples(system, pairs).map(lambda both: [*both[0], *both[1]])


SHAREGPT = {"field_messages": "conversations", "message_property_mappings": {"role": "from", "content": "value"}}


@pytest.mark.parametrize("more", [{}, {"train_on_eos": "last"}, {"train_on_eos": "none"}, {"train_on_eos": "all"}])
@SOME_ROWS
@given(chats=st.lists(turns(), min_size=2, max_size=3))
def test_every_assistant_turn_of_a_chat_is_what_axolotl_trains(more, chats, tokenizer_dir):
    rows = [{"messages": chat} for chat in chats]
    assert_trains_the_answers(rows, {"type": "chat_template", **more}, tokenizer_dir)


@SOME_ROWS
@given(chats=st.lists(turns("from", "value", "human", "gpt"), min_size=2, max_size=3))
def test_chats_in_the_keys_of_sharegpt_are_trained_alike(chats, tokenizer_dir):
    rows = [{"conversations": chat} for chat in chats]
    assert_trains_the_answers(rows, {"type": "chat_template", **SHAREGPT}, tokenizer_dir)


@SOME_ROWS
@given(chats=st.lists(turns(user="asker", assistant="helper"), min_size=2, max_size=3))
def test_roles_of_ones_own_are_trained_alike(chats, tokenizer_dir):
    config = {"roles": {"user": ["asker"], "assistant": ["helper"], "system": ["system"]}, "roles_to_train": ["helper"]}
    rows = [{"messages": chat} for chat in chats]
    assert_trains_the_answers(rows, {"type": "chat_template", **config}, tokenizer_dir)


@SOME_ROWS
@given(chat=turns(), marks=st.lists(st.booleans() | st.none(), min_size=7, max_size=7))
def test_turns_that_say_whether_they_are_trained_are_trained_alike(chat, marks, tokenizer_dir):
    for message, mark in zip(chat, marks, strict=False):
        message["train"] = mark if message["role"] == "assistant" else None
    config = {"type": "chat_template", "message_field_training": "train"}
    plain = {
        "messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello.", "train": True}]
    }
    assert_trains_the_answers([{"messages": chat}, plain], config, tokenizer_dir)


@SOME_ROWS
@given(chats=st.lists(turns(), min_size=2, max_size=3), system=sentence)
def test_a_system_column_and_content_in_parts_are_trained_alike(chats, system, tokenizer_dir):
    rows = [
        {
            "system": system,
            "messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in chat],
        }
        for chat in chats
    ]
    assert_trains_the_answers(rows, {"type": "chat_template"}, tokenizer_dir)


TOOLS_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['reasoning_content'] %}{{ '(' + message['reasoning_content'] + ')\n' }}{% endif %}"
    "{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}{{ call | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
)


@SOME_ROWS
@given(question=sentence, result=sentence, answer=sentence, last=sentence)
def test_in_a_chat_with_tools_the_turns_that_are_no_calls_are_rewritten(question, result, answer, last, tokenizer_dir):
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"place": "Rome"}}}
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "", "tool_calls": [call], "train": False},
        {"role": "tool", "content": result, "name": "look_up"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": last},
    ]
    rows = [{"messages": messages, "tools": [{"type": "function", "function": {"name": "look_up"}}]}] * 2
    config = {"type": "chat_template", "chat_template": "jinja", "chat_template_jinja": TOOLS_TEMPLATE}
    assert_trains_the_answers(rows, {**config, "message_field_training": "train"}, tokenizer_dir)


@pytest.mark.parametrize("is_split", [True, False])
@SOME_ROWS
@given(question=sentence, thought=sentence, answer=sentence)
def test_a_thinking_part_stays_trained_as_it_is(is_split, question, thought, answer, tokenizer_dir):
    said = {"content": f"<think>\n{thought}\n</think>\n\n{answer}"}
    said = said if is_split else {"content": answer, "reasoning_content": thought}
    row = {"messages": [{"role": "user", "content": question}, {"role": "assistant", **said}]}
    jinja = {"chat_template": "jinja", "chat_template_jinja": TOOLS_TEMPLATE}
    config = {"type": "chat_template", "split_thinking": is_split, **jinja}
    row_format = resolve_row_format(config)
    assert row_format.target(row, 0).reference == answer
    (old,) = tokenized([row], config, tokenizer_dir)
    (new,) = tokenized([row_format.with_answer(row, 0, "New answer.")], config, tokenizer_dir)
    (before, trained), (after, retrained) = parts(old, tokenizer_dir), parts(new, tokenizer_dir)
    assert before == after
    assert trained.replace(squeezed(f"({thought})"), "").strip("()") == squeezed(answer)
    assert retrained == trained.removesuffix(squeezed(answer)) + squeezed("New answer.")


@SOME_ROWS
@given(texts=st.lists(st.tuples(sentence, sentence), min_size=1, max_size=3), is_split=st.booleans())
def test_the_trained_segments_of_raw_rows_are_what_axolotl_trains(texts, is_split, tokenizer_dir):
    segments = []
    for prompt, answer in texts:
        segments.append({"label": False, "text": f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"})
        pieces = [f"{answer} ", "And so on.<|im_end|>"] if is_split else [f"{answer}<|im_end|>"]
        segments += [{"label": True, "text": piece} for piece in pieces]
        segments.append({"label": False, "text": "\n"})
    assert_trains_the_answers([{"segments": segments}] * 2, {"type": "input_output"}, tokenizer_dir)


@SOME_ROWS
@given(prompt=sentence, answer=sentence)
def test_a_completion_keeps_its_prompt_and_goes_on_with_the_new_answer(prompt, answer, tokenizer_dir):
    row_format = resolve_row_format({"type": "completion", "prompt_field": "start"})
    row = {"start": prompt, "text": f"{prompt} {answer}"}
    assert row_format.target(row, 0).reference == answer
    axolotl = strategy('{"type": "completion"}', tokenizer_dir)
    new = axolotl.tokenize_prompt({"text": [row_format.with_answer(row, 0, "New answer.")["text"]]})
    assert squeezed(tokenizer(tokenizer_dir).decode(new["labels"][0])) == squeezed(f"{prompt} New answer.")


def test_the_system_message_of_llama2_chat_is_axolotls():
    from axolotl.prompt_strategies.llama2_chat import Llama2ChatPrompter

    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
    [system, _] = resolve_row_format({"type": "llama2_chat"}).target({"conversations": turns}, 0).context
    assert Llama2ChatPrompter.system_prompt == f"[INST] <<SYS>>\n{system['content']}\n<</SYS>>\n\n"
