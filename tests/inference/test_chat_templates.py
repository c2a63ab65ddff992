"""Chats that the seed model's chat template refuses are put into another shape, and the token that ends a turn."""

import contextlib
import json
import math
import shutil

import pytest
import torch
from datasets import Dataset, load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_sdft import SelfDistillationConfig
from axolotl_sdft.config import OpenAIGeneration, TransformersGeneration, VLLMGeneration
from axolotl_sdft.core.errors import ConfigError, DatasetError
from axolotl_sdft.distillation.output.dataset import read_summary
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.evaluation.measures.likelihood import encode_targets
from axolotl_sdft.inference.chat_templates import render_chat, turn_end_id
from axolotl_sdft.inference.interfaces import Prompt, Target
from axolotl_sdft.inference.local.backend import TransformersBackend
from axolotl_sdft.inference.openai.backend import OpenAIBackend
from axolotl_sdft.inference.prompts import answer_ids, end_ids, prompt_ids, read_answer
from axolotl_sdft.inference.vllm.backend import VLLMBackend
from tests.distillation.rows.test_formats import says
from tests.inference.openai.openai_server import FakeServer
from tests.inference.vllm.conftest import fake as fake

TURNS = (
    "{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] + end }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
IN_TURN = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}"
)
STRICT = NO_SYSTEM + IN_TURN
DEAF = (  # drops what it does not know without a word
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'] + ': ' + message['content'] }}\n{% endif %}{% endfor %}"
)
PARTS = (  # as in SmolVLM: text that is not in parts is left out without a word
    "{% for message in messages %}{{ '[' + message['role'] + '] ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
MUTE = "{% for message in messages %}.{% endfor %}"
PICKY = "{% if 'Venice' in messages | tojson %}{{ raise_exception('not Venice') }}{% endif %}"

SYSTEM, HELLO = says("system", "Be brief."), says("assistant", "Hello.")
HI, WHY = says("user", "Hi"), says("user", "Why?")


def template(before="", end="<|im_end|>"):
    return before + "{% set end = '" + end + "' %}" + TURNS


@pytest.fixture
def tokenizer(tiny_llama_dir):
    return AutoTokenizer.from_pretrained(tiny_llama_dir)


@pytest.fixture
def seed_with(tiny_llama_dir, tmp_path):
    """Makes a seed model with another chat template."""

    def make(text):
        shutil.copytree(tiny_llama_dir, tmp_path / "seed")
        (tmp_path / "seed" / "chat_template.jinja").write_text(text)
        return tmp_path / "seed"

    return make


# Shapes


@pytest.mark.parametrize(
    ("before", "chat", "expected"),
    [
        ("", [SYSTEM, HI, WHY], [SYSTEM, HI, WHY]),
        (IN_TURN, [HI, WHY], [says("user", "Hi\n\nWhy?")]),
        (NO_SYSTEM, [SYSTEM, HI, WHY], [says("user", "Be brief.\n\nHi"), WHY]),
        (STRICT, [SYSTEM, HI, WHY], [says("user", "Be brief.\n\nHi\n\nWhy?")]),
        (STRICT, [SYSTEM, HI, HELLO, WHY], [says("user", "Be brief.\n\nHi"), HELLO, WHY]),
        (STRICT, [HELLO, HI], [says("user", "Assistant: Hello.\n\nHi")]),
        (STRICT, [SYSTEM, HELLO, HI], [says("user", "Be brief.\n\nAssistant: Hello.\n\nHi")]),
        (STRICT, [HI, HELLO, SYSTEM, WHY], [HI, HELLO, says("user", "Be brief.\n\nWhy?")]),
    ],
)
def test_a_chat_takes_the_nearest_shape_that_the_template_allows(tokenizer, before, chat, expected):
    tokenizer.chat_template = template(before)
    shape, text = render_chat(tokenizer, chat)
    assert shape == expected
    assert text == "".join(f"[{said['role']}] {said['content']}<|im_end|>\n" for said in expected) + "[assistant] "


def test_what_a_template_drops_without_a_word_is_said_in_another_place(tokenizer):
    tokenizer.chat_template = DEAF
    assert render_chat(tokenizer, [SYSTEM, HI]) == ([says("user", "Be brief.\n\nHi")], "user: Be brief.\n\nHi\n")


def test_a_template_that_shows_nothing_in_any_shape_gets_the_chat_as_it_is(tokenizer):
    tokenizer.chat_template = MUTE
    assert render_chat(tokenizer, [SYSTEM, HI]) == ([SYSTEM, HI], "..")


@pytest.mark.parametrize(
    ("before", "chat", "said"),
    [
        ("", [SYSTEM, HI, HELLO, WHY], [SYSTEM, HI, HELLO, WHY]),
        (NO_SYSTEM, [SYSTEM, HI], [says("user", "Be brief.\n\nHi")]),
    ],
)
def test_a_template_that_shows_parts_alone_gets_the_texts_in_parts(tokenizer, before, chat, said):
    tokenizer.chat_template = before + PARTS
    shape, text = render_chat(tokenizer, chat)
    assert shape == said  # a server puts strings into parts by itself
    assert text == "".join(f"[{turn['role']}] {turn['content']}<|im_end|>\n" for turn in said) + "[assistant] "
    assert tokenizer.convert_ids_to_tokens(turn_end_id(tokenizer)) == "<|im_end|>"


@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": False}])
def test_a_template_that_shows_nothing_of_a_question_is_refused_before_anything_loads(seed_with, arguments):
    backend = TransformersBackend(seed_with(MUTE), TransformersGeneration(chat_template_kwargs=arguments))
    with pytest.raises(ConfigError, match=r"chat template of .*seed shows nothing of what is asked, so every prompt"):
        backend.check()


def test_a_chat_that_is_refused_in_every_shape_is_refused_with_the_templates_reason(tokenizer):
    tokenizer.chat_template = template(PICKY)
    with pytest.raises(DatasetError, match=r"chat template refuses the chat: not Venice"):
        render_chat(tokenizer, [says("user", "Venice?")])


def test_halves_of_surrogate_pairs_reach_no_tokenizer(tokenizer):
    broken = Target((says("user", "A lake \ud83d?"),), "Como \ude00.")
    whole = Target((says("user", "A lake \ufffd?"),), "Como \ufffd.")
    assert prompt_ids(tokenizer, broken.context) == prompt_ids(tokenizer, whole.context)
    assert answer_ids(tokenizer, broken.reference) == answer_ids(tokenizer, whole.reference)
    assert prompt_ids(tokenizer, [says("user", "\ud83d\ude00")]) == prompt_ids(tokenizer, [says("user", "\U0001f600")])


# The token that ends a turn


@pytest.mark.parametrize("end", ["<|im_end|>", "<end_of_turn>", " <|end|>", "\n<|endoftext|>"])
def test_a_turn_ends_with_the_token_that_the_template_writes(tokenizer, end):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>", "<|end|>"]})
    tokenizer.chat_template = template(end=end.replace("\n", "\\n"))
    assert tokenizer.convert_ids_to_tokens(turn_end_id(tokenizer)) == end.strip()
    assert answer_ids(tokenizer, "Yes")[-1] == turn_end_id(tokenizer)
    assert end_ids(3, tokenizer) == sorted({3, tokenizer.eos_token_id, turn_end_id(tokenizer)})


@pytest.mark.parametrize(
    "text", [None, template(end=""), template(end=" (end)"), template("{{ raise_exception('x') }}")]
)
def test_without_a_token_in_the_template_a_turn_ends_with_the_tokenizers_own(tokenizer, text):
    tokenizer.chat_template = text
    assert turn_end_id(tokenizer) == tokenizer.eos_token_id


def test_marks_of_calls_are_read_though_they_are_special_tokens(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "<|other|>"]})
    ids = tokenizer('[TOOL_CALLS][{"name": "tide"}]<|other|><|im_end|>')["input_ids"]
    assert read_answer(tokenizer, ids, [tokenizer.eos_token_id])[0] == '[TOOL_CALLS][{"name": "tide"}]'


@torch.inference_mode()
def test_generation_likelihood_and_report_use_the_end_that_the_template_writes(seed_with):
    folder = seed_with(template(end="<|endoftext|>"))
    tokenizer, target = AutoTokenizer.from_pretrained(folder), Target((HI,), "Blue.")
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert end != tokenizer.eos_token_id
    backend = TransformersBackend(folder, TransformersGeneration(dtype="float32", max_new_tokens=2))

    [nll] = backend.answer_nll([(target, "Blue.")])

    prompt, answer = prompt_ids(tokenizer, [HI]), [*tokenizer("Blue.")["input_ids"], end]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    log_probs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    picked = [log_probs[len(prompt) - 1 + place, token].item() for place, token in enumerate(answer)]
    assert nll == pytest.approx(-sum(picked) / len(picked), abs=1e-4)
    assert end in backend._end_ids
    assert encode_targets(tokenizer, [target], 99)[0][0].ids == prompt + answer


# Rows that are refused


def spec_for(rows, folder, tmp_path, **settings):
    generation = {"dtype": "float32", "max_new_tokens": 4}
    config = SelfDistillationConfig(output_dir=str(tmp_path / "out"), checks=(), generation=generation, **settings)
    return DistillationSpec(Dataset.from_list(rows), config, folder, {"type": "chat_template"}, "seed")


def test_a_strict_template_rewrites_rows_of_every_kind(seed_with, tmp_path):
    chats = [[SYSTEM, HI, HELLO], [HI, WHY, HELLO], [HELLO, HI, HELLO], [HI, HELLO, WHY, HELLO]]
    folder = run_distillation(spec_for([{"messages": chat} for chat in chats], seed_with(template(STRICT)), tmp_path))
    summary = read_summary(folder)
    assert summary["rejections"] == {}
    assert summary["turns_distilled"] == summary["turns"] == 5


def test_rows_are_rewritten_with_a_template_that_shows_parts_alone(seed_with, tmp_path):
    seed = seed_with(PARTS)
    folder = run_distillation(spec_for([{"messages": [HI, HELLO]}, {"messages": [WHY, HELLO]}], seed, tmp_path))
    assert read_summary(folder)["turns_distilled"] == 2
    tokenizer = AutoTokenizer.from_pretrained(seed)
    assert "Why?" in tokenizer.decode(prompt_ids(tokenizer, [WHY]))


def test_a_row_that_the_template_refuses_keeps_its_original_with_the_reason(seed_with, tmp_path):
    chats = [[HI, HELLO], [says("user", "Is Venice wet?"), HELLO]]
    folder = run_distillation(spec_for([{"messages": chat} for chat in chats], seed_with(template(PICKY)), tmp_path))
    distilled = load_from_disk(str(folder))
    assert distilled["sdft_reasons"] == [[""], ["failed: the seed model's chat template refuses the chat: not Venice"]]
    assert distilled["messages"][1] == chats[1]
    summary = read_summary(folder)
    assert (summary["rejections"], summary["gap"]["answers"]) == ({"failed": 1}, 1)


def test_a_template_that_refuses_everything_is_refused_before_anything_loads(seed_with):
    folder = seed_with("{{ raise_exception('give me tools') }}")
    message = r"chat template refuses the chat: give me tools, even where it is a single question; correct the chat"
    with pytest.raises(ConfigError, match=message):
        TransformersBackend(folder, TransformersGeneration()).check()


def test_a_server_is_sent_the_shape_that_the_seeds_template_takes_and_no_chat_that_it_refuses(seed_with):
    folder = seed_with(template(STRICT + PICKY))
    prompts = [Prompt((0, 0), (SYSTEM, HI, says("user", "\ud83d"))), Prompt((1, 0), (says("user", "Venice?"),))]
    with FakeServer(score=lambda ids: [-1.0] * len(ids)) as server:
        backend = OpenAIBackend(folder, OpenAIGeneration(base_urls=(server.url,)))
        answers = {batch[0].key: answer for batch, [answer] in backend.generate([[prompt] for prompt in prompts])}
        told = backend.answer_nll([(Target(prompt.messages, ""), "Yes.") for prompt in prompts])
        backend.close()
    assert [chat["messages"] for chat in server.chats if "Be brief" in str(chat["messages"])] == [
        [says("user", "Be brief.\n\nHi\n\n\ufffd")]
    ]
    assert not any("Venice" in str(chat["messages"]) for chat in server.chats)
    assert answers[1, 0].error == "the seed model's chat template refuses the chat: not Venice"
    assert told[0] == 1.0
    assert math.isnan(told[1])


def test_vllm_gives_refused_prompts_their_reason_and_answers_the_others(seed_with, fake):
    fine, refused = Prompt((0, 0), (HI,)), Prompt((1, 0), (says("user", "Venice?"),))
    with contextlib.closing(VLLMBackend(seed_with(template(PICKY)), VLLMGeneration())) as backend:
        given = {len(batch): answers for batch, answers in backend.generate([[refused, fine], [refused]])}
        told = backend.answer_nll([(Target(fine.messages, ""), "Yes."), (Target(refused.messages, ""), "Yes.")])
    assert [answer.finish_reason == "error" for answer in given[2]] == [True, False]
    assert given[1][0].error == "the seed model's chat template refuses the chat: not Venice"
    assert [math.isnan(value) for value in told] == [False, True]


# Half an emoji in a row


def test_a_conversation_with_half_an_emoji_is_rewritten_and_shown(seed_with, tmp_path):
    chat = [says("user", "A lake \ud83d"), says("assistant", "Como \ude00 it is."), WHY, HELLO]
    rows = [{"messages": json.dumps(chat), "tools": json.dumps([{"name": "\ud83d"}])}] * 2
    folder = run_distillation(spec_for(rows, seed_with(template()), tmp_path))
    distilled = load_from_disk(str(folder))
    assert json.loads(distilled["messages"][0])[0] == chat[0]
    assert read_summary(folder)["gap"]["answers"] == 4
    assert "A lake \ufffd" in (folder / "report.html").read_text()
