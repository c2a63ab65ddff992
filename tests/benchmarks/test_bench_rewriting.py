"""The ways of writing answers give the same ones, hold as many rows at once, and count real tokens alone."""

import json
import types

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_sdft.config import TransformersGeneration
from axolotl_sdft.inference.interfaces import Prompt
from axolotl_sdft.inference.local.backend import TransformersBackend
from tests.benchmarks import rewriting_ways
from tests.benchmarks.bench_rewriting import agreement, measure, read_prompts, table
from tests.benchmarks.random_models import random_llama
from tests.benchmarks.rewriting_ways import Way, WayMissingError, Written, continuous, one_by_one, padded, through

QUESTIONS = ("Name a river.", "Which of the planets is the largest, and how many moons does it have?", "Why?")
PROMPTS = [Prompt((n, 0), ({"role": "user", "content": text},)) for n, text in enumerate(QUESTIONS)]


@pytest.fixture(scope="module")
def model(tiny_llama_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32).eval()


def test_all_ways_write_the_same_answers(tiny_llama_dir, model):
    config = TransformersGeneration(max_new_tokens=6, temperature=0.0)
    backend = TransformersBackend(tiny_llama_dir, config, model)
    written = through(backend).write(PROMPTS)
    assert 3 <= written.tokens <= 18
    assert padded(tiny_llama_dir, model, config).write(PROMPTS) == written
    assert one_by_one(tiny_llama_dir, config).write(PROMPTS) == written
    backend.close()


def test_continuous_batching_writes_the_same_answers_where_it_is_to_be_had(tiny_llama_dir, model):
    config = TransformersGeneration(max_new_tokens=6, temperature=0.0)
    if not hasattr(model, "generate_batch"):
        pytest.skip("this transformers has no generate_batch")
    way = continuous(tiny_llama_dir, model, config, PROMPTS)
    try:
        written = way.write(PROMPTS)
    except WayMissingError as err:
        pytest.skip(str(err))
    finally:
        way.release()
    assert written == padded(tiny_llama_dir, model, config).write(PROMPTS)


def test_a_transformers_without_continuous_batching_is_told(tiny_llama_dir):
    with pytest.raises(WayMissingError, match="has no generate_batch"):
        continuous(tiny_llama_dir, object(), TransformersGeneration(), PROMPTS)


def test_continuous_batching_that_fails_is_told_with_its_reason(tiny_llama_dir, model, monkeypatch):
    def fails(*args, **kwargs):
        raise TypeError("no such argument")

    monkeypatch.setattr(type(model), "generate_batch", fails, raising=False)
    way = continuous(tiny_llama_dir, model, TransformersGeneration(), PROMPTS)
    with pytest.raises(WayMissingError, match="TypeError: no such argument"):
        way.write(PROMPTS)


def test_rows_that_continuous_batching_left_out_are_told(tiny_llama_dir, model, monkeypatch):
    one = {"0": types.SimpleNamespace(error=None, generated_tokens=[5])}
    monkeypatch.setattr(type(model), "generate_batch", lambda *args, **kwargs: one, raising=False)
    way = continuous(tiny_llama_dir, model, TransformersGeneration(), PROMPTS)
    with pytest.raises(WayMissingError, match="left 2 rows unwritten"):
        way.write(PROMPTS)


def test_batches_hold_as_many_rows_as_the_budget_of_tokens_allows():
    lengths = {0: 10, 1: 30, 2: 4, 3: 4}
    prompts = [Prompt((n, 0), ()) for n in lengths]
    config = TransformersGeneration(max_new_tokens=10, max_batch_tokens=45, max_batch_size=2)
    batches = rewriting_ways.padded_batches(prompts, lambda prompt: lengths[prompt.key[0]], config)
    # 40 tokens leave no room for a second row, 20 leave room for two, and no more than two are allowed.
    assert [[prompt.key[0] for prompt in batch] for batch in batches] == [[1], [0, 2], [3]]


def test_a_row_longer_than_the_budget_goes_alone():
    assert rewriting_ways.rows_at_once(100, TransformersGeneration(max_new_tokens=10, max_batch_tokens=50)) == 1


def test_agreement_is_the_share_of_equal_texts():
    assert agreement({1: "a", 2: "b"}, {1: "a", 2: "c"}) == 0.5


def test_a_way_that_fails_is_told_and_the_others_are_measured(tmp_path, capsys):
    def fails(prompts):
        raise WayMissingError("it needs another device")

    released = []
    works = Way(lambda prompts: Written({p.key: "same" for p in prompts}, len(prompts)), lambda: released.append(1))
    found = measure({"backend": works, "continuous": Way(fails)}, PROMPTS, 2, tmp_path / "figures.json")
    assert "`model.generate_batch`: not run, it needs another device" in capsys.readouterr().out
    assert list(found) == ["backend"]
    assert [figures["tokens"] for figures in found["backend"]] == [3, 3]
    assert json.loads((tmp_path / "figures.json").read_text()) == found
    assert len(released) == 2


def test_the_table_gives_ratios_within_a_round():
    def rounds(*rates):
        return [{"tokens_per_second": rate, "megabytes": 5.0, "same_texts": 0.5} for rate in rates]

    lines = table({"backend": rounds(10.0, 40.0), "padded": rounds(5.0, 10.0)})
    assert lines[3] == "| padded `model.generate` in batches | 7.5 | 0.38 (0.25 to 0.50) | 5 | 50 % |"


def test_rows_are_chats_or_instructions(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "Name a lake."}, {"role": "assistant", "content": "Garda"}]},
        {"instruction": "Name a", "input": "mountain.", "output": "Rigi"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = read_prompts(tmp_path / "rows.jsonl", 5)
    for prompt, words in zip(prompts, (("Name a lake.", "Garda"), ("Name a\n\nmountain.", "Rigi")), strict=True):
        text = "".join(message["content"] for message in prompt.messages)
        assert all(word in text for word in words)


def test_random_weights_are_in_bfloat16_and_the_same_each_time(tiny_llama_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    models = [random_llama("tiny", "cpu", tokenizer) for _ in range(2)]
    weights = [model.model.layers[3].mlp.up_proj.weight for model in models]
    assert weights[0].dtype == torch.bfloat16
    assert float(weights[0].detach().float().std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(*weights)
    assert models[0].generation_config.eos_token_id == tokenizer.eos_token_id
