"""What training takes of the rows: those within sequence_len that Axolotl can tokenize."""

import json

import pytest

pytest.importorskip("axolotl")

from axolotl.utils.dict import DictDefault
from datasets import load_from_disk

from axolotl_sdft.core.errors import ConfigError, DatasetError
from axolotl_sdft.distillation.rows import validation
from axolotl_sdft.integrations.axolotl import compat
from axolotl_sdft.integrations.axolotl.compat import tokenizing_strategy
from axolotl_sdft.integrations.axolotl.rewriting import check_distillation, distillation_specs
from tests.distillation import echo_backend
from tests.integrations.rewritten_project import TOP, loaded_by_axolotl, rewrite, write_rows
from tests.integrations.rewritten_project import cfg as cfg

pytestmark = pytest.mark.usefixtures("echo_plugin")

LONG = " ".join(f"word {number}" for number in range(200))  # more than 256 tokens, fewer than 1024
TURNS = "{% for one in messages %}{{ '<|im_start|>' + one.role + '\\n' + one.content + '<|im_end|>\\n' }}{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS


def say(monkeypatch, cfg, answers, **settings):
    """Let the seed model give these answers to the pears; they are named by the originals."""
    monkeypatch.setattr(echo_backend, "SAYS", {f"Rewrite: {original}": given for original, given in answers.items()})
    monkeypatch.setattr(echo_backend, "ASKED", [])
    cfg.self_distillation = {**TOP, "generation": {"backend": "asked"}, **settings}
    cfg.datasets = cfg.datasets[1:]


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_an_answer_that_makes_its_row_longer_than_sequence_len_is_rejected(cfg, tmp_path, monkeypatch, tiny_llama_dir):
    write_rows(tmp_path / "pears.jsonl", "pear", 3)
    answers = {"pear 0": [LONG, LONG], "pear 1": ["So."], "pear 2": [LONG, "Short."]}
    say(monkeypatch, cfg, {f"original {name}": given for name, given in answers.items()}, max_attempts=2)
    train, _ = loaded_by_axolotl(cfg, tiny_llama_dir)
    assert len(train) == 3
    (folder,) = tmp_path.glob("sdft_prepared/distilled-*")
    rows = load_from_disk(str(folder))
    assert [row["output"] for row in rows] == ["original pear 0", "So.", "Short."]
    why = "too_long: it makes the row longer than sequence_len, which is 256 tokens"
    assert rows[0]["sdft_reasons"] == [why]
    assert summary_of(folder)["rejections"] == {"too_long": 1}
    assert summary_of(folder)["rejected_attempts"] == {"too_long": 3}


def test_a_row_that_is_longer_than_sequence_len_from_the_start_is_left_alone(cfg, tmp_path, monkeypatch, caplog):
    rows = [{"instruction": LONG, "output": "original pear 0"}, {"instruction": "pear 1", "output": "original pear 1"}]
    (tmp_path / "pears.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    say(monkeypatch, cfg, {"original pear 1": ["So."]})
    (folder,) = rewrite(cfg)
    assert [row["output"] for row in load_from_disk(str(folder))] == ["original pear 0", "So."]
    assert len(echo_backend.ASKED) == 1
    assert "datasets[0]: 1 of 2 rows have more tokens than sequence_len (256) as they are" in caplog.text
    way_out = "raise sequence_len to train such rows"
    assert summary_of(folder)["left_alone"] == {
        "its row has more tokens than sequence_len": {"answers": 1, "rows": 1, "way_out": way_out}
    }


def turns(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_conversations_have_the_same_limit(cfg, tmp_path, monkeypatch):
    row = {"messages": [*turns("pear", "original pear"), *turns("more", "the rest")]}
    (tmp_path / "pears.jsonl").write_text(json.dumps(row))
    say(monkeypatch, cfg, {"original pear": [LONG], "the rest": ["So."]}, max_attempts=1)
    cfg.datasets = [{"path": "pears.jsonl", "type": "chat_template"}]
    (folder,) = rewrite(cfg)
    [row] = load_from_disk(str(folder))
    assert [message["content"] for message in row["messages"]] == ["pear", "original pear", "more", "So."]
    assert row["sdft_reasons"] == ["too_long: it makes the row longer than sequence_len, which is 256 tokens", ""]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_turns_of_a_conversation_are_counted_together(cfg, tmp_path, monkeypatch, caplog, num_processes):
    monkeypatch.setattr(validation, "_FEW_ROWS", 2)
    rows = [turns("pear 0", f"{LONG} original pear 0"), turns("pear 1", "original pear 1"), turns(LONG, "original")]
    (tmp_path / "pears.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    say(monkeypatch, cfg, {"original pear 1": [f"{LONG} So."], "original": []}, max_attempts=1)
    cfg.datasets = [{"path": "pears.jsonl", "type": "chat_template"}]
    cfg.dataset_num_proc = num_processes
    (folder,) = rewrite(cfg)
    assert "datasets[0]: 2 of 3 rows have more tokens than sequence_len (256) as they are" in caplog.text
    assert [row["messages"][-1]["content"] for row in load_from_disk(str(folder))] == [
        *(f"{LONG} original pear 0", "original pear 1", "original")
    ]
    assert summary_of(folder)["rejections"] == {"too_long": 1}


def test_a_long_text_that_axolotl_cuts_into_sequences_is_not_too_long(cfg, tmp_path, monkeypatch, caplog):
    (tmp_path / "pears.jsonl").write_text(json.dumps({"start": "More words:", "text": f"More words: {LONG}"}))
    say(monkeypatch, cfg, {LONG: [f"So. {LONG}"]})
    cfg.datasets = [{"path": "pears.jsonl", "type": "completion", "prompt_field": "start"}]
    (folder,) = rewrite(cfg)
    assert "sequence_len" not in caplog.text
    assert load_from_disk(str(folder))[0]["text"] == f"More words: So. {LONG}"


def test_another_sequence_len_makes_another_dataset_of_the_same_answers(cfg, tmp_path, monkeypatch):
    write_rows(tmp_path / "pears.jsonl", "pear", 1)
    say(monkeypatch, cfg, {"original pear 0": [LONG]}, max_attempts=1)
    longer = DictDefault({**cfg.to_dict(), "sequence_len": 1024})
    folders = [*rewrite(cfg), *rewrite(longer)]
    assert [load_from_disk(str(folder))[0]["output"] for folder in folders] == ["original pear 0", LONG]
    assert len(echo_backend.ASKED) == 1


@pytest.mark.parametrize(
    ("before", "why"),
    [(None, "object has no attribute"), ([{"role": "system", "content": "Be brief."}], "no system role")],
)
def test_a_row_that_axolotl_can_not_tokenize_is_named_before_anything_is_asked(before, why, cfg, tmp_path, monkeypatch):
    said = turns("pear", "original pear")
    rows = [{"messages": said}, {"messages": before and [*before, *said]}]
    (tmp_path / "pears.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    say(monkeypatch, cfg, {"original pear": ["So."]})
    kind = {"type": "chat_template", "chat_template": "jinja", "chat_template_jinja": NO_SYSTEM}
    cfg.datasets = [{"path": "pears.jsonl", **kind}]
    said = rf"datasets\[0\]: Axolotl can't tokenize row 1 as type 'chat_template' \(\w+: .*{why}.*correct or remove"
    with pytest.raises(DatasetError, match=said):
        rewrite(cfg)
    assert echo_backend.ASKED == []


def test_a_type_that_axolotl_can_not_prepare_is_named_before_anything_is_asked(cfg, monkeypatch):
    say(monkeypatch, cfg, {})
    cfg.tokenizer_config = "no-such-tokenizer"
    with pytest.raises(ConfigError, match=r"can't prepare the training of rows of type 'alpaca' \(OSError: "):
        rewrite(cfg)
    assert echo_backend.ASKED == []


@pytest.mark.parametrize("is_read", [False, True])
def test_functions_are_shown_from_the_column_that_axolotl_reads(is_read, cfg, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(compat, "reads_field_tools", lambda: is_read)
    turns = [{"role": "user", "content": "pear"}, {"role": "assistant", "content": "original pear"}]
    rows = [{"messages": turns, "functions": [{"name": "weigh"}], "tools": [{"name": "peel"}]}]
    (tmp_path / "pears.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg.datasets = [{"path": "pears.jsonl", "type": "chat_template", "field_tools": "functions"}]
    check_distillation(cfg)
    [(_, spec)] = distillation_specs(cfg)
    shown = spec.row_format.target(spec.dataset[0], 0).context[0]["content"]
    assert ("weigh" in shown, "peel" in shown) == (is_read, not is_read)
    warned = "datasets[0].field_tools is 'functions', which this version of Axolotl does not read" in caplog.text
    assert warned != is_read


def test_whether_axolotl_reads_the_column_of_functions_is_told_by_what_it_trains(cfg, tiny_llama_dir):
    template = "{{ tools | tojson }}" + TURNS.replace("{% for", "{%- for")
    kind = {"type": "chat_template", "chat_template": "jinja", "chat_template_jinja": template}
    strategy = tokenizing_strategy(cfg, {"path": "pears.jsonl", "field_tools": "functions", **kind})
    turns = [{"role": "user", "content": "pear"}, {"role": "assistant", "content": "sweet"}]
    named = {name: [{"type": "function", "function": {"name": f"in_{name}"}}] for name in ("functions", "tools")}
    tokens = strategy.tokenize_prompt({"messages": turns, **named})["input_ids"]
    assert ("in_functions" in strategy.tokenizer.decode(tokens)) == compat.reads_field_tools()


def test_rows_that_another_chat_template_makes_too_long_are_rewritten_where_they_no_longer_are(cfg, tmp_path):
    turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Seven."}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    wordy = "{% for m in messages %}" + "so to speak " * 90 + "{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    cfg.datasets = [{"path": "chat.jsonl", "type": "chat_template"}]

    def sources(**changes):
        (folder,) = rewrite(DictDefault({**cfg.to_dict(), **changes}))
        return load_from_disk(str(folder))["sdft_source"][:]

    assert sources(chat_template_jinja=wordy) == ["original"]
    assert sources() == ["distilled"]
    assert sources(chat_template="tokenizer_default") == ["distilled"]
    own = {**cfg.datasets[0], "chat_template": "jinja", "chat_template_jinja": wordy}
    assert sources(datasets=[own]) == ["original"]
