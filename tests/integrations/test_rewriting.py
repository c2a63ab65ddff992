"""Axolotl's own loading of configurations and datasets around the hooks; a backend answers at once."""

import json
import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("axolotl")

import datasets
from axolotl.utils.dict import DictDefault
from datasets import load_from_disk

from axolotl_sdft import cut_layers
from axolotl_sdft.core.errors import CheckpointError, ConfigError, DatasetError, ServerError, UnknownNameError
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.rows import validation
from axolotl_sdft.integrations.axolotl import compat
from axolotl_sdft.integrations.axolotl.blocks import read_blocks
from axolotl_sdft.integrations.axolotl.compat import tokenizing_strategy
from axolotl_sdft.integrations.axolotl.rewriting import check_distillation, distillation_specs, rewrite_datasets
from tests.distillation import echo_backend
from tests.distillation.echo_backend import EchoBackend

pytestmark = pytest.mark.usefixtures("echo_plugin")

TOP = {"template": "plain", "checks": [], "generation": {"backend": "echo"}, "gap_samples": 0}


def write_rows(path, name, count):
    lines = [{"instruction": f"{name} {n}", "input": "", "output": f"original {name} {n}"} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def cfg(tiny_llama_dir, tmp_path, monkeypatch):
    """Two datasets of 12 and 8 rows, rewritten by the echo backend, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "apples.jsonl", "apple", 12)
    write_rows(tmp_path / "pears.jsonl", "pear", 8)
    return DictDefault(
        {
            "base_model": str(tiny_llama_dir),
            "plugins": ["axolotl_sdft.SDFTPlugin"],
            "self_distillation": TOP,
            "datasets": [{"path": "apples.jsonl", "type": "alpaca"}, {"path": "pears.jsonl", "type": "alpaca"}],
            "seed": 5,
            "sequence_len": 256,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_epochs": 1,
            "learning_rate": 0.001,
            "bf16": False,
            "dataset_num_proc": 1,
            "dataset_prepared_path": "prepared",
        }
    )


def rewrite(cfg, **options):
    return rewrite_datasets(cfg, read_blocks(cfg).self_distillation, **options)


def outputs(entries):
    return sorted(row["output"] for entry in entries for row in load_from_disk(entry.path))


def loaded_by_axolotl(cfg, tiny_llama_dir):
    """Return the texts that Axolotl trains on and those it evaluates on; the hooks are called as a command does."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager
    from transformers import AutoTokenizer

    cfg = load_cfg(cfg)
    if cfg.plugins:
        PluginManager.get_instance().load_datasets(cfg, preprocess=False)
    meta = load_datasets(cfg=cfg)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    return [
        sorted(tokenizer.decode(row["input_ids"]).partition("### Instruction:")[2].strip() for row in part or [])
        for part in (meta.train_dataset, meta.eval_dataset)
    ]


def test_validation_rows_are_those_that_axolotl_splits_off_and_stay_as_they_are(cfg, tiny_llama_dir):
    plain_cfg = DictDefault({key: value for key, value in cfg.items() if key not in ("plugins", "self_distillation")})
    plain_cfg.val_set_size = cfg.val_set_size = 0.3
    plain_train, plain_held_out = loaded_by_axolotl(plain_cfg, tiny_llama_dir)
    train, held_out = loaded_by_axolotl(cfg, tiny_llama_dir)
    assert held_out == plain_held_out
    assert len(held_out) == 6
    assert [text.partition("\n")[0] for text in train] == [text.partition("\n")[0] for text in plain_train]
    assert all("original" in text for text in held_out)
    assert all("messages, the last ends in" in text for text in train)


def test_a_dataset_changes_how_it_is_rewritten_and_another_is_left_alone(cfg, tiny_llama_dir):
    cfg.datasets[0].self_distillation = {"template": "reference"}
    cfg.datasets[1].self_distillation = {"enabled": False}
    train, held_out = loaded_by_axolotl(cfg, tiny_llama_dir)
    assert held_out == []
    assert sum(text.endswith("the last ends in answer.<|im_end|>") for text in train) == 12
    assert sum("original pear" in text for text in train) == 8


def test_a_dataset_that_is_left_alone_takes_part_in_the_split(cfg):
    cfg.val_set_size = 6
    cfg.datasets[1].self_distillation = {"enabled": False}
    (folder,) = rewrite(cfg)
    assert cfg.val_set_size == 0
    assert [entry.path == str(folder) for entry in cfg.datasets] == [True, False]
    assert all("original pear" in text for text in outputs(cfg.datasets[1:]))
    everything = outputs(cfg.datasets[1:]) + outputs(cfg.test_datasets)
    assert len(everything) + len(load_from_disk(str(folder))) == 20
    assert len(outputs(cfg.test_datasets)) == 6


def test_without_a_validation_split_entries_that_are_left_alone_stay_the_same(cfg):
    cfg.datasets[1].self_distillation = {"enabled": False}
    rewrite(cfg)
    assert dict(cfg.datasets[1]) == {"path": "pears.jsonl", "type": "alpaca"}
    assert cfg.test_datasets is None


def test_test_sets_are_left_as_they_are(cfg):
    cfg.test_datasets = [{"path": "pears.jsonl", "type": "alpaca"}]
    rewrite(cfg)
    assert [dict(entry) for entry in cfg.test_datasets] == [{"path": "pears.jsonl", "type": "alpaca"}]


def test_what_was_never_rewritten_is_left_as_it_is_where_nothing_may_be_made(cfg):
    cfg.val_set_size = 0.3
    before = cfg.to_dict()
    assert rewrite(cfg, only_if_done=True) == []
    assert cfg.to_dict() == before
    rewrite(DictDefault(before))
    again = DictDefault(before)
    assert len(rewrite(again, only_if_done=True)) == 2
    assert all("original" in text for text in outputs(again.test_datasets))


def test_the_same_folders_are_found_before_and_after_axolotl_has_validated(cfg):
    from axolotl.cli.config import load_cfg

    cfg.val_set_size = 0.3
    cfg.datasets[0].self_distillation = {"template": "reference"}
    raw = [task.dataset_dir for _, task in distillation_specs(cfg)]
    assert [task.dataset_dir for _, task in distillation_specs(load_cfg(cfg))] == raw


def test_equal_rows_are_rewritten_once_where_axolotl_would_drop_one(cfg, tmp_path):
    apples = (tmp_path / "apples.jsonl").read_text().splitlines(keepends=True)
    with (tmp_path / "pears.jsonl").open("a") as file:
        file.writelines(apples[:3])
    assert [len(task.dataset) for _, task in distillation_specs(cfg)] == [12, 11]
    cfg.dataset_exact_deduplication = True
    assert [len(task.dataset) for _, task in distillation_specs(cfg)] == [12, 8]


@pytest.mark.parametrize("size", [0, 4])
def test_a_dataset_that_only_repeats_another_is_left_out_and_the_others_train(size, cfg, tmp_path, caplog):
    lines = [json.loads(line) for line in (tmp_path / "apples.jsonl").read_text().splitlines()]
    (tmp_path / "pears.jsonl").write_text("".join(json.dumps({**line, "id": 7}) + "\n" for line in lines[:5]))
    cfg.dataset_exact_deduplication = True
    cfg.val_set_size = size
    cfg.shuffle_merged_datasets = False
    (folder,) = rewrite(cfg)
    assert [entry.path for entry in cfg.datasets] == [str(folder)]
    assert len(load_from_disk(str(folder))) == 12 - size
    assert "5 of 5 rows of datasets[1] train what another row trains, and are left out; nothing of it" in caplog.text


def test_a_dataset_that_is_left_alone_keeps_no_row_that_another_has_rewritten(cfg, tmp_path):
    with (tmp_path / "pears.jsonl").open("a") as file:
        file.write((tmp_path / "apples.jsonl").read_text())
    cfg.dataset_exact_deduplication = True
    cfg.datasets[1].self_distillation = {"enabled": False}
    rewrite(cfg)
    assert outputs(cfg.datasets[1:]) == sorted(f"original pear {n}" for n in range(8))


@pytest.mark.parametrize("has_own", [False, True])
def test_a_seed_without_a_chat_template_is_asked_with_that_of_the_configuration(has_own, cfg, tiny_llama_dir, tmp_path):
    shutil.copytree(tiny_llama_dir, tmp_path / "seed")
    if not has_own:
        (tmp_path / "seed" / "chat_template.jinja").unlink()
    cfg.base_model = str(tmp_path / "seed")
    cfg.chat_template = "chatml"
    cfg.datasets[1].chat_template_jinja = "{{ messages }}"
    first, second = [task.config.generation.chat_template for _, task in distillation_specs(cfg)]
    if has_own:
        assert first is second is None
    else:
        assert "<|im_start|>" in first
        assert second == "{{ messages }}"


def test_where_the_base_model_was_pruned_before_the_seed_model_that_its_record_names_rewrites(cfg, tiny_llama_dir):
    expected = [spec.dataset_dir for _, spec in distillation_specs(cfg)]
    cfg.base_model = str(cut_layers(tiny_llama_dir, [1], "pruned"))
    specs = [spec for _, spec in distillation_specs(cfg)]
    assert {spec.seed_dir for spec in specs} == {tiny_llama_dir}
    assert [spec.dataset_dir for spec in specs] == expected  # what was rewritten before the pruning is found again

    (record,) = Path("pruned").rglob("layer_pruning.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seed_model": "gone", "seed_dir": "gone"}))
    message = r"the seed model that .*pruned was pruned from, gone, which is gone or was moved.* take provenance out of"
    with pytest.raises(CheckpointError, match=message):
        distillation_specs(cfg)


def test_an_unknown_name_is_blamed_on_the_dataset_that_uses_it(cfg):
    cfg.datasets[1].self_distillation = {"template": "plane"}
    with pytest.raises(UnknownNameError, match=r"^datasets\[1\].self_distillation.template is 'plane'"):
        check_distillation(cfg)


def test_servers_that_are_gone_after_rewriting_do_not_keep_the_rows_from_being_trained_on(cfg, monkeypatch):
    def is_gone(backend):
        raise ServerError("no server can be used")

    before = DictDefault(cfg.to_dict())
    with monkeypatch.context() as servers:
        servers.setattr(EchoBackend, "check", is_gone)
        with pytest.raises(ServerError, match="no server can be used"):
            check_distillation(cfg)
    rewrite(cfg)
    monkeypatch.setattr(EchoBackend, "check", is_gone)

    check_distillation(before)


@pytest.fixture
def caching():
    """What the datasets library does with what it makes of rows, as it was before once the test has ended."""
    yield datasets.is_caching_enabled
    datasets.enable_caching()


def test_rows_in_a_folder_that_can_only_be_read_are_trained_on_without_a_cache_there(
    cfg, tiny_llama_dir, monkeypatch, caching
):
    cfg.val_set_size = 0.2
    rewrite(DictDefault(cfg))
    before = sorted(Path("sdft_prepared").rglob("*"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # of root, no chmod would take the right to write

    training, held_out = loaded_by_axolotl(cfg, tiny_llama_dir)

    assert (len(training), len(held_out)) == (16, 4)
    assert sorted(Path("sdft_prepared").rglob("*")) == before
    assert not caching()


def test_rows_for_validation_go_elsewhere_where_those_of_a_colleague_can_only_be_read(cfg, monkeypatch, caching):
    cfg.val_set_size, cfg.self_distillation = 0.2, {**TOP, "output_dir": "team"}
    for _, spec in distillation_specs(cfg):  # as `axolotl self-distill` does, which makes no other rows
        run_distillation(spec)
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    rewritten = rewrite(cfg)

    assert [folder.parent.name for folder in rewritten] == ["team", "team"]
    assert {Path(entry.path).parent for entry in cfg.test_datasets} == {Path("sdft_prepared").absolute()}
    assert len(outputs(cfg.test_datasets)) == 4
    assert not caching()


def test_rows_in_a_folder_of_ones_own_leave_the_caches_of_axolotl_where_they_are(cfg, caching):
    rewrite(cfg)
    assert caching()


def test_a_block_that_leaves_every_dataset_alone_is_refused(cfg):
    for entry in cfg.datasets:
        entry.self_distillation = {"enabled": False}
    with pytest.raises(ConfigError, match=r"each of the datasets says self_distillation: {enabled: false}; enable one"):
        check_distillation(cfg)


def test_a_completion_dataset_names_its_prompt_in_its_own_block(cfg, tmp_path):
    (tmp_path / "apples.jsonl").write_text('{"start": "Once", "text": "Once upon a time."}\n')
    cfg.datasets = [{"path": "apples.jsonl", "type": "completion", "self_distillation": {"prompt_field": "start"}}]
    (folder,) = rewrite(cfg)
    (row,) = load_from_disk(str(folder))
    assert row["text"] == "Once 1 messages, the last ends in time."


GENERAL = TOP | {"general_rows": 4}


def test_general_rows_are_trained_beside_those_of_the_datasets(cfg, tiny_llama_dir):
    cfg.self_distillation = GENERAL
    cfg.val_set_size = 0.3
    again = DictDefault(cfg.to_dict())

    *_, folder = rewrite(cfg)

    assert [entry.type for entry in cfg.datasets] == ["alpaca", "alpaca", "chat_template"]
    assert cfg.datasets[2].path == str(folder)
    assert len(load_from_disk(str(folder))) == 4
    assert len(outputs(cfg.test_datasets)) == 6  # of the 20 of the datasets, as without general rows
    train, held_out = loaded_by_axolotl(again, tiny_llama_dir)
    assert (len(train), len(held_out)) == (18, 6)


def test_general_rows_alone_leave_the_datasets_as_they_are(cfg):
    cfg.self_distillation = GENERAL
    for entry in cfg.datasets:
        entry.self_distillation = {"enabled": False}

    (folder,) = rewrite(cfg)

    assert [entry.path for entry in cfg.datasets] == ["apples.jsonl", "pears.jsonl", str(folder)]


def test_general_rows_that_were_never_answered_are_no_dataset(cfg):
    rewrite(cfg)
    again = DictDefault({**cfg.to_dict(), "self_distillation": GENERAL, "datasets": cfg.datasets[:0]})
    again.datasets = [{"path": "apples.jsonl", "type": "alpaca"}, {"path": "pears.jsonl", "type": "alpaca"}]

    assert len(rewrite(again, only_if_done=True)) == 2
    assert len(again.datasets) == 2


def test_general_rows_of_a_single_dataset_are_refused(cfg):
    cfg.datasets[1].self_distillation = {"general_rows": 4}

    with pytest.raises(
        ConfigError, match=r"datasets\[1\].self_distillation.general_rows is set, but these rows belong"
    ):
        check_distillation(cfg)


@pytest.mark.parametrize("backend", ["transformers", "vllm", "openai", "echo"])
@pytest.mark.parametrize(("own", "trusts"), [({}, True), ({"trust_remote_code": False}, False)])
def test_every_backend_may_run_the_code_that_the_configuration_trusts(cfg, backend, own, trusts):
    served = {"base_urls": ["http://localhost:1/v1"]} if backend == "openai" else {}
    cfg.trust_remote_code = True
    cfg.self_distillation = TOP | {"generation": {"backend": backend, **served, **own}}
    specs = [spec for _, spec in distillation_specs(cfg)]
    assert [spec.config.generation.trust_remote_code for spec in specs] == [trusts, trusts]


# --- what training takes of the rows ---

LONG = " ".join(f"word {number}" for number in range(200))  # more than 256 tokens, fewer than 1024


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


TURNS = "{% for one in messages %}{{ '<|im_start|>' + one.role + '\\n' + one.content + '<|im_end|>\\n' }}{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS


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
