import math
from dataclasses import asdict

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.benchmarks.effect_answers import circles, counted, same_words
from tests.benchmarks.effect_answers import table as answers_table
from tests.benchmarks.effect_teacher import PARTS, Way, beside_the_cut, percent_of_seed, prepared, rows_to_take, table


def figures(dolly: float, own: float) -> dict[str, dict[str, float]]:
    return {kind: {"nll": nll, "kl": 0.5, "agreement": 0.25} for kind, nll in (("dolly", dolly), ("own", own))}


def test_percent_of_the_seed_model_is_a_quotient_of_perplexities():
    assert percent_of_seed({"nll": 3.0}, {"nll": 3.0 - math.log(2)}) == pytest.approx(50)


def test_the_layers_beside_a_cut_have_the_numbers_of_the_pruned_model():
    assert beside_the_cut(range(13, 19), 3) == [10, 11, 12, 13, 14, 15]


def test_a_way_is_called_by_what_sets_it_apart():
    assert Way("bare", 0.0).title == "cross-entropy"
    way = Way("patched", 0.5, recipe="last", tokens="all", general=True, learning_rate=1e-3)
    assert way.title == (
        "half and half, last three layers and head, no adapter, all tokens distilled, general prompts among the rows, "
        "rate 0.001"
    )


def test_runs_of_one_way_share_a_line_with_their_spread():
    found = [({"cut": "none"}, figures(2.0, 1.0))]
    for seed, loss in ((0, 2.0), (1, 2.0 + math.log(2))):
        found.append(({"way": asdict(Way("bare", 1.0)), "rows": 64, "seed": seed}, figures(loss, 1.0)))
    lines = table(found).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| 0 | none | no training | - | 1 | 100.0 | 100.0 |")
    assert lines[3].startswith("| 64 | bare | logit distillation | original | 2 | 75.0 ± 35.4 | 100.0 ± 0.0 | 0.500 ±")


@pytest.mark.parametrize(
    ("available", "taken", "said"),
    [(3000, 2000, ""), (480, 480, "480 rows of Dolly are short enough, 2000 wanted: each run takes 480\n")],
)
def test_a_run_takes_as_many_rows_as_there_are_and_says_when_these_are_fewer(available, taken, said, capsys):
    assert rows_to_take(2000, available) == taken
    assert capsys.readouterr().out == said


def test_no_part_asks_for_a_run_twice():
    for runs in PARTS.values():
        assert len(set(runs)) == len(runs)


@pytest.fixture
def model():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 32}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=5, tie_word_embeddings=True, **sizes))


def trained_names(model: torch.nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_the_last_layers_and_a_tied_head_are_trained_alone(model):
    names = trained_names(prepared(model, "last"))
    assert {name.split(".")[2] for name in names if "layers" in name} == {"2", "3", "4"}
    assert [name for name in names if "layers" not in name] == ["model.embed_tokens.weight"]


def test_adapters_stand_beside_the_cut_alone(model, monkeypatch):
    monkeypatch.setattr("tests.benchmarks.effect_teacher.DROPPED", range(2, 4))
    monkeypatch.setattr("tests.benchmarks.effect_teacher.BESIDE", 1)
    names = trained_names(prepared(model, "beside"))
    assert names
    assert all("lora_" in name for name in names)
    assert {name.split("layers.")[1][0] for name in names} == {"1", "2"}


def test_words_are_the_same_up_to_the_first_that_differs():
    assert same_words("A glacier is ice", "A glacier was ice") == 2
    assert same_words("", "ice") == 0


def test_answers_are_counted_for_each_model():
    def run(text: str, passes: bool) -> dict[str, dict[str, list]]:
        return {
            kind: {"passes": [passes], "unended": [False], "texts": [text]} for kind in ("problems", "calls", "dolly")
        }

    lines = answers_table({"seed": run("ice moves", True), "bare cut": run("ice ice", False)}).splitlines()
    assert lines[3] == "| bare cut | 0 of 1 | 0 of 1 | 0 of 1 | 1 of 1 | 0 of 1 | 1.0 |"
    assert circles("1 / 2 = 3 and then " * 40)
    assert not circles("A glacier is ice that moves slowly downhill.")
    assert counted([True, False, True]) == "2 of 3"
