"""Every file under example_configs/ passes our rules and Axolotl's real schema, and reads its datasets' columns."""

import json
from functools import cache
from pathlib import Path

import pytest
import yaml

pytest.importorskip("axolotl")

from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault

from axolotl_sdft.configs.catalogue import REQUIRED_KEYS, read_description
from axolotl_sdft.configs.memory_plan import GIGABYTE, MemoryPlan, compute_dtype, memory_needs, stated_gpus
from axolotl_sdft.distillation.checks import resolve_checks
from axolotl_sdft.distillation.rows.formats import resolve_row_format
from axolotl_sdft.distillation.templates import resolve_template
from axolotl_sdft.integrations.axolotl.blocks import read_blocks
from axolotl_sdft.integrations.axolotl.compat import validate_early
from axolotl_sdft.integrations.axolotl.rules import check_rules
from axolotl_sdft.pruning.planning.model_shape import read_model_shape
from tests.configs.seed_models import PARAMETERS, SEED_MODELS
from tests.distillation.rows.test_formats_against_axolotl import assert_trains_the_answers, parts, tokenized
from tests.pruning.without_content import runs_without_content

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "example_configs"
EXAMPLES = sorted(FOLDER.rglob("*.yml"))
SELF_DATA = sorted((FOLDER / "self-data-distillation").glob("*.yml"))
LEAST = {
    **{"micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 0.001, "num_epochs": 1},
    "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
}

MADE_BY_A_SCRIPT = {"data/lima.jsonl": "prepare_lima.py"}
"""Data that a script beside the configurations writes, and which one."""

ASKED, ANSWERED = "How many feet does a spider have?", "It has eight. The answer is 8."
TURNS = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
ROWS = {
    "HuggingFaceH4/no_robots": {"prompt": ASKED, "prompt_id": "1", "messages": TURNS, "category": "Open QA"},
    "data/lima.jsonl": {"messages": TURNS, "source": "web"},
    "databricks/databricks-dolly-15k": {
        **{"instruction": ASKED, "context": "Insects have six.", "response": ANSWERED, "category": "closed_qa"}
    },
    "ise-uiuc/Magicoder-Evol-Instruct-110K": {"instruction": ASKED, "response": ANSWERED},
    "mlabonne/FineTome-100k": {
        "conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}],
        **{"source": "web", "score": 4.5},
    },
    "nvidia/OpenMathInstruct-1": {
        **{"question": ASKED, "generated_solution": ANSWERED, "expected_answer": "8", "predicted_answer": "8"},
        **{"error_message": "", "is_correct": True, "generation_type": "masked_reference_solution", "dataset": "gsm8k"},
    },
    "openai/gsm8k": {"question": ASKED, "answer": ANSWERED},
    "tatsu-lab/alpaca": {"instruction": ASKED, "input": "A garden spider.", "output": ANSWERED, "text": "Below is ..."},
    "teknium/OpenHermes-2.5": {
        "conversations": [
            {"from": "human", "value": ASKED, "weight": None},
            {"from": "gpt", "value": ANSWERED, "weight": None},
        ],
        **{"source": "web", "category": "general", "id": "1", "system_prompt": None},
    },
}
"""A row with the columns of each dataset that is not here, as its card on the Hub describes them."""


@pytest.fixture(autouse=True)
def sdft_plugin(monkeypatch):
    """The plugin's keys are in Axolotl's schema, as its command puts them there."""
    from axolotl_sdft import SDFTPlugin

    monkeypatch.setattr(PluginManager.get_instance(), "plugins", {"axolotl_sdft.SDFTPlugin": SDFTPlugin()})


def validate(config):
    check_rules(config, read_blocks(config), other_trainers={})
    validate_early(DictDefault(config))


def each_example(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.relative_to(FOLDER).as_posix())


def test_there_are_examples():
    assert EXAMPLES


@each_example(EXAMPLES)
def test_an_example_is_valid_and_its_local_data_is_there(path):
    config = yaml.safe_load(path.read_text())
    validate(config)
    assert config["plugins"] == ["axolotl_sdft.SDFTPlugin"]
    for entry in config["datasets"]:
        is_known = entry["path"] in ROWS or (REPOSITORY / entry["path"]).is_file()
        assert is_known, f"{entry['path']}: add a row with its columns to ROWS, or the file"


@each_example(EXAMPLES)
def test_an_example_says_what_it_does_what_it_needs_and_whose_settings_it_has(path):
    described = read_description(path.read_text())
    assert set(described) >= {*REQUIRED_KEYS, "settings", "memory", "run"}
    assert "our" in described["settings"].lower()
    if is_for_gpus(path):
        assert "Estimates, not measured" in described["needs"]


@each_example(EXAMPLES)
def test_an_example_says_in_two_lines_what_was_run_and_what_was_not(path):
    run = read_description(path.read_text())["run"]
    assert run.startswith("Never on a GPU. Checked: " if is_for_gpus(path) else "On two CPU cores")
    assert "ever on a GPU" in run
    assert len(run) < 240


def is_for_gpus(path):
    return stated_gpus(read_description(path.read_text())["needs"]) is not None


MODELS = sorted({yaml.safe_load(path.read_text())["base_model"] for path in EXAMPLES})


@pytest.mark.parametrize("model", MODELS)
@runs_without_content
def test_each_stage_fits_the_gpu_that_is_named_and_takes_the_memory_that_is_written(model):
    """All configurations of a model at once, since counting what it is made of takes seconds."""
    shapes = {}
    for path in EXAMPLES:
        config, described = yaml.safe_load(path.read_text()), read_description(path.read_text())
        if config["base_model"] != model:
            continue
        dtype = compute_dtype(config)
        shape = shapes[dtype] = shapes.get(dtype) or read_model_shape(SEED_MODELS[model], dtype)
        gpus = stated_gpus(described["needs"])
        needs = memory_needs(config, read_blocks(config), shape, gpus.count if gpus else 1)
        assert list(MemoryPlan(tuple(needs), gpus).findings()) == []
        figures, _, said = described["memory"].partition(" GB on each GPU" if gpus else " GB of main memory")
        assert said == "; calculated by axolotl sdft-configs check, not measured."
        written = dict(figure.removesuffix(" GB").split(" ") for figure in figures.split(", "))
        assert list(written) == [need.stage for need in needs]
        for need in needs:  # versions of transformers keep a little more or less for the backward pass
            assert float(written[need.stage]) == pytest.approx(need.total / GIGABYTE, rel=0.05, abs=0.06)
    assert shape.parameters == PARAMETERS[model]


@each_example([path for path in EXAMPLES if not is_for_gpus(path)])
def test_an_example_for_a_cpu_needs_nothing_of_a_gpu(path):
    config = yaml.safe_load(path.read_text())
    assert config["bf16"] is False
    assert config["dataset_num_proc"] == 1
    kernels = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
    assert [config.get(kernel) for kernel in kernels] == [False] * 4  # on by themselves, and written for GPUs
    assert not {"attn_implementation", "load_in_4bit", "load_in_8bit", "tf32"} & config.keys()


@each_example([path for path in EXAMPLES if is_for_gpus(path)])
def test_an_example_for_gpus_has_what_saves_their_time_and_memory(path):
    config = yaml.safe_load(path.read_text())
    assert (config["bf16"], config["tf32"]) == ("auto", True)
    assert config.get("gradient_checkpointing") or config["fsdp_config"]["activation_checkpointing"]
    # Packed rows must not see each other, which torch's own attention does not ensure in bf16.
    assert config["attn_implementation"] == ("flash_attention_2" if config["sample_packing"] else "sdpa")
    if path.parent.name not in ("sdft", "dynsdpb"):  # whose authors count their batches in rows
        assert config["sample_packing"] is True


@each_example(EXAMPLES)
def test_rows_that_are_held_out_are_also_measured(path):
    config = yaml.safe_load(path.read_text())
    assert bool(config.get("val_set_size")) == ("evals_per_epoch" in config)


@each_example(EXAMPLES)
def test_dynsdpb_has_noise_to_be_consistent_under(path):
    config = yaml.safe_load(path.read_text())
    if "dynsdpb" in config and config.get("adapter"):
        assert config["lora_dropout"] > 0


@each_example(EXAMPLES)
def test_an_example_names_the_login_of_today_and_what_the_calibration_text_is(path):
    text = path.read_text()
    assert "huggingface-cli" not in text
    assert "(the training set)" not in text


@each_example(EXAMPLES)
def test_the_templates_and_checks_of_an_example_exist(path):
    block = read_blocks(yaml.safe_load(path.read_text())).self_distillation
    if block is not None:
        resolve_checks(block.checks, [resolve_template(template) for template in block.templates])


@each_example(EXAMPLES)
def test_each_dataset_of_an_example_is_read_by_us_and_trained_by_axolotl_alike(path, tokenizer_dir):
    """The instruction reaches the prompt, and exactly the answer is trained, before and after rewriting."""
    for entry in yaml.safe_load(path.read_text())["datasets"]:
        row = row_of(entry)
        assert_trains_the_answers([row], entry, tokenizer_dir)
        prompt, _ = parts(tokenized([row], entry, tokenizer_dir)[0], tokenizer_dir)
        assert resolve_row_format(entry).target(row, 0).instruction in prompt


def row_of(entry):
    local = REPOSITORY / entry["path"]
    return json.loads(local.read_text().splitlines()[0]) if local.is_file() else ROWS[entry["path"]]


@each_example(EXAMPLES)
def test_no_two_examples_write_to_the_same_folder(path):
    folders = _output_dirs()
    assert list(folders.values()).count(folders[path]) == 1


@cache
def _output_dirs():
    return {path: yaml.safe_load(path.read_text())["output_dir"] for path in EXAMPLES}


@each_example(SELF_DATA)
def test_files_of_self_data_distillation_differ_in_nothing_but_what_their_names_say(path):
    """The model, the number of blocks and the dataset; what a file compares with is the file of six blocks."""
    model, _, rest = path.stem.partition("-less-")
    num_layers, _, dataset = rest.partition("-")
    config = yaml.safe_load(path.read_text())
    assert config["layer_pruning"]["num_layers"] == int(num_layers)
    six = yaml.safe_load(path.with_name(f"{model}-less-6-{dataset}.yml").read_text())
    six["layer_pruning"] = config["layer_pruning"]
    six["output_dir"] = config["output_dir"]
    if (model, dataset) == ("llama-3.1-8b", "openmathinstruct"):  # the one that also shows what comes afterwards
        for key in ("merge", "recovery_report"):
            six[key] = config.get(key)
    assert {key: value for key, value in six.items() if value is not None} == config


@pytest.mark.parametrize(("data", "script"), MADE_BY_A_SCRIPT.items())
def test_a_description_names_the_script_that_writes_its_data(data, script):
    using = [path for path in EXAMPLES if f"path: {data}" in path.read_text()]
    assert using
    for path in using:
        assert script in read_description(path.read_text())["data"]
        assert (FOLDER / script).is_file()


def test_axolotl_refuses_a_wrong_key_inside_our_blocks_too():
    plugins = ["axolotl_sdft.SDFTPlugin"]
    config = LEAST | {"base_model": "seed", "plugins": plugins, "layer_pruning": {"num_layer": 1}}
    with pytest.raises(ValueError, match="did you mean 'num_layers'"):
        validate_early(DictDefault(config))
