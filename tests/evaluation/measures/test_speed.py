"""Timing models in child processes: what a child does, how rounds become figures, and what failures say."""

import json
import subprocess

import pytest

from axolotl_sdft.config.evaluation import SpeedConfig
from axolotl_sdft.core.errors import BackendError, ConfigError
from axolotl_sdft.evaluation.measures import speed
from axolotl_sdft.evaluation.measures.speed import check_speed, measure_speed, shared_by_shape
from axolotl_sdft.evaluation.spec import ReportedModel

MODELS = [ReportedModel("seed", "seed_dir"), ReportedModel("pruned", "pruned_dir")]


@pytest.fixture
def tiny(tiny_llama_dir):
    return ReportedModel("seed", tiny_llama_dir)


@pytest.fixture
def no_check(monkeypatch):
    """Leaves the contexts of models that are not there aside."""
    monkeypatch.setattr(speed, "check_speed", lambda *_, **__: None)


@pytest.fixture
def injected(monkeypatch, no_check):
    """Lets the children measure what the test says, and returns in which order they were asked."""
    asked = []

    def inject(measured):
        def measure(model, job):
            asked.append(model.name)
            taken = measured[model.name].pop(0)
            if isinstance(taken, Exception):
                raise taken
            return {"seconds": taken, "peak_bytes": round(1000 * taken), "device": "cpu, 1 threads"}

        monkeypatch.setattr(speed, "_measure_in_child", measure)
        return asked

    return inject


def test_a_model_is_measured_in_a_process_of_its_own(tiny, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # reaches the child
    (figures,) = measure_speed([tiny], SpeedConfig(prompt_tokens=5, new_tokens=3, rounds=1), "float32").values()
    assert figures.tokens_per_second > 0
    assert 50e6 < figures.peak_bytes < 5e9  # Python and torch alone take more than the model
    assert (figures.prompt_tokens, figures.new_tokens, len(figures.speeds)) == (5, 3, 1)
    assert figures.device == "cpu, 1 threads"


def test_models_take_turns_and_medians_count(injected):
    asked = injected({"seed": [1.0, 4.0, 2.0], "pruned": [0.5, 1.0, 8.0]})
    found = measure_speed(MODELS, SpeedConfig(new_tokens=8, rounds=3), "auto")
    assert asked == ["seed", "pruned"] * 3
    assert {name: figures.tokens_per_second for name, figures in found.items()} == {"seed": 4.0, "pruned": 8.0}
    assert {name: figures.peak_bytes for name, figures in found.items()} == {"seed": 2000, "pruned": 1000}


def test_models_of_one_shape_share_the_median_over_the_rounds_of_both(injected):
    injected({"seed": [1.0, 1.0, 1.0], "pruned": [0.5, 0.25, 0.5], "trained": [0.25, 0.25, 1.0]})
    found = measure_speed([*MODELS, ReportedModel("trained", "out")], SpeedConfig(new_tokens=2, rounds=3), "auto")

    shared = shared_by_shape(found, {"seed": (30,), "pruned": (24,), "trained": (24,)})

    # 2 new tokens in 0.25 s are 8 a second: 4, 8, 4 of one model, 8, 8, 2 of the other.
    assert shared["pruned"] == shared["trained"]
    assert (shared["pruned"].tokens_per_second, shared["pruned"].speeds) == (6.0, (4.0, 8.0, 4.0, 8.0, 8.0, 2.0))
    assert shared["pruned"].peak_bytes == 375  # in the middle of 500 and 250
    assert shared["seed"] == found["seed"]
    assert shared_by_shape(found, {"pruned": None, "trained": None}) == found


def test_nothing_is_measured_in_no_rounds(injected):
    asked = injected({})
    assert measure_speed(MODELS, SpeedConfig(rounds=0), "auto") == {}
    assert asked == []


def test_a_model_that_fails_is_noted_and_the_others_go_on(injected):
    asked = injected({"seed": [1.0, 1.0], "pruned": [BackendError("no such luck")]})
    notes = []
    found = measure_speed(MODELS, SpeedConfig(rounds=2), "auto", notes.append)
    assert notes == ["no such luck"]
    assert asked == ["seed", "pruned", "seed"]
    assert list(found) == ["seed"]


def test_a_folder_without_a_model_is_named_with_what_the_child_says(tmp_path):
    empty = ReportedModel("trained", tmp_path)
    with pytest.raises(
        BackendError, match=rf"the speed of trained \({tmp_path}\) can't be measured: {tmp_path} has no config\.json"
    ):
        measure_speed([empty], SpeedConfig(rounds=1), "float32")


def _child_that(monkeypatch, returncode, stderr):
    def run(command, **_):
        return subprocess.CompletedProcess(command, returncode, stdout="", stderr=stderr)

    monkeypatch.setattr(subprocess, "run", run)


def test_the_last_line_of_a_child_that_broke_is_shown(monkeypatch, no_check):
    _child_that(monkeypatch, 1, "Traceback\n  File ...\nRuntimeError: a reason\n")
    with pytest.raises(BackendError, match=r"can't be measured: RuntimeError: a reason$"):
        measure_speed(MODELS, SpeedConfig(), "auto")


def test_a_killed_child_points_to_memory(monkeypatch, no_check):
    _child_that(monkeypatch, -9, "Loading weights: 50%")
    with pytest.raises(BackendError, match="it was killed, most likely since memory ran out"):
        measure_speed(MODELS, SpeedConfig(), "auto")


def test_tokens_beyond_the_context_are_refused_before_anything_runs(tiny, injected):
    asked = injected({})
    with pytest.raises(ConfigError) as caught:
        check_speed([tiny], SpeedConfig(prompt_tokens=2000, new_tokens=49))
    assert str(caught.value) == (
        "recovery_report.speed.prompt_tokens is 2000, which with new_tokens (49) makes 2049 tokens, but seed "
        f"({tiny.folder}) takes at most 2048; lower prompt_tokens or new_tokens"
    )
    assert asked == []


def test_an_adapter_has_the_context_of_its_base(tiny, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny.folder)}))
    with pytest.raises(ConfigError, match=r"but trained .* takes at most 2048"):
        check_speed([ReportedModel("trained", tmp_path)], SpeedConfig(prompt_tokens=2048))


def test_as_many_tokens_as_the_context_holds_are_fine(tiny):
    check_speed([tiny], SpeedConfig(prompt_tokens=2000, new_tokens=48))


def test_the_prompt_is_of_ordinary_tokens_and_always_the_same(tiny):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.folder)
    ids = speed._random_ids(tokenizer, 500)
    assert ids == speed._random_ids(tokenizer, 500)
    assert len(set(ids)) > 450
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert all(0 <= token < len(tokenizer) for token in ids)


def test_an_end_token_does_not_shorten_what_is_timed(tiny):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)
    prompt_1T = torch.tensor([[11, 42, 300]])
    first = int(model(prompt_1T).logits[0, -1].argmax())
    model.generation_config.eos_token_id = first
    assert speed.generate_greedily(model, prompt_1T, 6).shape[1] == 4
    lengths = []
    generate = model.generate
    model.generate = lambda **settings: lengths.append((out := generate(**settings)).shape[1]) or out
    speed._generate_exactly(model, prompt_1T, 6)
    assert lengths == [9]


def test_the_peak_is_that_since_it_was_forgotten():
    import torch

    device = torch.device("cpu")
    speed._forget_peak(device)
    before = speed._peak_bytes(device)
    torch.ones(25_000_000)  # 100 MB, and gone again
    peak = speed._peak_bytes(device)
    speed._forget_peak(device)
    assert peak - before > 90e6
    assert speed._peak_bytes(device) < peak - 50e6
