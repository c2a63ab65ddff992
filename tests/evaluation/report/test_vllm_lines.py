"""The command that serves the seed with a draft."""

import ast
import json
import shlex
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.evaluation.report.page import vllm_lines


def _checkpoint(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _command(lines: list[str]) -> list[str]:
    return shlex.split(next(line for line in lines if line.startswith("vllm serve")))


def test_the_command_serves_the_seed_with_the_draft():
    assert _command(vllm_lines(Path("seed"), Path("draft"), 5)) == [
        *("vllm", "serve", "seed", "--speculative-config"),
        '{"method": "draft_model", "model": "draft", "num_speculative_tokens": 5}',
    ]


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).map(Path))
def test_any_path_reaches_vllm_as_it_is(folder):
    command = _command(["".join(vllm_lines(folder, folder, 5)[-2:-1])])
    assert command[2] == str(folder)
    assert json.loads(command[4])["model"] == str(folder)


def test_the_python_line_holds_the_same_settings():
    lines = vllm_lines(Path("a seed's"), Path("draft"), 3)
    call = ast.parse(lines[-1], mode="eval").body
    model, settings = (ast.literal_eval(keyword.value) for keyword in call.keywords)
    assert model == "a seed's"
    assert settings == json.loads(_command(lines)[4])


def test_an_adapter_is_to_be_merged_first(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    lines = vllm_lines(Path("seed"), tmp_path, 5)
    assert any("merge it first with `axolotl merge-lora`" in line for line in lines)
    assert json.loads(_command(lines)[4])["model"] == str(tmp_path / "merged")


def test_models_of_other_vocabulary_sizes_need_a_setting_of_their_own(tmp_path):
    seed = _checkpoint(tmp_path / "seed", vocab_size=100)
    draft = _checkpoint(tmp_path / "draft", text_config={"vocab_size": 128})
    lines = vllm_lines(seed, draft, 5)
    assert any("100 and 128 rows" in line for line in lines)
    assert json.loads(_command(lines)[4])["use_heterogeneous_vocab"] is True


def test_models_of_one_vocabulary_size_need_none(tmp_path):
    folders = [_checkpoint(tmp_path / name, vocab_size=100) for name in ("seed", "draft")]
    assert "use_heterogeneous_vocab" not in json.loads(_command(vllm_lines(*folders, 5))[4])
