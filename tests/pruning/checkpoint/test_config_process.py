import json
import subprocess
import sys

import pytest

from axolotl_sdft.core.errors import CheckpointError
from axolotl_sdft.pruning.checkpoint import config_process
from axolotl_sdft.pruning.checkpoint.architecture import prune_config

GEMMA = {"model_type": "gemma3_text", "num_hidden_layers": 4, "sliding_window_pattern": 2, "dtype": "bfloat16"}


@pytest.fixture
def asked_in_a_child(monkeypatch):
    """Answer through a child process, although the tests have imported transformers."""
    monkeypatch.delitem(sys.modules, "transformers")


def run_python(*lines):
    """Return what a fresh interpreter prints."""
    script = "\n".join(lines)
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout


def test_a_process_without_transformers_stays_without_it():
    output = run_python(
        "import json, sys",
        "from axolotl_sdft.pruning.checkpoint.architecture import layer_count, prune_config",
        f"pruned = prune_config({GEMMA!r}, [1])",
        "heavy = sorted({'torch', 'transformers'} & sys.modules.keys())",
        "print(json.dumps([layer_count({'model_type': 'llama'}), pruned, heavy]))",
    )
    # Llama's config class has 32 layers where the file says nothing.
    assert json.loads(output) == [32, prune_config(GEMMA, [1]), []]


def test_a_child_answers_while_this_process_goes_on(asked_in_a_child):
    pending = config_process.start("prune", GEMMA, drop_layers=[0])
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    assert pending.result() == GEMMA | {"num_hidden_layers": 3, "layer_types": kinds}
    assert pending.result() is pending.result()


def test_the_child_s_error_has_the_same_message(asked_in_a_child):
    with pytest.raises(CheckpointError, match=r"'diffllama' can't be cut soundly: each layer's lambda"):
        prune_config({"model_type": "diffllama", "num_hidden_layers": 4}, {1})


def test_the_child_s_warnings_are_logged_here(asked_in_a_child, caplog):
    prune_config({"model_type": "homemade", "num_hidden_layers": 4}, {0})
    assert "transformers has no class for model type 'homemade'" in caplog.text


def test_a_config_refused_without_torch_is_asked_about_again_with_it(asked_in_a_child, monkeypatch):
    started = []
    start_child = config_process._start_child

    def noted(task, arguments, hide_torch):
        started.append(hide_torch)
        return start_child(task, arguments, hide_torch)

    monkeypatch.setattr(config_process, "_start_child", noted)
    with pytest.raises(CheckpointError, match=r"transformers refuses config\.json .* 'llama': "):
        prune_config({"model_type": "llama", "num_hidden_layers": 3, "hidden_size": "wide"}, {1})
    assert started == [True, False]


def test_a_child_that_dies_is_told_with_its_last_words(asked_in_a_child, monkeypatch):
    monkeypatch.setattr(config_process.sys, "executable", "/bin/false")
    with pytest.raises(CheckpointError, match=r"asks transformers .* ended with status 1: it said nothing"):
        prune_config(GEMMA, {1})


def test_an_answer_nobody_waits_for_ends_its_child(asked_in_a_child):
    pending = config_process.start("prune", GEMMA, drop_layers=[0])
    pending.cancel()
    assert pending._child.poll() is not None
