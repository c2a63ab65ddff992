import re
from importlib.metadata import version

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.config.yaml_file import read_yaml_file
from axolotl_sdft.configs import checking
from axolotl_sdft.configs.catalogue import shared_configs
from axolotl_sdft.configs.checking import check_file
from axolotl_sdft.configs.places import is_absolute
from axolotl_sdft.core.errors import ConfigError

HEADER = "# title: A\n# needs: 1 GPU\n# expects: less\n# source: ours\n"
MADE_BY_MAKE = "models/SmolLM2-135M-Instruct"
WITHOUT_AXOLOTL = "advice: Axolotl: it is not installed, so its own keys were not checked"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
GOOD = {
    "base_model": "Qwen/Qwen3-8B",
    "revision_of_model": COMMIT,
    "plugins": ["axolotl_sdft.SDFTPlugin"],
    "self_distillation": {},
    "datasets": [{"path": "tatsu-lab/alpaca", "type": "alpaca", "revision": COMMIT}],
    **{"micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 0.001, "num_epochs": 1},
    "output_dir": "outputs/mine",
}


def lines_of(path):
    return [finding.line() for finding in check_file(read_yaml_file(path), path.parent)]


@pytest.fixture
def found(tmp_path, monkeypatch):
    """What a check of the good configuration finds once some of it has changed, as its lines."""
    monkeypatch.chdir(tmp_path)

    def find(header=HEADER, comment="", **changes):
        config = {key: value for key, value in (GOOD | changes).items() if value is not None}
        (tmp_path / "mine.yml").write_text(header + comment + yaml.safe_dump(config))
        lines = lines_of(tmp_path / "mine.yml")
        return [line for line in lines if line != WITHOUT_AXOLOTL]

    return find


def dataset(**changes):
    return [{**GOOD["datasets"][0], **changes}]


def generation(**settings):
    return {"generation": {"backend": "openai", **settings}}


def test_a_good_configuration_has_no_findings(found):
    assert found() == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"base_model": "/home/me/model"}, "fault: base_model: '/home/me/model' is a folder of this machine"),
        ({"base_model": "C:\\models\\mine"}, r"fault: base_model: 'C:\\models\\mine'"),
        ({"tokenizer_config": "./tokenizer"}, "fault: tokenizer_config: './tokenizer' is a folder of this machine"),
        ({"datasets": dataset(path="~/rows.jsonl")}, "fault: datasets[0].path: '~/rows.jsonl' is on this machine only"),
        ({"datasets": dataset(path="../rows.jsonl")}, "fault: datasets[0].path: '../rows.jsonl' is on this machine"),
        ({"datasets": dataset(path="rows.jsonl")}, "fault: datasets[0].path: 'rows.jsonl' is neither beside"),
        ({"output_dir": "/scratch/me"}, "fault: output_dir: '/scratch/me' is a folder of this machine"),
        ({"self_distillation": {"output_dir": "/x"}}, "fault: self_distillation.output_dir: '/x' is a folder"),
        ({"deepspeed": "/etc/zero3.json"}, "fault: deepspeed: '/etc/zero3.json' is on this machine only"),
        ({"revision_of_model": None}, "advice: revision_of_model: is not set, so Qwen/Qwen3-8B may change"),
        ({"revision_of_model": "main"}, "advice: revision_of_model: 'main' may move, so Qwen/Qwen3-8B may change"),
        ({"datasets": dataset(revision=None)}, "advice: datasets[0].revision: is not set, so tatsu-lab/alpaca"),
        ({"header": "# title: A\n"}, "fault: description: the first lines do not say needs, expects, source"),
        ({"plugins": None}, "fault: plugins: axolotl_sdft.SDFTPlugin is not listed"),
        ({"self_distilation": {}}, "fault: self_distilation: is not a key of Axolotl or its plugins"),
        ({"self_distillation": {"chekcs": []}}, "fault: self_distillation: unknown key 'chekcs'; did you mean"),
        (
            {"datasets": dataset(self_distillation={"chekcs": []})},
            "fault: datasets[0].self_distillation: unknown key 'chekcs'; did you mean 'checks'?",
        ),
        (
            {"layer_pruning": {"num_layers": 2, "metric": "angle"}},
            "fault: layer_pruning.metric: is 'angle', but no such",
        ),
        ({"self_distillation": {"template": "mathss"}}, "fault: self_distillation.template: is 'mathss', but no such"),
        ({"self_distillation": {"checks": ["leek"]}}, "fault: self_distillation.checks: is 'leek', but no such check"),
        (
            {"self_distillation": {"checks": [{"length_ratio": {"most": 2}}]}},
            "fault: self_distillation.checks: the check length_ratio has no option 'most'",
        ),
        (
            {"self_distillation": {"generation": {"backend": "sglang"}}},
            "fault: self_distillation.generation.backend: is 'sglang', but no such backend",
        ),
        ({"datasets": dataset(type="alpacca")}, "fault: datasets[0].type: is 'alpacca', but no such row format"),
        ({"datasets": dataset(type="completion")}, "fault: datasets[0].type: is 'completion', which can't be"),
        (
            {"datasets": dataset(self_distillation={"template": "cod"})},
            "fault: datasets[0].self_distillation.template: is 'cod', but no such template",
        ),
        (
            {"recovery_report": {"exact_match": {"checks": ["numbers"]}}},
            "fault: recovery_report.exact_match.checks: is 'numbers', but no such check",
        ),
        ({"comment": "dynsdpb:\n"}, "fault: dynsdpb: is empty, which counts as not set; write dynsdpb: {}"),
        ({"recovery_report": {"exact_match": None}}, "fault: recovery_report.exact_match: is empty"),
        ({"plugins": 3}, "fault: plugins: is 3, which is not a list of names; write it as [axolotl_sdft.SDFTPlugin]"),
        ({"plugins": "axolotl_sdft.SDFTPlugin"}, "fault: plugins: is 'axolotl_sdft.SDFTPlugin', which is not a list"),
        (
            {"plugins": [{"axolotl_sdft.SDFTPlugin": None}]},
            "fault: plugins: is [{'axolotl_sdft.SDFTPlugin': None}], which is not a list of names",
        ),
        ({"rl": "dpo"}, "fault: self_distillation: rewrites supervised answers"),
        ({"api_key": "abc"}, "fault: api_key: holds what looks like a key"),
        ({"wandb_key": "0" * 40}, "fault: wandb_key: holds what looks like a key"),
        ({"comment": f"# my token: hf_{'a' * 30}\n"}, "fault: comments: one holds what looks like a key"),
        (
            {"self_distillation": generation(base_urls=["http://gpu7:8000/v1"])},
            "advice: self_distillation.generation.base_urls: gpu7 is a server of yours",
        ),
    ],
)
def test_a_finding_names_its_key(found, changes, line):
    assert any(each.startswith(line) for each in found(**changes)), found(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"self_distillation": generation(base_urls=["http://localhost:8000/v1"])},
        {"special_tokens": {"pad_token": "<|end|>"}},
        {"hf_use_auth_token": True},
        {"datasets": dataset(path="https://example.com/rows.jsonl", revision=None)},
        {"datasets": dataset(self_distillation={"template": "code"})},
    ],
)
def test_what_works_for_others_is_no_finding(found, changes):
    assert found(**changes) == []


def test_data_beside_the_file_may_be_sent_along(found, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (line,) = found(datasets=dataset(path="rows.jsonl"))
    assert line.startswith("advice: datasets[0].path: 'rows.jsonl' is a local file; send it along")


def test_a_key_that_stands_twice_is_a_fault(found):
    (line,) = found(comment="learning_rate: 0.5\n")
    assert re.fullmatch(r"fault: learning_rate: stands there twice, in lines 5 and \d+, and only the last one.*", line)


def test_a_dataset_that_is_left_alone_may_have_any_type(found):
    two = [*GOOD["datasets"], {**GOOD["datasets"][0], "type": "dpo", "self_distillation": {"enabled": False}}]
    assert not any("datasets[1].type" in line for line in found(datasets=two))


def test_a_secret_is_never_shown(found):
    secret = f"hf_{'b' * 30}"
    assert all(secret not in line for line in found(hub_token=secret, comment=f"# {secret}\n"))


def test_a_fault_of_our_blocks_is_told_once(found):
    lines = found(layer_pruning={"num_layers": 0})
    assert len([line for line in lines if "num_layers" in line]) == 1


def test_faults_come_before_advice(found):
    levels = [line.partition(":")[0] for line in found(revision_of_model=None, output_dir="/x")]
    assert levels == ["fault", "advice"]


def test_without_axolotl_the_check_says_what_it_left_out(found, tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "find_spec", lambda name: None)
    assert found() == []
    assert lines_of(tmp_path / "mine.yml") == [WITHOUT_AXOLOTL]


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "just text"])
def test_a_file_without_keys_is_refused(tmp_path, text):
    (tmp_path / "mine.yml").write_text(text)
    with pytest.raises(ConfigError, match="holds no keys"):
        lines_of(tmp_path / "mine.yml")


def test_a_file_that_is_not_yaml_is_refused(tmp_path):
    (tmp_path / "mine.yml").write_text("a: [1")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        lines_of(tmp_path / "mine.yml")


@given(st.from_regex(r"[A-Za-z0-9_.-]{1,20}/[A-Za-z0-9_.-]{1,20}", fullmatch=True))
def test_a_hub_name_is_no_absolute_path_and_becomes_one_behind_a_slash(name):
    assert not is_absolute(name)
    assert is_absolute(f"/{name}")
    assert is_absolute(f"~/{name}")
    assert is_absolute(f"D:\\{name}")


class TestAgainstAxolotl:
    @pytest.fixture(autouse=True)
    def axolotl(self, monkeypatch):
        """Axolotl, without the plugins that other tests have loaded."""
        base = pytest.importorskip("axolotl.integrations.base")
        monkeypatch.setattr(base.PluginManager.get_instance(), "plugins", {})

    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            ({"learning_rat": 0.1}, "fault: learning_rat: Axolotl does not know this key and would drop it; did you"),
            ({"zzz": 1}, "advice: zzz: Axolotl 0."),
            ({"datasets": dataset(field_mesages="m")}, "fault: datasets[0].field_mesages: Axolotl does not know this"),
            (
                {"datasets": dataset(type={"field_instructoin": "q"})},
                "fault: datasets[0].type.field_instructoin: Axolotl does not know this key",
            ),
            ({"learning_rate": "fast"}, "fault: learning_rate"),
            ({"fsdp_config": {"fsdp_vresion": 2}}, "fault: fsdp_config.fsdp_vresion: Axolotl does not know this key"),
            ({"adapter": "lora", "lora_r": None, "load_in_8bit": True, "adapter_typo": 1}, "advice: adapter_typo"),
            ({"plugins": [*GOOD["plugins"], "no.such.Plugin"]}, "fault: plugins: no.such.Plugin can't be loaded here"),
        ],
    )
    def test_a_key_that_it_drops_or_refuses_is_a_finding(self, found, changes, line):
        assert any(each.startswith(line) for each in found(**changes)), found(**changes)

    def test_a_key_of_fsdp_config_with_the_prefix_of_older_versions_is_known(self, found):
        # As Axolotl's own examples have it; it reads them without the prefix.
        names = ("fsdp_version", "fsdp_offload_params", "fsdp_state_dict_type", "fsdp_activation_checkpointing")

        findings = found(fsdp_config=dict.fromkeys(names) | {"fsdp_zzz": 1})

        assert [each for each in findings if "fsdp_config." in each] == [
            f"advice: fsdp_config.fsdp_zzz: Axolotl {version('axolotl')} does not know this key and drops it"
        ]

    def test_a_trainer_of_another_plugin_is_refused_as_a_run_refuses_it(self, found):
        diffusion = "axolotl.integrations.diffusion.DiffusionPlugin"

        findings = found(plugins=[*GOOD["plugins"], diffusion], dynsdpb={})

        line = rf"fault: dynsdpb: and the plugin {diffusion} \(\w+Trainer\) each bring a trainer; remove one of the two"
        assert any(re.fullmatch(line, each) for each in findings), findings

    def test_a_plugin_that_does_not_tell_its_trainer_is_said_and_the_check_goes_on(self, found, monkeypatch, caplog):
        def fail(cfg, own_plugin):
            raise KeyError("hatchery")

        monkeypatch.setattr("axolotl_sdft.configs.findings.other_trainers", fail)

        assert found(dynsdpb={}) == []
        assert "which trainers other plugins bring can't be told (KeyError: 'hatchery')" in caplog.text

    def test_a_rule_that_lacks_a_package_leaves_the_rest_unchecked_and_says_so(self, found, monkeypatch):
        def validate(cfg):  # as 0.19 does for context_parallel_size
            raise ImportError("ring_flash_attn is not installed")

        monkeypatch.setattr("axolotl.utils.config.validate_config", validate)

        assert found() == [
            "advice: Axolotl: not all its rules were checked, for want of a package: ring_flash_attn is not installed"
        ]

    def test_what_ships_has_no_fault_but_what_a_user_has_to_prepare(self):
        faults = {
            (config.name, finding.line())
            for config in shared_configs()
            for finding in check_file(read_yaml_file(config.path), config.path.parent)
            if finding.level == "fault" and not finding.message.startswith(f"'{MADE_BY_MAKE}'")
        }
        # A script writes LIMA's rows.
        assert [name for name, line in faults] == ["sdft/llama-2-7b-chat-lima"], faults
