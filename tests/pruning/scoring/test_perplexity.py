import copy
import math

import pytest
import torch
import torch.nn.functional as F
import transformers

from axolotl_sdft import LayerPruningConfig, plan_pruning, score_layers
from axolotl_sdft.core.errors import CheckpointError, ConfigError, DatasetError
from axolotl_sdft.core.terminal import Progress
from axolotl_sdft.inference import likelihood
from tests.pruning.conftest import NUM_LAYERS, VOCABULARY, load, token_ids

ROWS = [[5, 9, 11, 30], [7, 8, 21, 40, 41, 42, 3], [12]]


@pytest.fixture
def model(checkpoint):
    return load(checkpoint()).double()


def batch_of(rows):
    """One micro-batch of token lists, padded on the right."""
    width = max(map(len, rows))
    ids = [row + [0] * (width - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def without(model, removed):
    """A copy of a Llama whose layers really are gone."""
    shorter = copy.deepcopy(model)
    kept = [layer for index, layer in enumerate(shorter.model.layers) if index not in removed]
    shorter.model.layers = torch.nn.ModuleList(kept)
    shorter.config.num_hidden_layers = len(kept)
    return shorter


def slow_nll(model, rows=ROWS, last_only=False):
    """Mean negative log-likelihood of each token after the first, row by row without padding."""
    values = []
    for row in (row for row in rows if len(row) > 1):
        with torch.no_grad():
            logits = model(torch.tensor([row]), use_cache=False).logits[0]
        nll = F.cross_entropy(logits[:-1], torch.tensor(row[1:]), reduction="none").tolist()
        values += nll[-1:] if last_only else nll
    return sum(values) / len(values)


def slow_order(model, count, allowed, **options):
    order, costs = [], []
    for _ in range(count):
        nll = {layer: slow_nll(without(model, {*order, layer}), **options) for layer in allowed if layer not in order}
        order.append(min(nll, key=lambda layer: (nll[layer], layer)))
        costs.append(math.exp(nll[order[-1]]))
    return tuple(order), costs


@pytest.mark.parametrize("token_reduction", ["all", "last"])
def test_the_order_and_the_perplexities_equal_a_model_whose_layers_are_deleted(model, token_reduction):
    found = score_layers(model, [batch_of(ROWS[:1]), batch_of(ROWS[1:])], "perplexity", token_reduction, num_layers=4)
    order, costs = slow_order(model, 4, range(NUM_LAYERS), last_only=token_reduction == "last")
    assert found.removal_order == order
    assert found.removal_costs == pytest.approx(costs, rel=1e-9)
    assert (found.block_costs, found.num_tokens) == ((), 9 if token_reduction == "all" else 2)


def test_protected_layers_stay_whatever_they_cost(model):
    found = score_layers(model, [batch_of(ROWS)], "perplexity", num_layers=3, protect_first=2, protect_last=1)
    order, costs = slow_order(model, 3, range(2, 5))
    assert found.removal_order == order
    assert found.removal_costs == pytest.approx(costs, rel=1e-9)


def own_text(model, length=12):
    """What a model itself finds most likely, so that leaving out any layer that does something hurts."""
    ids = torch.tensor([[5]])
    for _ in range(length):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids.tolist()


def test_of_layers_that_do_nothing_the_lowest_goes_first_and_costs_nothing(model):
    with torch.no_grad():
        for layer in (4, 1):
            model.model.layers[layer].self_attn.o_proj.weight.zero_()
            model.model.layers[layer].mlp.down_proj.weight.zero_()
    rows = own_text(model)
    before = math.exp(slow_nll(model, rows))
    found = score_layers(model, [batch_of(rows)], "perplexity", num_layers=3)
    assert found.removal_order[:2] == (1, 4)
    assert found.removal_costs[:2] == pytest.approx([before, before], rel=1e-12)
    assert found.removal_costs[2] > 1.05 * before


@pytest.mark.parametrize(("first", "last", "runs"), [(0, 0, 20 + 14), (2, 1, 10 + 6)])
def test_a_trial_runs_only_the_layers_above_the_one_left_out(model, first, last, runs):
    # 6 layers: 5 runs for the first trial, then 5, 4, 3, 2, 1: 20 instead of 30. 5 layers: 4, then 4, 3, 2, 1: 14.
    # With layers 2 to 4 alone: 5 runs, then layers 2, 4 and 5, then 3 and 5: 10. After one has gone: 4, then 2.
    calls = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: calls.append(1))
    batches = [batch_of(ROWS[:1]), batch_of(ROWS[1:])]
    score_layers(model, batches, "perplexity", num_layers=2, protect_first=first, protect_last=last)
    assert len(calls) == 2 * runs + NUM_LAYERS  # and once through for the check that the model can be scored


def test_the_progress_over_all_steps_ends_at_its_total(model, monkeypatch):
    ends = []
    monkeypatch.setattr(Progress, "close", lambda self: ends.append((self._state().completed, self._state().total)))
    score_layers(model, [batch_of(ROWS), batch_of(ROWS)], "perplexity", num_layers=3, protect_first=1)
    # Steps with 6, 5 and 4 layers left and layer 0 kept: 5 + 4 + 3 + 2 + 1, 4 + 3 + 2 + 1 and 3 + 2 + 1.
    assert ends == [(2 * (15 + 10 + 6), 2 * (15 + 10 + 6))]


def test_scores_of_fewer_layers_are_gone_on_from(model):
    batches = [batch_of(ROWS)]
    whole = score_layers(model, batches, "perplexity", num_layers=3)
    known = score_layers(model, batches, "perplexity", num_layers=2)
    calls = []
    model.model.layers[5].mlp.register_forward_hook(lambda *_: calls.append(1))
    assert score_layers(model, batches, "perplexity", num_layers=3, known=known) == whole
    assert len(calls) <= 1 + 4  # the check, and one trial for each of the layers that are left


def test_the_logits_of_a_few_tokens_at_a_time_give_the_same(model, monkeypatch):
    whole = score_layers(model, [batch_of(ROWS)], "perplexity", num_layers=2)
    monkeypatch.setattr(likelihood, "_CHUNK_LOGITS", 2 * VOCABULARY)
    widths = []
    model.lm_head.register_forward_hook(lambda _head, args, _output: widths.append(args[0].shape[1]))
    parts = score_layers(model, [batch_of(ROWS)], "perplexity", num_layers=2)
    assert parts.removal_order == whole.removal_order
    assert parts.removal_costs == pytest.approx(whole.removal_costs, rel=1e-12)
    assert max(widths[1:]) == 2  # the first is the check that the model can be scored


FAMILIES = {
    "gemma2": lambda: transformers.Gemma2ForCausalLM(  # caps its logits after the head
        transformers.Gemma2Config(
            vocab_size=61,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            final_logit_softcapping=1.0,
            initializer_range=0.3,
        )
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=61, n_embd=16, n_layer=4, n_head=2, n_positions=32, initializer_range=0.3)
    ),
    "bloom": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=61, hidden_size=16, n_layer=4, n_head=2, initializer_range=0.3)
    ),
    "falcon": lambda: transformers.FalconForCausalLM(
        transformers.FalconConfig(
            vocab_size=61, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, initializer_range=0.3
        )
    ),
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=61, hidden_size=16, state_size=4, num_hidden_layers=4, initializer_range=0.3
        )
    ),
}


def hand_on(_layer, args, kwargs, output):
    """Let a layer run, then return its input in the form of its output."""
    hidden = args[0] if args else kwargs["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_other_forms_give_the_perplexity_of_their_own_logits(name):
    torch.manual_seed(11)
    model = FAMILIES[name]().eval()
    ids = token_ids(rows=2, length=9)
    scores = score_layers(model, [{"input_ids": ids}], "perplexity", num_layers=1)
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4)
    layers[scores.removal_order[0]].register_forward_hook(hand_on, with_kwargs=True)
    assert scores.removal_costs == pytest.approx([math.exp(slow_nll(model, ids.tolist()))], rel=1e-5)


def test_the_model_is_left_as_it_was_also_when_a_batch_fails(model):
    model.train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(IndexError):
        score_layers(model, [batch_of(ROWS), {"input_ids": torch.tensor([[1, 10**6]])}], "perplexity", num_layers=1)
    assert all("forward" not in vars(layer) for layer in model.model.layers)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


BERT = {"vocab_size": 61, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 24}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (transformers.BertForMaskedLM, r"BertForMaskedLM can't be scored by perplexity: it sees the tokens that it wo"),
        (transformers.BertLMHeadModel, r"BertLMHeadModel can't be .*; set layer_pruning\.metric to angular_distance"),
        (transformers.BertForSequenceClassification, r"it has no head that predicts the next token"),
    ],
)
def test_a_model_that_does_not_predict_the_next_token_is_refused(make, message):
    model = make(transformers.BertConfig(**BERT, initializer_range=0.3)).eval()
    with pytest.raises(CheckpointError, match=message):
        score_layers(model, [batch_of(ROWS)], "perplexity", num_layers=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"metric perplexity removes one layer after the other, but num_layers is not given"),
        ({"num_layers": 0.5}, r"num_layers is 0\.5, which is not a number of layers; write one such as 6"),
        ({"num_layers": 6}, r"num_layers is 6, but the model has 6 layers, .*keep at least one layer"),
        ({"num_layers": 3, "protect_first": 4}, r"protect_first \(4\) and protect_last \(0\) leave 2 of them"),
    ],
)
def test_a_number_of_layers_that_can_not_go_is_refused(model, options, message):
    with pytest.raises(ConfigError, match=message):
        score_layers(model, [batch_of(ROWS)], "perplexity", **options)


@pytest.mark.parametrize("batches", [[], [batch_of([[5], [9]])]])
def test_text_in_which_no_token_follows_another_is_refused(model, batches):
    with pytest.raises(DatasetError, match=r"layer_pruning\.calibration gave no token that follows another"):
        score_layers(model, batches, "perplexity", num_layers=1)


def test_logits_that_are_no_numbers_are_refused_at_the_first_step(model):
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(
        CheckpointError, match=r"perplexity is not a number whichever layer is left out; .*dtype to float"
    ):
        score_layers(model, [batch_of(ROWS)], "perplexity", num_layers=2)


def test_the_plan_takes_the_first_layers_of_the_order(model):
    scores = score_layers(model, [batch_of(ROWS)], "perplexity", num_layers=4)
    plan = plan_pruning(scores, LayerPruningConfig(num_layers=2, metric="perplexity"))
    assert plan.drop_layers == tuple(sorted(scores.removal_order[:2]))
    assert plan.cost == scores.removal_costs[1]
