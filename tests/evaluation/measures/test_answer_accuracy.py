import pytest
import torch

from axolotl_sdft.config import ExactMatchConfig
from axolotl_sdft.core.errors import ConfigError, UnknownNameError
from axolotl_sdft.evaluation.measures.answer_accuracy import exact_match, greedy_answers, right_answer_checks
from axolotl_sdft.evaluation.measures.bootstrap import Resampler
from axolotl_sdft.inference.interfaces import Target

CHAT = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a river."})
OTHER = ({"role": "user", "content": "Name a tree, and say where it grows."},)
RESAMPLER = Resampler(100)


def config(*checks, max_new_tokens=6):
    return ExactMatchConfig(checks=checks or ("exact_match",), max_new_tokens=max_new_tokens)


@torch.inference_mode()
def plainly_answered(model, tokenizer, chat, num_new=6):
    ids = tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, return_tensors="pt")["input_ids"]
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": num_new, "do_sample": False}
    return tokenizer.decode(model.generate(ids, **settings)[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_an_answer_is_right_where_the_checks_pass_what_is_written_greedily(seed, tokenizer):
    right = plainly_answered(seed, tokenizer, CHAT)
    targets = [Target(CHAT, right), Target(OTHER, "The oak, in Europe."), Target(CHAT, right + "!")]

    figure, passed = exact_match(seed, tokenizer, targets, config(), RESAMPLER)

    assert passed == [True, False, False]
    assert (figure.value, figure.rows) == (pytest.approx(1 / 3), 3)
    assert (figure.low, figure.high) == (0.0, 1.0)


def test_all_checks_have_to_pass(seed, tokenizer):
    targets = [Target(CHAT, plainly_answered(seed, tokenizer, CHAT))]

    assert exact_match(seed, tokenizer, targets, config("normalized_match"), RESAMPLER)[1] == [True]
    # Six tokens, and no end among them.
    assert exact_match(seed, tokenizer, targets, config("normalized_match", "truncated"), RESAMPLER)[1] == [False]


def test_options_of_a_check_count(seed, tokenizer):
    targets = [Target(CHAT, "word " * 50)]

    assert exact_match(seed, tokenizer, targets, config({"length_ratio": {"min": 0.9}}), RESAMPLER)[1] == [False]
    assert exact_match(seed, tokenizer, targets, config({"length_ratio": {"min": 0.0}}), RESAMPLER)[1] == [True]


def test_a_prompt_that_leaves_no_room_is_answered_wrongly(seed, tokenizer):
    long = Target(({"role": "user", "content": "word " * 3000},), "Yes.")

    figure, passed = exact_match(seed, tokenizer, [long], config("empty"), RESAMPLER)

    assert (figure.value, passed) == (0.0, [False])


def test_answers_come_in_the_order_of_their_prompts(seed, tokenizer):
    written = greedy_answers(seed, tokenizer, [CHAT, OTHER, CHAT], 6, "answers")

    texts = [answer.text for _, answer in written]
    assert texts == [plainly_answered(seed, tokenizer, chat) for chat in (CHAT, OTHER, CHAT)]
    assert [tokenizer.decode(row.new_ids).strip() for row, _ in written] == texts


def test_the_model_is_left_as_it_was(seed, tokenizer):
    exact_match(seed, tokenizer, [Target(CHAT, "The Danube.")], config(), RESAMPLER)

    assert seed.config._attn_implementation == "sdpa"


def test_an_unknown_check_is_refused_by_the_key_of_the_report():
    with pytest.raises(UnknownNameError, match=r"recovery_report\.exact_match\.checks is 'looks_right', but no such"):
        right_answer_checks(config("looks_right"))


def test_an_unknown_option_of_a_check_is_refused_by_the_key_of_the_report():
    with pytest.raises(
        ConfigError, match=r"recovery_report\.exact_match\.checks: the check length_ratio has no option"
    ):
        right_answer_checks(config({"length_ratio": {"least": 1}}))
