import math
import weakref

import pytest
import torch
import transformers
from torch import nn

from axolotl_sdft import LayerScores, fit_patch, score_layers
from axolotl_sdft.core.errors import CheckpointError, ConfigError, DatasetError, PluginError, UnknownNameError
from axolotl_sdft.plugins.registry import Registry
from axolotl_sdft.pruning.scoring import boundaries, metrics
from axolotl_sdft.pruning.scoring.boundaries import decoder_layers
from axolotl_sdft.pruning.scoring.scores import ScoringOptions, metric_needs_text
from tests.pruning.conftest import FAMILIES, NUM_LAYERS, load, token_ids

ROWS = [[5, 9, 11, 30], [7, 8, 21, 40, 41, 42, 3], [12]]


@pytest.fixture
def model(checkpoint):
    return load(checkpoint())


def padded(rows, side="right", pad=0):
    """One micro-batch of token lists."""
    width = max(len(row) for row in rows)
    batch = {"input_ids": [], "attention_mask": []}
    for row in rows:
        fill = [pad] * (width - len(row))
        real, filled = [1] * len(row), [0] * len(fill)
        batch["input_ids"].append(row + fill if side == "right" else fill + row)
        batch["attention_mask"].append(real + filled if side == "right" else filled + real)
    return {key: torch.tensor(value) for key, value in batch.items()}


def boundaries_of(model, row):
    """The L+1 boundaries of one row without padding, as lists of float64 vectors: [boundary][token]."""
    before_norm = []
    handle = model.model.layers[-1].register_forward_hook(lambda _m, _a, out: before_norm.append(out))
    with torch.no_grad():
        hidden = model(torch.tensor([row]), output_hidden_states=True, use_cache=False).hidden_states
    handle.remove()
    last = before_norm[0][0] if isinstance(before_norm[0], tuple) else before_norm[0]
    return [states[0].double() for states in (*hidden[:-1], last)]


def slow_mean(model, of_cosine, i, j, last_only=False):
    values = []
    for row in ROWS:
        states = boundaries_of(model, row)
        for token in [len(row) - 1] if last_only else range(len(row)):
            u, v = states[i][token], states[j][token]
            values.append(of_cosine(float(u @ v / (u.norm() * v.norm()))))
    return sum(values) / len(values)


def angle(cosine):
    return math.acos(max(-1.0, min(1.0, cosine))) / math.pi


@pytest.mark.parametrize("last_only", [False, True], ids=["all", "last"])
@pytest.mark.parametrize(("metric", "of_cosine"), [("angular_distance", angle), ("block_influence", lambda c: 1 - c)])
def test_scores_equal_a_slow_reference(model, metric, of_cosine, last_only):
    model.double()
    found = score_layers(model, [padded(ROWS)], metric, token_reduction="last" if last_only else "all")
    assert found.metric == metric
    assert found.num_layers == NUM_LAYERS
    assert found.num_tokens == (3 if last_only else 12)
    for i in range(NUM_LAYERS + 1):
        for j in range(NUM_LAYERS + 1):
            expected = slow_mean(model, of_cosine, i, j, last_only) if j > i else 0.0
            assert found.block_costs[i][j] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_scored_alike(checkpoint, name):
    model = load(checkpoint(name))
    found = score_layers(model, [padded(ROWS)])
    for i, j in [(0, 1), (2, 5), (5, 6), (0, 6)]:
        assert found.block_costs[i][j] == pytest.approx(slow_mean(model, angle, i, j), abs=1e-5)


def test_the_last_boundary_is_before_the_final_norm(model):
    before = score_layers(model, [padded(ROWS)])
    with torch.no_grad():
        model.model.norm.weight.uniform_(-1, 1)
    assert score_layers(model, [padded(ROWS)]) == before


@pytest.mark.parametrize("token_reduction", ["all", "last"])
def test_padding_has_no_influence(model, token_reduction):
    expected = score_layers(model, [padded([row]) for row in ROWS], token_reduction=token_reduction)
    for side, pad in [("right", 0), ("right", 17), ("left", 0), ("left", 17)]:
        found = score_layers(model, [padded(ROWS, side, pad)], token_reduction=token_reduction)
        assert found.num_tokens == expected.num_tokens
        torch.testing.assert_close(torch.tensor(found.block_costs), torch.tensor(expected.block_costs))


def test_learned_positions_count_from_the_first_token_after_padding_on_the_left():
    config = transformers.GPT2Config(vocab_size=61, n_embd=16, n_layer=3, n_head=2, n_positions=32)
    model = transformers.GPT2LMHeadModel(config)
    right, left = (score_layers(model, [padded(ROWS, side)]) for side in ("right", "left"))
    torch.testing.assert_close(torch.tensor(left.block_costs), torch.tensor(right.block_costs))


def test_the_split_into_batches_and_chunks_has_no_influence(model, monkeypatch):
    ids = token_ids(rows=4)
    whole = score_layers(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    monkeypatch.setattr(boundaries, "_CHUNK_NUMBERS", 5 * 7 * 16)
    parts = score_layers(model, [{"input_ids": part} for part in (ids[:1], ids[1:])])  # no mask: nothing is padding
    assert parts.num_tokens == whole.num_tokens == 48
    torch.testing.assert_close(torch.tensor(parts.block_costs), torch.tensor(whole.block_costs))


def test_a_layer_that_does_nothing_costs_nothing(model):
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    costs = score_layers(model, [padded(ROWS)]).block_costs
    assert costs[2][3] == pytest.approx(0.0, abs=1e-6)
    assert min(costs[i][i + 1] for i in (0, 1, 3, 4, 5)) > 0.01


def test_scoring_runs_no_head_and_leaves_the_model_as_it_was(model):
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    called = []
    model.lm_head.register_forward_hook(lambda *_: called.append("head"))
    score_layers(model, [padded(ROWS)])
    assert called == []
    assert [module.training for module in model.modules()] == modes
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in model.model.layers)


def test_hooks_are_removed_when_a_batch_fails(model):
    with pytest.raises(IndexError):
        score_layers(model, [{"input_ids": torch.tensor([[10**6]])}])
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in model.model.layers)


def test_only_the_scoring_of_single_layers_is_not_contiguous(model):
    assert metrics.angular_distance(model, [padded(ROWS)], ScoringOptions()).contiguous
    assert not metrics.block_influence(model, [padded(ROWS)], ScoringOptions()).contiguous


@pytest.mark.parametrize("batches", [[], [{"input_ids": torch.tensor([[4]]), "attention_mask": torch.tensor([[0]])}]])
def test_calibration_without_a_token_is_refused(model, batches):
    with pytest.raises(DatasetError, match=r"layer_pruning\.calibration gave no token to measure; check its path"):
        score_layers(model, batches)


@pytest.mark.parametrize("metric", ["angular_distance", "perplexity"])
def test_batches_that_can_be_read_only_once_are_scored_as_a_list_is(model, metric):
    of_list = score_layers(model, [padded(ROWS), padded(ROWS[:1])], metric, num_layers=2)
    of_generator = score_layers(model, (padded(rows) for rows in (ROWS, ROWS[:1])), metric, num_layers=2)
    assert of_generator == of_list


NO_BATCHES = {
    "one batch": (padded(ROWS), r"batches is a single batch.*write \[batch\]"),
    "texts": (["Water boils.", "Hi."], r"batches\[0\] is a str; each must hold input_ids.*calibration_batches"),
    "tensors": ([torch.tensor([[4, 5]])], r"batches\[0\] is a Tensor"),
    "lists": ([padded(ROWS), {"input_ids": [[4, 5]]}], r"batches\[1\]\['input_ids'\] is a list; .*return_tensors='pt'"),
    "rows": ([{"input_ids": torch.tensor([4, 5])}], r"batches\[0\]\['input_ids'\] is of shape \[2\]"),
    "other columns": ([{"text": ["a"]}], r"batches\[0\] has no input_ids, only text"),
    "another mask": (
        [{"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 4)}],
        r"\['attention_mask'\] is not of the shape of its input_ids, \[2, 3\]",
    ),
}


@pytest.mark.parametrize(("batches", "message"), NO_BATCHES.values(), ids=NO_BATCHES)
def test_what_is_no_list_of_batches_is_refused(model, batches, message):
    with pytest.raises(DatasetError, match=message):
        score_layers(model, batches)
    with pytest.raises(DatasetError, match=message):
        fit_patch(model, batches, [2])


def test_an_unknown_metric_is_refused_with_the_known_ones(model):
    with pytest.raises(
        UnknownNameError,
        match=r"layer_pruning\.metric is 'magic'.*angular_distance, block_influence, divergence, last, perplexity",
    ):
        score_layers(model, [], metric="magic")


def test_a_metric_that_returns_no_scores_is_refused(model, monkeypatch):
    registry = Registry({"metric": {"odd": lambda *_: [0.5]}})
    monkeypatch.setattr("axolotl_sdft.pruning.scoring.scores.registry", lambda: registry)
    with pytest.raises(PluginError, match=r"metric 'odd' returned a list; it must return LayerScores"):
        score_layers(model, [], metric="odd")


def test_a_plugin_s_metric_gets_the_model_the_batches_and_the_options(model, monkeypatch):
    expected = LayerScores("mine", 1, ((0.0, 1.0), (0.0, 0.0)), True, 1)
    seen = []
    registry = Registry({"metric": {"mine": lambda *args: seen.append(args) or expected}})
    monkeypatch.setattr("axolotl_sdft.pruning.scoring.scores.registry", lambda: registry)
    batches = [padded(ROWS)]
    found = score_layers(model, batches, "mine", "last", num_layers=3, protect_first=1, protect_last=2, known=expected)
    assert found == expected
    assert seen == [(model, batches, ScoringOptions("last", 3, 1, 2, expected))]


def test_scores_that_a_metric_has_from_another_one_bear_its_own_name(model, monkeypatch):
    def mine(model, batches, options):
        return score_layers(model, batches, "angular_distance")

    assert score_layers(model, [padded(ROWS)], mine).metric == "mine"


def test_an_unknown_token_reduction_is_refused(model):
    with pytest.raises(ConfigError, match="token_reduction is 'mean'; choose one of all, last"):
        score_layers(model, [padded(ROWS)], token_reduction="mean")


def test_an_order_from_a_metric_that_does_not_say_that_it_is_greedy_is_refused(model, monkeypatch):
    order = LayerScores("mine", 6, (), False, 1, removal_order=(3,))
    registry = Registry({"metric": {"mine": lambda *_: order}})
    monkeypatch.setattr("axolotl_sdft.pruning.scoring.scores.registry", lambda: registry)
    with pytest.raises(PluginError, match=r"metric 'mine' returned a removal_order.*metric_traits\(is_greedy=True\)"):
        score_layers(model, [], metric="mine")


def test_the_decoder_layers_are_told_from_lists_inside_them(model):
    model.model.layers[0].experts = nn.ModuleList(nn.Identity() for _ in range(NUM_LAYERS))
    assert decoder_layers(model) is model.model.layers


def test_the_decoder_layers_are_told_from_those_of_another_modality(model):
    model.vision_tower = nn.ModuleList(nn.Identity() for _ in range(NUM_LAYERS))
    assert decoder_layers(model) is model.model.layers


def test_a_model_whose_layers_can_t_be_told_is_refused(model):
    model.config.num_hidden_layers = 5
    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM has no list of 5 modules.*layer_pruning\.drop_layers"):
        decoder_layers(model)
    model.config.num_hidden_layers = 6
    model.other = nn.ModuleList(nn.Identity() for _ in range(6))
    with pytest.raises(CheckpointError, match=r"has 2 lists \(model\.layers, other\) of 6 modules"):
        decoder_layers(model)


def test_a_model_that_runs_one_layer_twice_is_refused(model):
    model.model.layers[3] = model.model.layers[2]
    with pytest.raises(CheckpointError, match=r"does not run its 6 layers once each in their order"):
        score_layers(model, [padded(ROWS)])


# Other kinds of models


def test_at_most_one_micro_batch_of_boundaries_is_alive(model, monkeypatch):
    kept, alive = [], []
    own = boundaries._boundaries

    def watched(*args):
        alive.append(sum(ref() is not None for ref in kept))
        states = own(*args)
        kept.extend(weakref.ref(state) for state in states)
        return states

    monkeypatch.setattr(boundaries, "_boundaries", watched)
    score_layers(model, [padded([row]) for row in ROWS])
    assert len(kept) == 3 * (NUM_LAYERS + 1)
    assert alive == [0, 0, 0]


BERT_LIKE = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 24}
ENCODERS = {
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=61, **BERT_LIKE)),
    "bert-classifier": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=61, **BERT_LIKE)
    ),
    "roberta": lambda: transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(vocab_size=61, max_position_embeddings=40, **BERT_LIKE)
    ),
    "distilbert": lambda: transformers.DistilBertForMaskedLM(
        transformers.DistilBertConfig(vocab_size=61, dim=16, n_heads=2, n_layers=3, hidden_dim=24)
    ),
    "deberta-v2": lambda: transformers.DebertaV2ForMaskedLM(
        transformers.DebertaV2Config(vocab_size=61, relative_attention=True, pos_att_type=["p2c", "c2p"], **BERT_LIKE)
    ),
    "modernbert": lambda: transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(
            vocab_size=61, **BERT_LIKE, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
        )
    ),
}


def encoder_reference(model, metric_of_cosine):
    """The score of removing the first two layers, from the boundaries that transformers itself returns, row by row."""
    values = []
    for row in ROWS:
        with torch.no_grad():
            states = model(torch.tensor([row]), output_hidden_states=True).hidden_states
        for u, v in zip(states[0][0].double(), states[2][0].double(), strict=True):
            values.append(metric_of_cosine(float(u @ v / (u.norm() * v.norm()))))
    return sum(values) / len(values)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_are_scored_alike(name):
    torch.manual_seed(5)
    model = ENCODERS[name]().eval()
    pad = model.config.pad_token_id
    found = score_layers(model, [padded(ROWS, "right", pad)])
    assert found.num_layers == 3
    assert found.block_costs[0][2] == pytest.approx(encoder_reference(model, angle), abs=1e-5)


def test_positions_that_a_model_counts_itself_are_left_to_it():
    model = ENCODERS["roberta"]().eval()
    pad = model.config.pad_token_id
    right, left = (score_layers(model, [padded(ROWS, side, pad)]) for side in ("right", "left"))
    torch.testing.assert_close(torch.tensor(left.block_costs), torch.tensor(right.block_costs))


def test_padding_has_no_influence_where_attention_falls_with_distance():
    config = transformers.BloomConfig(vocab_size=61, hidden_size=16, n_layer=3, n_head=2)
    model = transformers.BloomForCausalLM(config).eval()
    right, left = (score_layers(model, [padded(ROWS, side)]) for side in ("right", "left"))
    torch.testing.assert_close(torch.tensor(left.block_costs), torch.tensor(right.block_costs))


def vision_language_model():
    text = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "head_dim": 8}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 3}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return transformers.Gemma3ForConditionalGeneration(config).eval()


def test_of_a_vision_language_model_the_text_layers_are_scored():
    model = vision_language_model()
    assert decoder_layers(model) is model.model.language_model.layers
    found = score_layers(model, [padded(ROWS)])
    assert (found.num_layers, found.num_tokens) == (4, 12)
    assert 0 < found.block_costs[0][1] < 1


def test_hidden_states_that_have_lost_their_rows_are_refused(model):
    model.model.layers[1].register_forward_pre_hook(lambda _layer, args: (args[0].flatten(0, 1)[None], *args[1:]))
    with pytest.raises(CheckpointError, match=r"hands its layers hidden states of shape \[1, 21, 16\] for input of sh"):
        score_layers(model, [padded(ROWS)])


def test_the_last_layers_but_the_very_last_go_without_any_text(model):
    order = score_layers(model, [], metric="last").removal_order
    assert order == (4, 3, 2, 1, 0)
    assert score_layers(model, [], metric="last", protect_first=1, protect_last=2).removal_order == (3, 2, 1)
    assert [metric_needs_text(name) for name in ("last", "perplexity", "angular_distance")] == [False, True, True]
