import dataclasses
import json
import math

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer

from axolotl_sdft.core.errors import CheckpointError, ConfigError
from axolotl_sdft.evaluation.measures.bootstrap import Resampler
from axolotl_sdft.evaluation.measures.likelihood import (
    RowSums,
    answer_statistics,
    encode_targets,
    likelihood_figures,
    require_shared_vocabulary,
    seed_answers,
)
from axolotl_sdft.inference import likelihood as chunking
from axolotl_sdft.inference.interfaces import Target
from axolotl_sdft.inference.likelihood import ScoredIds, mean_nll
from tests.inference.decoders import tiny_model
from tests.inference.test_likelihood import texts
from tests.pruning.architectures import VOCABULARY

SHAPES = ((12, 5), (20, 1), (7, 6), (9, 2), (30, 11))
RIVERS = Target(({"role": "user", "content": "Name a river."},), "The Danube.")


@torch.inference_mode()
def slowly(model, seed, text, vocabulary=VOCABULARY):
    """The same for one text, from all logits of both models, in float64, token by token and entry by entry."""
    logits = [each(input_ids=torch.tensor([text.ids])).logits[0, :, :vocabulary] for each in (model, seed)]
    log_q, log_p = (each.double().log_softmax(-1).tolist() for each in logits)
    nll = kl = agreement = 0.0
    for place in range(len(text.ids) - text.num_answer, len(text.ids)):
        own, other = log_q[place - 1], log_p[place - 1]
        nll -= own[text.ids[place]]
        kl += sum(math.exp(p) * (p - q) for p, q in zip(other, own, strict=True))
        agreement += own.index(max(own)) == other.index(max(other))
    return RowSums(text.num_answer, nll, kl, int(agreement))


def assert_close(rows, expected):
    assert [(row.tokens, row.agreement) for row in rows] == [(row.tokens, row.agreement) for row in expected]
    for name in ("nll", "kl"):
        sums = [[getattr(row, name) for row in side] for side in (rows, expected)]
        assert sums[0] == pytest.approx(sums[1], rel=1e-5, abs=1e-5)


# Gemma 2 caps its logits, GPT-2 has no rotary positions, LFM2 layers without attention.
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "lfm2_moe"])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 1000])
def test_sums_are_those_of_all_logits_of_each_text_alone(model_type, chunk_tokens, monkeypatch):
    monkeypatch.setattr(chunking, "_CHUNK_LOGITS", chunk_tokens * VOCABULARY)
    monkeypatch.setattr(chunking, "_BATCH_TOKENS", 40)
    model, seed = tiny_model(model_type), tiny_model("llama")
    answers = texts(*SHAPES)

    assert_close(answer_statistics(model, seed, answers), [slowly(model, seed, text) for text in answers])


def test_a_pruned_model_is_compared_with_the_seed_it_comes_from(pruned, seed, tokenizer):
    answers, _ = encode_targets(tokenizer, [RIVERS, Target(RIVERS.context, "It is the Rhine, I think.")], 512)

    rows = answer_statistics(pruned, seed, answers)

    assert_close(rows, [slowly(pruned, seed, text, len(tokenizer)) for text in answers])
    assert all(row.kl > 0 for row in rows)
    assert mean_nll(pruned, answers) == pytest.approx([row.nll / row.tokens for row in rows])


def test_the_seed_beside_itself_runs_once_and_differs_in_nothing(monkeypatch):
    monkeypatch.setattr(chunking, "_BATCH_TOKENS", 10**6)
    seed = tiny_model("llama")
    runs = []
    seed.model.layers[0].register_forward_pre_hook(lambda *_: runs.append(1))
    answers = texts(*SHAPES)

    rows = answer_statistics(seed, seed, answers)

    assert runs == [1]
    assert [(row.kl, row.agreement) for row in rows] == [(0.0, num_answer) for _, num_answer in SHAPES]
    assert [row.nll / row.tokens for row in rows] == pytest.approx(mean_nll(seed, answers))


def test_a_second_copy_of_the_seed_differs_in_nothing_either():
    rows = answer_statistics(tiny_model("llama"), tiny_model("llama"), texts(*SHAPES))

    assert [(row.kl, row.agreement) for row in rows] == [(0.0, num_answer) for _, num_answer in SHAPES]


@pytest.mark.parametrize("is_seed_padded", [False, True])
def test_padding_of_the_embeddings_does_not_count(is_seed_padded):
    model, seed, answers = tiny_model("qwen2"), tiny_model("llama"), texts(*SHAPES)
    expected = [slowly(model, seed, text) for text in answers]
    (seed if is_seed_padded else model).resize_token_embeddings(VOCABULARY + 61, mean_resizing=False)

    assert_close(answer_statistics(model, seed, answers), expected)


def test_an_entry_that_the_seed_rules_out_adds_nothing_to_the_divergence():
    model, seed, answers = tiny_model("qwen2"), tiny_model("llama"), texts(*SHAPES)

    def rule_out(_module, _args, logits):
        logits[..., 66] = -math.inf
        return logits

    seed.lm_head.register_forward_hook(rule_out)
    assert all(math.isfinite(row.kl) for row in answer_statistics(model, seed, answers))


def test_neither_head_sees_more_tokens_than_a_chunk(monkeypatch):
    monkeypatch.setattr(chunking, "_CHUNK_LOGITS", 4 * VOCABULARY)
    seen = []
    models = [tiny_model("llama"), tiny_model("qwen2")]
    for model in models:
        model.lm_head.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[1]))

    answer_statistics(*models, texts((30, 5), (30, 6)))

    assert seen == [4, 4, 4, 4, 3, 3]


def test_where_memory_runs_out_halves_are_measured():
    model, seed, answers = tiny_model("qwen2"), tiny_model("llama"), texts(*SHAPES)
    expected = answer_statistics(model, seed, answers)

    def check(_module, _args, kwargs):
        if kwargs["input_ids"].shape[0] > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    seed.model.register_forward_pre_hook(check, with_kwargs=True)

    assert_close(answer_statistics(model, seed, answers), expected)


def test_a_text_longer_than_a_model_takes_is_refused_before_it_runs():
    with pytest.raises(
        ConfigError, match=r"sequence_len lets a text have 65 tokens, but .* at most 64; lower it to 64"
    ):
        answer_statistics(tiny_model("gpt2"), tiny_model("llama"), texts((65, 3)))


def test_a_model_that_predicts_no_numbers_is_refused():
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda _module, _args, logits: logits * math.nan)

    with pytest.raises(CheckpointError, match=r"2 of 2 answers have no finite .*; set recovery_report\.dtype"):
        answer_statistics(model, tiny_model("llama"), texts((12, 5), (20, 1)))


def test_an_answer_is_encoded_in_the_chat_template_with_the_end_of_its_turn(tokenizer):
    [text], num_skipped = encode_targets(tokenizer, [RIVERS], 512)

    shown = tokenizer.decode(text.ids)
    assert shown.endswith("<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\nThe Danube.<|im_end|>")
    assert tokenizer.decode(text.ids[-text.num_answer :]) == "The Danube.<|im_end|>"
    assert num_skipped == 0


def test_a_long_text_is_cut_at_its_end_and_left_out_where_no_answer_remains(tokenizer):
    [whole], _ = encode_targets(tokenizer, [RIVERS], 512)
    num_prompt = len(whole.ids) - whole.num_answer

    assert encode_targets(tokenizer, [RIVERS], num_prompt + 2) == ([ScoredIds(whole.ids[: num_prompt + 2], 2)], 0)
    assert encode_targets(tokenizer, [RIVERS], num_prompt) == ([], 1)


def test_an_empty_answer_is_left_out_and_counted(tokenizer):
    kept, num_skipped = encode_targets(tokenizer, [Target(RIVERS.context, " \n"), RIVERS], 512)

    assert (len(kept), num_skipped) == (1, 1)


def test_a_tokenizer_without_chat_template_is_refused(tiny_llama_dir):
    plain = AutoTokenizer.from_pretrained(tiny_llama_dir)
    plain.chat_template = None

    with pytest.raises(ConfigError, match=r"recovery_report: the tokenizer in .* has no chat template"):
        encode_targets(plain, [RIVERS], 512)


def test_the_answers_of_the_seed_are_the_tokens_that_it_writes_greedily(seed, tokenizer):
    prompts = ["Why is the sea salty?", "Name a tree."]

    answers = seed_answers(seed, tokenizer, prompts, 7)

    for prompt, answer in zip(prompts, answers, strict=True):
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        expected = seed.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False)[0]
        assert answer == ScoredIds(expected.tolist(), len(expected) - ids.shape[1])


def test_the_seed_is_left_as_it_was_after_answering(seed, tokenizer):
    attention = seed.config._attn_implementation

    seed_answers(seed, tokenizer, ["Name a tree."], 2)

    assert seed.config._attn_implementation == attention == "sdpa"


def test_a_prompt_that_leaves_no_room_for_an_answer_is_left_out(seed, tokenizer):
    answers = seed_answers(seed, tokenizer, ["word " * 3000, "Name a tree."], 2)

    assert len(answers) == 1


def test_a_model_with_further_tokens_of_its_own_has_the_seeds_vocabulary(tiny_llama_dir, tokenizer):
    own = AutoTokenizer.from_pretrained(tiny_llama_dir)
    own.add_tokens([AddedToken("<|pause|>")])

    require_shared_vocabulary(own, tokenizer, "model 'trained'")


def test_a_reserved_token_under_another_name_is_the_same_token(tiny_llama_dir):
    reserved, renamed, other = (AutoTokenizer.from_pretrained(tiny_llama_dir) for _ in range(3))
    reserved.add_tokens([AddedToken("<|reserved_0|>"), AddedToken("<|reserved_1|>")])
    renamed.add_tokens([AddedToken("<tool>"), AddedToken("<|reserved_1|>")])
    other.add_tokens([AddedToken("<|reserved_1|>"), AddedToken("<tool>")])  # at the ids of others

    require_shared_vocabulary(renamed, reserved, "model 'trained'")
    with pytest.raises(
        CheckpointError, match=r"token '<\|reserved_0\|>' is number 4096 in the seed .*, not there in its own"
    ):
        require_shared_vocabulary(other, reserved, "model 'trained'")


def test_another_tokenizer_is_refused_with_a_token_that_differs(tiny_llama_dir, tokenizer):
    own = AutoTokenizer.from_pretrained(tiny_llama_dir)
    own.add_tokens([AddedToken("<|pause|>")])

    message = rf"model 'seed' has another tokenizer .* '<\|pause\|>' is number {len(tokenizer)} .* not there in its own"
    with pytest.raises(CheckpointError, match=message):
        require_shared_vocabulary(tokenizer, own, "model 'seed'")


def test_figures_are_means_per_token():
    rows = [RowSums(tokens=4, nll=8.0, kl=1.0, agreement=3), RowSums(tokens=1, nll=1.0, kl=0.5, agreement=1)]

    figures = likelihood_figures(rows, Resampler(200))

    assert figures.nll.value == 9 / 5
    assert figures.perplexity.value == pytest.approx(math.exp(9 / 5))
    assert (figures.kl_to_seed.value, figures.agreement.value) == (1.5 / 5, 4 / 5)
    # Of two rows, a resample may hold either one alone.
    assert (figures.nll.low, figures.nll.high) == (1.0, 2.0)
    assert (figures.perplexity.low, figures.perplexity.high) == pytest.approx((math.e, math.e**2))
    assert figures.nll.rows == 2


def test_sums_survive_a_file_of_json():
    row = RowSums(4, 8.5, 1.25, 3)

    assert RowSums(**json.loads(json.dumps(dataclasses.asdict(row)))) == row
