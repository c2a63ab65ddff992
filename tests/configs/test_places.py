"""What a configuration names that others do not have."""

import pytest

from axolotl_sdft.configs.places import place_findings

PINNED = {"base_model": "Qwen/Qwen3-8B", "revision_of_model": "0123456789abcdef0123456789abcdef01234567"}


@pytest.fixture
def found(tmp_path, monkeypatch):
    """The findings about a configuration in an empty folder with the file ``here.jsonl``, as lines."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jsonl").write_text("{}\n")

    def find(text="", **changes):
        return [finding.line() for finding in place_findings(PINNED | changes, text, tmp_path)]

    return find


def files(data_files, **entry):
    return {"datasets": [{"path": "json", "data_files": data_files, "type": "alpaca", **entry}]}


def entry(**settings):
    return {"datasets": [{"path": "a/b", "revision": "0" * 40, **settings}]}


def calibration(setting):
    return {"layer_pruning": {"calibration": setting}}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (files("/data/a/train.jsonl"), "datasets[0].data_files"),
        (files("gone.jsonl"), "datasets[0].data_files"),
        (files(["here.jsonl", "D:\\rows\\b.jsonl"]), "datasets[0].data_files[1]"),
        (files({"train": ["../up.jsonl"]}), "datasets[0].data_files.train[0]"),
        (files(None), "datasets[0].data_files"),
        (files(None, data_dir="/data/a"), "datasets[0].data_dir"),
        ({"test_datasets": files("/data/a/t.jsonl")["datasets"]}, "test_datasets[0].data_files"),
        ({"datasets": [{"path": "a/b", "revision": "0" * 40, "data_files": "/data/x.csv"}]}, "datasets[0].data_files"),
        ({"chat_template_jinja": "/data/chat.jinja"}, "chat_template_jinja"),
        ({"chat_template_jinja": "gone.jinja"}, "chat_template_jinja"),
        ({"merge": {"models": ["output_dir", "/data/plain"]}}, "merge.models[1]"),
        ({"merge": {"models": ["../a", "base_model"]}}, "merge.models[0]"),
        ({"recovery_report": {"models": {"plain": "~/plain"}}}, "recovery_report.models.plain"),
        (calibration({"parts": [{"share": 1}, {"path": "gone.jsonl"}]}), "layer_pruning.calibration.parts[1].path"),
        (calibration([{"path": "../a.jsonl"}]), "layer_pruning.calibration[0].path"),
        (entry(chat_template_jinja="gone.jinja"), "datasets[0].chat_template_jinja"),
        ({"wandb_entity": "acme"}, "wandb_entity"),
        ({"hub_model_id": "acme/model"}, "hub_model_id"),
        ({"some": [{"new_key": "/data/of/mine"}]}, "some[0].new_key"),
        ({"new_key": r"\\server\share\rows"}, "new_key"),
    ],
)
def test_a_place_on_one_machine_is_a_fault_of_its_key(found, changes, key):
    faults = [line for line in found(**changes) if line.startswith("fault: ")]
    assert [line.split(": ")[1] for line in faults] == [key]


@pytest.mark.parametrize(
    "changes",
    [
        {"merge": {"models": ["base_model", "output_dir"]}},
        {"recovery_report": {"models": {"other": "someone/model"}}},
        {"chat_template_jinja": "{{ messages }}"},
        {"datasets": [{"path": "a/b", "revision": "0" * 40, "chat_template_jinja": "{{ messages }}"}]},
        {"wandb_entity": None, "hub_model_id": ""},
        {"datasets": [{"path": "a/b", "revision": "0" * 40, "data_files": "train/one.jsonl"}]},
        {"datasets": [{"path": "json", "data_files": "https://example.com/rows.jsonl"}]},
        {"datasets": [{"path": "a/b", "revision": "0" * 40, "type": {"system_prompt": "/no_think"}}]},
        {"lm": {"endpoint": "/v1/chat/completions"}},
        {"note": "one half/the other"},
    ],
)
def test_what_others_have_too_is_no_finding(found, changes):
    assert found(**changes) == []


@pytest.mark.parametrize("data_files", ["here.jsonl", "*.jsonl"])
def test_files_beside_the_configuration_can_be_sent_along_and_their_loader_has_no_revision(found, data_files):
    (line,) = found(**files(data_files))
    assert line.startswith(f"advice: datasets[0].data_files: {data_files!r} is a local file; send it along")


def test_a_model_that_another_run_makes_below_the_folder_is_advice(found):
    (line,) = found(merge={"models": ["./outputs/other", "output_dir"]})
    assert line.startswith("advice: merge.models[0]: './outputs/other' is what another run makes")


def test_a_bucket_is_advice_since_it_may_be_open_to_its_owner_alone(found):
    (line,) = found(datasets=[{"path": "s3://acme-private/rows/train.jsonl"}])
    assert line.startswith(
        "advice: datasets[0].path: 's3://acme-private/rows/train.jsonl' is a bucket that others may not read"
    )


def test_servers_of_the_block_and_of_a_dataset_are_advice_and_an_address_that_is_none_is_left_to_the_block(found):
    block = {"generation": {"base_urls": ["http://10.0.0.3:8000/v1", "http://[::1:8000/v1", "http://localhost/v1"]}}
    of_entry = {"generation": {"base_urls": "http://gpu1:8000/v1"}}
    in_entry, in_block = found(self_distillation=block, **entry(self_distillation=of_entry))
    assert in_block.startswith("advice: self_distillation.generation.base_urls: 10.0.0.3 is a server of yours")
    assert in_entry.startswith("advice: datasets[0].self_distillation.generation.base_urls: gpu1 is a server of yours")


def test_a_home_folder_in_a_comment_is_a_fault_and_another_folder_is_advice(found):
    (home,) = found(text="a: 1  # was /home/ann/rows.jsonl\n# and /mnt/rows\n")
    assert home.startswith("fault: comments: one names '/home/ann/rows.jsonl'")
    (other,) = found(text="# rows lay in /mnt/rows/old\n")
    assert other.startswith("advice: comments: one names '/mnt/rows/old'")


def test_an_address_or_a_fraction_in_a_comment_is_no_path(found):
    assert found(text="# see https://example.com/a/b; 3/4 of the rows and/or more\n") == []
