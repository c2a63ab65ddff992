"""Seed models that think before they answer: how they are told not to, and what becomes of it where they do."""

import contextlib
import json
import shutil

import pytest
import torch
from datasets import Dataset, load_from_disk
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_sdft import SelfDistillationConfig
from axolotl_sdft.config import OpenAIGeneration, TransformersGeneration, VLLMGeneration
from axolotl_sdft.core.errors import ConfigError, DatasetError
from axolotl_sdft.distillation.generation.journal import Journal
from axolotl_sdft.distillation.generation.selection import rejection_of
from axolotl_sdft.distillation.output.preview import preview
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.inference.interfaces import Answer, Prompt, Target
from axolotl_sdft.inference.local.backend import TransformersBackend
from axolotl_sdft.inference.openai.backend import OpenAIBackend
from axolotl_sdft.inference.prompts import read_answer
from axolotl_sdft.inference.reasoning import answer_alone, framed, is_unfinished_thought
from axolotl_sdft.inference.vllm.backend import VLLMBackend
from tests.distillation import echo_backend
from tests.inference.openai.openai_server import FakeServer
from tests.inference.vllm.conftest import fake as fake
from tests.inference.vllm.conftest import told as told_by

NO_THINKING = {"enable_thinking": False}
QUESTION = ({"role": "user", "content": "Name a colour, please."},)

# As Qwen3 and SmolLM3 have it: told not to think, the assistant's turn starts with a thought that is over already.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def thinker_dir(tiny_llama_dir, tmp_path_factory):
    """The tiny Llama with a chat template that takes ``enable_thinking``."""
    folder = tmp_path_factory.mktemp("thinker") / "seed"
    shutil.copytree(tiny_llama_dir, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def tokenizer(thinker_dir):
    return AutoTokenizer.from_pretrained(thinker_dir)


def rendered(tokenizer, messages):
    """The ids of a chat whose assistant is told not to think."""
    ids = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    return ids


def told(kind=TransformersGeneration, **settings):
    return kind(dtype="float32", max_new_tokens=4, chat_template_kwargs=NO_THINKING, **settings)


# The chat template is told not to let it think


@torch.inference_mode()
def test_transformers_writes_and_scores_after_the_prompt_that_the_arguments_give(thinker_dir, tokenizer):
    backend = TransformersBackend(thinker_dir, told(temperature=0.0))
    target, ids = Target(QUESTION, "unused"), rendered(tokenizer, QUESTION)
    model = AutoModelForCausalLM.from_pretrained(thinker_dir, dtype=torch.float32)

    backend.check()
    [(_, [answer])] = backend.generate(backend.batches([Prompt((0, 0), QUESTION)]))
    [nll] = backend.answer_nll([(target, "Blue.")])

    written = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)[0, len(ids) :]
    assert answer.text == tokenizer.decode(written, skip_special_tokens=True).strip()
    scored = [*tokenizer("Blue.")["input_ids"], tokenizer.eos_token_id]
    log_probs = model(torch.tensor([ids + scored])).logits[0].log_softmax(-1)
    picked = [log_probs[len(ids) - 1 + place, token].item() for place, token in enumerate(scored)]
    assert nll == pytest.approx(-sum(picked) / len(picked), abs=1e-4)


def test_vllm_writes_and_scores_after_the_prompt_that_the_arguments_give(thinker_dir, tokenizer, fake):
    ids = rendered(tokenizer, QUESTION)

    with contextlib.closing(VLLMBackend(thinker_dir, told(VLLMGeneration))) as backend:
        backend.check()
        list(backend.generate([[Prompt((0, 0), QUESTION)]]))
        backend.answer_nll([(Target(QUESTION, "unused"), "Blue.")])
        written, scored = told_by(backend)["asked"]

    assert written["prompt"] == ids
    assert scored["prompt"] == [*ids, *tokenizer("Blue.")["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("key", ["chat_template_kwargs", "extra_body"])
def test_a_server_is_sent_the_arguments_and_scores_after_the_prompt_that_they_give(thinker_dir, tokenizer, key):
    settings = {"chat_template_kwargs": NO_THINKING}
    settings = {"extra_body": settings} if key == "extra_body" else settings
    scored = []

    def score(ids):
        scored.append(ids)
        return [-1.0] * len(ids)

    with FakeServer(score=score) as server:
        config = OpenAIGeneration(base_urls=(server.url,), **settings)
        backend = OpenAIBackend(thinker_dir, config)
        list(backend.generate([[Prompt((0, 0), QUESTION)]]))
        backend.answer_nll([(Target(QUESTION, "unused"), "Blue.")])
        backend.close()

    assert [chat["chat_template_kwargs"] for chat in server.chats] == [NO_THINKING] * len(server.chats)
    assert scored == [[*rendered(tokenizer, QUESTION), *tokenizer("Blue.")["input_ids"], tokenizer.eos_token_id]]


@pytest.mark.parametrize(
    ("backend", "kind"), [(TransformersBackend, TransformersGeneration), (VLLMBackend, VLLMGeneration)]
)
def test_arguments_with_which_the_chat_template_fails_are_refused_before_anything_loads(
    thinker_dir, tmp_path, fake, backend, kind
):
    shutil.copytree(thinker_dir, tmp_path / "seed")
    strict = "{% if effort not in ['low', 'high'] %}{{ raise_exception('no effort ' ~ effort) }}{% endif %}" + TEMPLATE
    (tmp_path / "seed" / "chat_template.jinja").write_text(strict)
    message = (
        r"generation\.chat_template_kwargs is \{'effort': 'some'\}, with which the chat template of .*no effort some"
    )

    with pytest.raises(ConfigError, match=message):
        backend(tmp_path / "seed", kind(chat_template_kwargs={"effort": "some"})).check()
    backend(tmp_path / "seed", kind(chat_template_kwargs={"effort": "low"})).check()


def test_an_argument_that_the_chat_template_never_reads_is_logged(thinker_dir, caplog):
    TransformersBackend(thinker_dir, TransformersGeneration(chat_template_kwargs={"enable_thinkng": False})).check()
    TransformersBackend(thinker_dir, TransformersGeneration(chat_template_kwargs=NO_THINKING)).check()

    [record] = caplog.records
    assert f"sets enable_thinkng, which the chat template of {thinker_dir} never reads" in record.message


# What it thought all the same is told from its answer


@pytest.mark.parametrize(
    "written",
    [
        "<think>\nTwo pairs.\n</think>\n\nFour.",
        "<thinking>Two pairs.</thinking> Four.",
        "<reasoning>Two pairs.</reasoning>Four.",
        "[THINK]Two pairs.[/THINK]Four.",
        "<|begin_of_thought|>Hm.<|end_of_thought|>\n<|begin_of_solution|>Four.<|end_of_solution|>",
        "<|channel|>analysis<|message|>Two pairs.assistant<|channel|>final<|message|>Four.",
        "<|channel|>final<|message|>Four.",
        "<|channel>thought\nTwo pairs.\n<channel|>Four.",
        "<think>\n\n</think>\n\nFour.",
        "<think>A</think><think>B</think>Four.",
        "Two pairs, so it ends here.\n</think>\n\nFour.",  # the chat template has written the beginning
        "Two pairs.</think>Four.",
        "Two pairs.[/THINK]Four.",
        "<thought>\nTwo pairs.\n</thought>\nFour.",
        "<seed:think>Two pairs.</seed:think>Four.",
        "Two pairs.</seed:think>Four.",
        "Two pairs.</thinking>\nFour.",
        "<|START_THINKING|>Two pairs.<|END_THINKING|><|START_RESPONSE|>Four.<|END_RESPONSE|>",
        "\u25c1think\u25b7Two pairs.\u25c1/think\u25b7Four.",
        "<|inner_prefix|>Two pairs.<|inner_suffix|>Four.",
        "<unused94>thought\nTwo pairs.<unused95>Four.",
        "Here is my thought process:\nTwo pairs.\n\nHere is my response:\nFour.",
        "Here's my thought process: Two pairs. Here's my response: Four.",
        "analysisTwo pairs.assistantfinalFour.",
        "<|start|>assistant<|channel|>analysis<|message|>Two.<|end|><|start|>assistant<|channel|>final<|message|>Four.",
        "<think>Two pairs.</think>\n<answer>\nFour.\n</answer>",
        "<think>Two pairs.</think><response>Four.</response>",
    ],
)
def test_an_answer_is_told_from_the_thinking_part_before_it(written):
    assert answer_alone(written) == "Four."
    assert not is_unfinished_thought(written)


@pytest.mark.parametrize(
    "written",
    [
        "Four.",
        " Four.\n",
        "",
        "Write <think> first and </think> last.",
        "A thought ends with `</think>` there.",
        'It prints "</think>", then Four.',
        "<html>Four.</html>",
        "Here is my thought process: twice two is four.",
        "An analysis follows.",
        "<report><thought>Two.</thought><sum>4</sum></report>",
        "<answer>One.</answer> and <answer>Two.</answer>",
    ],
)
def test_an_answer_without_a_thinking_part_stays_as_it_is(written):
    assert answer_alone(written) == written
    assert not is_unfinished_thought(written)


@pytest.mark.parametrize(
    "written",
    [
        "<think>\nTwo pairs, and",
        "[THINK]Two",
        "<|channel|>analysis<|message|>Two",
        "<|channel>thought\nTwo",
        "<think>A</think><think>B",
    ],
)
def test_a_text_that_ends_within_its_thinking_part_holds_no_answer(written):
    assert is_unfinished_thought(written)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Two pairs.\n</think>\n\n", ""),
        ("[THINK]Two pairs.[/THINK]", ""),
        ("<seed:think>Two pairs.</seed:think>\n", ""),
        ("<|channel|>analysis<|message|>Two pairs.<|end|><|start|>assistant<|channel|>final<|message|>", ""),
        ("Here is my thought process: Two pairs. Here is my response:\n", ""),
        ("<think>Two pairs.</think>\n<answer>\n", "\n</answer>"),
    ],
)
def test_the_thinking_part_of_a_row_stays_however_it_is_marked(before, after):
    assert framed(f"{before}Four.{after}") == (before, "Four.", after)
    assert framed(f"{before}Four.{after}").with_text("<think>Hm.</think>It is 4.") == f"{before}It is 4.{after}"


pieces = st.sampled_from(
    [
        *("<think>", "</think>", "[THINK]", "[/THINK]", "<|channel|>", "<|channel|>final<|message|>"),
        *("<|begin_of_solution|>", "<|end_of_solution|>", "<thinking>", "</thinking>", "`", "\n", "word ", "7"),
    ]
)


@given(st.lists(pieces, max_size=12).map("".join))
def test_what_is_left_of_a_text_is_its_end_and_holds_no_further_thinking_part(written):
    answer = answer_alone(written)
    assert answer_alone(answer) == answer
    assert answer in written
    assert framed("<think>Mine.</think>").with_text(written) == f"<think>Mine.</think>{answer}"


def test_marks_of_a_thinking_part_are_read_though_they_are_special_tokens(tiny_llama_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "<|other|>"]})
    ids = tokenizer("[THINK]Two pairs.<|other|>[/THINK]Four.<|im_end|>")["input_ids"]

    text, finish_reason, num_tokens = read_answer(tokenizer, ids, [tokenizer.eos_token_id])

    assert text == "[THINK]Two pairs.[/THINK]Four."
    assert (finish_reason, num_tokens) == ("stop", len(ids) - 1)


# What is judged and trained is the answer alone


@pytest.fixture
def script(echo_plugin):
    """What the seed model answers, by row, turn and attempt; emptied for each test."""
    echo_backend.SCRIPT.clear()
    echo_backend.ASKED.clear()
    return echo_backend.SCRIPT


def spec_for(rows, seed_dir, tmp_path, row_type="alpaca", **settings):
    settings = {"template": "plain", "checks": ("good",), "max_attempts": 1} | settings
    settings = {"generation": {"backend": "scripted"}} | settings
    config = SelfDistillationConfig(output_dir=str(tmp_path / "out"), **settings)
    return DistillationSpec(Dataset.from_list(rows), config, seed_dir, {"type": row_type}, "seed")


def asked_and_answered(*outputs):
    return [{"instruction": f"What {row}?", "output": output} for row, output in enumerate(outputs)]


def test_a_thinking_part_is_neither_checked_nor_trained_and_the_journal_keeps_it(script, seed_dir, tmp_path):
    thought = Answer("<think>\nbad idea\n</think>\n\ngood answer", "stop", 9, mean_logprob=-0.5)
    script |= {(0, 0, 0): thought, (1, 0, 0): Answer("[THINK]good idea[/THINK]bad answer", "stop", 9)}
    spec = spec_for(asked_and_answered("one", "two"), seed_dir, tmp_path)

    distilled = load_from_disk(str(run_distillation(spec)))

    assert distilled["output"] == ["good answer", "two"]
    assert distilled["sdft_reasons"] == [[""], ["good: is bad answer"]]
    journal = Journal(spec.answers_dir)
    journal.refresh()
    assert thought in [journal[key] for key in journal]
    journal.close()


def test_the_thinking_part_of_a_row_stays_before_the_answer_that_was_told_from_another_one(script, seed_dir, tmp_path):
    script[0, 0, 0] = Answer("<think>I shall rewrite.</think>good answer", "stop", 9)
    spec = spec_for(asked_and_answered("<think>Mine.</think>\none"), seed_dir, tmp_path)

    assert load_from_disk(str(run_distillation(spec)))["output"] == ["<think>Mine.</think>\ngood answer"]


def test_an_answer_as_it_was_written_is_judged_like_the_answer_alone():
    checks = [("short", lambda answer, target: None if answer.text == "Four." else f"is {answer.text}")]
    four, five = (Answer(f"<think>Hm.</think>{said}", "stop", 9) for said in ("Four.", "Five."))

    assert rejection_of(four, Target(QUESTION, "4"), checks) is None
    assert rejection_of(five, Target(QUESTION, "4"), checks) == ("short", "is Five.")


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_an_answer_that_ends_within_its_thinking_part_is_truncated_whatever_the_checks(
    script, seed_dir, tmp_path, finish_reason
):
    script[0, 0, 0] = Answer("<think>\ngood, and then", finish_reason, 4)
    spec = spec_for(asked_and_answered("one"), seed_dir, tmp_path, checks=())

    folder = run_distillation(spec)

    distilled, summary = load_from_disk(str(folder)), json.loads((folder / "summary.json").read_text())
    assert distilled["output"] == ["one"]
    [[reason]] = distilled["sdft_reasons"]
    assert reason.startswith("truncated: its thinking part has no end after 4 tokens; raise generation.max_new_tokens")
    assert reason.endswith("generation.chat_template_kwargs: {enable_thinking: false}")
    assert summary["rejections"] == {"truncated": 1}


def test_an_answer_that_was_cut_off_in_a_thought_that_the_server_keeps_is_told_with_what_gives_it_room(
    seed_dir, tmp_path
):
    # As llama.cpp, and vLLM with a reasoning parser, send it.
    thought = {"role": "assistant", "content": None, "reasoning_content": "Okay, the user wants"}
    with FakeServer(choice={"message": thought, "finish_reason": "length"}) as server:
        settings = {"template": "unaided", "checks": (), "generation": {"backend": "openai", "base_urls": [server.url]}}
        spec = spec_for(asked_and_answered("one"), seed_dir, tmp_path, **settings)
        with pytest.raises(
            DatasetError,
            match=r"answered none of 1 prompts: empty 1 \(such as: cut off before any text; raise "
            r"generation\.max_new_tokens, or turn thinking off .*: \{enable_thinking: false\}\)",
        ):
            run_distillation(spec)


def test_a_later_turn_is_asked_after_the_answer_alone(script, seed_dir, tmp_path):
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "See you.")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    script |= {(0, turn, 0): Answer("<think>Hm.</think>good day", "stop", 9) for turn in range(2)}

    distilled = load_from_disk(str(run_distillation(spec_for([row], seed_dir, tmp_path, "chat_template"))))

    [later] = [prompt for prompt in echo_backend.ASKED if prompt.key == (0, 1)]
    assert later.messages[1] == {"role": "assistant", "content": "good day"}
    assert [message["content"] for message in distilled["messages"][0]] == ["Hi", "good day", "Bye", "good day"]


def test_a_preview_shows_the_answer_alone(script, seed_dir, tmp_path):
    script[0, 0, 0] = Answer("<think>Hm.</think>good answer", "stop", 9)

    [shown] = preview(spec_for(asked_and_answered("one"), seed_dir, tmp_path), 1).answers

    assert (shown.answer.text, shown.verdict) == ("good answer", "accepted")
