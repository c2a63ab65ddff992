import math
import re
from random import Random

import pytest
import torch
from transformers import cache_utils

from axolotl_sdft.inference.local import decoding
from axolotl_sdft.inference.local.decoding import ContinuousDecoder
from axolotl_sdft.inference.local.plain_decoding import PlainDecoder
from axolotl_sdft.inference.local.sequence_cache import use_grouped_attention, use_plain_attention
from axolotl_sdft.inference.local.sequences import TokenChooser
from axolotl_sdft.inference.local.support import unsupported_reason
from tests.inference.decoders import END, LENGTHS, plainly_written, rows_of, tiny_model

TRIAL = list(range(5, 27))
FITTING = ("gemma2", "gemma3_text", "gpt2", "llama", "llama4_text", "mistral", "phi3", "qwen2", "qwen3")
WITH_OTHER_STATE = ("jamba", "lfm2_moe", "mamba")


def decoder(model, most_rows=3, most_tokens=10**6):
    return ContinuousDecoder(model, TokenChooser(), [END], most_rows, most_tokens)


def plain_decoder(model, most_rows=3, most_tokens=10**6):
    return PlainDecoder(model, TokenChooser(), [END], most_rows, most_tokens)


def running_out_above(model, num_rows, error):
    """Have a model's forward fail for more rows than there is memory for."""

    def check(_module, _args, kwargs):
        if kwargs["input_ids"].shape[0] > num_rows:
            raise error

    model.register_forward_pre_hook(check, with_kwargs=True)
    return model


@pytest.mark.parametrize("model_type", FITTING)
def test_rows_that_join_and_leave_are_written_as_alone_in_plain_transformers(model_type):
    model = tiny_model(model_type)  # windows are 4 tokens, so that they matter
    is_grouped = use_grouped_attention(model)
    # From transformers 5.24 on Gemma 2 attends eagerly, unless it is told otherwise.
    assert is_grouped or model_type == "gemma2"
    assert unsupported_reason(model, TRIAL) is None

    written = list(decoder(model).run(rows_of(shared=range(5, 25))))

    if is_grouped:
        use_plain_attention(model)
    assert len(written) == len(LENGTHS)
    assert [row.new_ids for row in written] == [plainly_written(model, row) for row in written]


@pytest.mark.parametrize("model_type", WITH_OTHER_STATE)
def test_models_that_keep_another_state_are_left_to_generate_and_write_the_same(model_type):
    model = tiny_model(model_type, **({"use_mamba_kernels": False} if model_type == "jamba" else {}))
    # Before its caches knew of other states, only a trial showed them.
    is_known = hasattr(cache_utils, "LinearAttentionLayer")
    reason = "its layers keep another state than keys and values" if is_known else "with a cache of fixed room"
    assert reason in unsupported_reason(model, TRIAL)

    written = list(plain_decoder(model).run(rows_of()))

    assert [row.new_ids for row in written] == [plainly_written(model, row) for row in written]


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("rwkv", r"gives other logits \(by 0\.\d+ of their spread\)"),
        ("openai-gpt", r"with a cache of fixed room fails \(RuntimeError"),
        ("bart", r"generation settings hold forced_eos_token_id: 2|gives other logits"),
    ],
)
def test_a_trial_finds_the_models_that_do_not_fit(model_type, reason):
    assert re.search(reason, str(unsupported_reason(tiny_model(model_type), TRIAL)))


def test_a_setting_of_the_checkpoint_that_forbids_tokens_is_left_to_generate():
    model = tiny_model("llama")
    model.generation_config.bad_words_ids = [[7]]

    assert unsupported_reason(model, TRIAL) == "its generation settings hold bad_words_ids: [[7]]"


def test_rows_are_drawn_when_places_get_free_and_come_when_they_are_done():
    model = tiny_model("llama")
    rows = rows_of(lengths=(9, 9, 9, 9))
    for row, num_new in zip(rows, (2, 6, 1, 1), strict=True):
        row.most_ids = row.num_prompt + num_new
    drawn = []

    def drawing():
        for row in rows:
            drawn.append(row)
            yield row

    came = [(row, len(drawn)) for row in decoder(model, most_rows=2).run(drawing())]

    # One more than is written is drawn to see whether it fits. The second row goes on while the others come and go.
    assert came == [(rows[0], 3), (rows[2], 4), (rows[3], 4), (rows[1], 4)]


@pytest.mark.parametrize("make", [decoder, plain_decoder])
def test_a_sampled_row_knows_the_mean_log_probability_of_its_tokens(make):
    model = tiny_model("llama")
    rows = rows_of()
    for row in rows:
        row.temperature, row.random = 0.8, Random(row.num_prompt)

    for row in make(model).run(rows):
        log_probs = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        picked = [log_probs[place - 1, row.ids[place]].item() for place in range(row.num_prompt, len(row.ids))]
        assert row.mean_logprob == pytest.approx(sum(picked) / len(picked), abs=1e-4)


def test_rows_times_the_longest_stay_within_the_token_budget():
    model = tiny_model("llama")
    sizes = []
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )

    # Rows may grow to 20 tokens: 3 of them are 60, a fourth would be 80.
    written = list(decoder(model, most_rows=8, most_tokens=79).run(rows_of(lengths=(8,) * 5)))

    assert len(written) == 5
    assert max(sizes) == 3


def test_a_beginning_that_rows_share_is_computed_once(monkeypatch):
    model = tiny_model("llama")
    computed = []
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: computed.append(kwargs["input_ids"].shape), with_kwargs=True
    )

    list(decoder(model, most_rows=4).run(rows_of(lengths=(6, 6, 4, 4), num_new=1, shared=range(5, 35))))

    # The beginning alone, then what each row adds less its last token, then that token.
    assert computed == [(1, 30), (4, 5), (4, 1)]


def test_a_short_beginning_is_not_worth_sharing():
    forward_shapes = []
    states = decoding.Prefill(lambda **inputs: forward_shapes.append(inputs["input_ids"].shape))
    assert states._num_shared([list(range(15)), list(range(15))]) == 0
    assert forward_shapes == []


@pytest.mark.parametrize("make", [decoder, plain_decoder])
@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_where_memory_runs_out_half_as_many_rows_go_on_and_write_the_same(make, error, caplog):
    reference = tiny_model("llama")
    model = running_out_above(tiny_model("llama"), 3, error)

    written = list(make(model, most_rows=6).run(rows_of(lengths=(12,) * 7)))

    assert len(written) == 7
    assert [row.new_ids for row in written] == [plainly_written(reference, row) for row in written]
    [warning] = [record.getMessage() for record in caplog.records if "memory ran out" in record.getMessage()]
    assert "6 rows" in warning
    assert "going on with 3" in warning


@pytest.mark.parametrize("make", [decoder, plain_decoder])
def test_a_row_that_does_not_fit_alone_fails_and_the_others_are_written(make):
    model = tiny_model("llama")

    def check(_module, _args, kwargs):
        if kwargs["input_ids"].shape[1] > 20:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(check, with_kwargs=True)

    written = {row.prompt.key[0]: row for row in make(model, most_rows=2).run(rows_of(lengths=(30, 9, 8)))}

    assert written[0].error == "memory ran out for this row alone, at 30 tokens"
    assert written[0].new_ids == []
    assert [len(written[number].new_ids) for number in (1, 2)] == [12, 12]


@pytest.mark.parametrize("make", [decoder, plain_decoder])
def test_another_failure_of_the_model_is_not_taken_for_a_lack_of_memory(make):
    model = running_out_above(tiny_model("llama"), 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(make(model).run(rows_of()))


@pytest.mark.parametrize("make", [decoder, plain_decoder])
def test_where_a_model_predicts_no_numbers_all_rows_fail_at_once(make):
    model = tiny_model("llama")
    model.lm_head.weight.data.fill_(math.nan)
    num_steps = []
    model.register_forward_pre_hook(lambda *_: num_steps.append(1))

    written = list(make(model).run(rows_of(lengths=(9, 9, 9))))

    assert [row.new_ids for row in written] == [[]] * 3
    assert all("predicts no numbers (NaN)" in row.error for row in written)
    assert len(num_steps) <= 2
