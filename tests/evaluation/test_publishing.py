"""What would be published of folders made by hand, and how it reaches a Hub: a stand-in, and a real local server."""

import base64
import html
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi, metadata_load

from axolotl_sdft.core.errors import ArtifactError, ConfigError
from axolotl_sdft.evaluation.figures import RecoveryReport, model_fingerprint
from axolotl_sdft.evaluation.pipeline import write_report
from axolotl_sdft.evaluation.publishing import plan_upload, publish
from axolotl_sdft.evaluation.spec import ReportedModel
from axolotl_sdft.evaluation.summary import Artifacts
from tests.evaluation.reports import model

PROVENANCE = {
    **{"seed_model": "org/seed-8B", "drop_layers": [3, 4], "num_layers_before": 8, "num_layers_after": 6},
    **{"parameters_before": 2_000_000, "parameters_after": 1_500_000, "metric": "angular_distance", "patch": None},
    "package_versions": {"axolotl-sdft": "0"},
}
SUMMARY = {
    **{"rows": 3, "rows_dropped": 1, "rows_distilled": 2, "turns": 3, "turns_distilled": 2, "turns_left_alone": 0},
    **{"rejections": {}, "left_alone": {}, "gap": None},
    "provenance": {
        **{"seed_model": "org/seed-8B", "seed_model_fingerprint": "0123", "created": "2026-01-01"},
        **{"package_versions": {}, "settings": {"on_reject": "drop", "generation": {"max_new_tokens": 8}}},
    },
}


WEIGHTS = "\x02\0\0\0\0\0\0\0{}"
"""A safetensors file of no tensors."""


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def made(tmp_path):
    """A seed model, a pruned checkpoint, an adapter that was trained on it, a dataset and a report."""
    write(tmp_path / "seed" / "README.md", "---\nlicense: llama3.1\nlanguage:\n- en\n---\n# Seed\n")
    pruned, trained = tmp_path / "pruned", tmp_path / "out"
    write(pruned / "config.json", {"num_hidden_layers": 6, "_name_or_path": str(tmp_path / "seed")})
    for name in ("tokenizer.json", "LICENSE", "report.html", "training_args.bin"):
        write(pruned / name, "text")
    write(pruned / "model.safetensors", WEIGHTS)
    write(pruned / "provenance" / "layer_pruning.json", PROVENANCE)
    write(trained / "adapter_config.json", {"base_model_name_or_path": str(pruned), "r": 8})
    write(trained / "adapter_model.safetensors", WEIGHTS)
    rows = Dataset.from_list(
        [{"instruction": "Add 1 and 2.", "output": "3"}, {"instruction": "Name it.", "output": "A"}]
    )
    rows.save_to_disk(str(tmp_path / "rows"))
    write(tmp_path / "rows" / "summary.json", SUMMARY)
    measured = {folder.name: model_fingerprint(ReportedModel(folder.name, folder)) for folder in (pruned, trained)}
    report = {
        "models": [{"name": "seed", "folder": str(tmp_path / "seed")}],
        "folder": str(trained / "recovery_report"),
        "provenance": {"model_fingerprints": measured},
    }
    write(trained / "recovery_report" / "report.json", report)
    write(trained / "recovery_report" / "report.html", f"<td>{tmp_path / 'seed'}</td>")
    write(trained / "recovery_report" / "model_card.md", "<!-- Paste this. -->\n## What was kept\n\n98 %\n")
    return Artifacts(tmp_path / "seed", pruned, [tmp_path / "rows"], trained, "org/seed-8B")


def planned(made, kind, **options):
    return plan_upload(made, kind, made.output_dir / "recovery_report", **options)


def text_of(upload, name):
    content = upload.files[name]
    return content.decode() if isinstance(content, bytes) else content.read_text()


def test_a_checkpoint_is_its_own_files_with_licence_and_card_and_nothing_beside_them(made):
    upload = planned(made, "checkpoint")
    assert set(upload.files) == {
        *("config.json", "model.safetensors", "tokenizer.json", "LICENSE", "README.md"),
        "provenance/layer_pruning.json",
    }
    assert json.loads(text_of(upload, "config.json")) == {"num_hidden_layers": 6, "_name_or_path": ""}
    assert upload.files["model.safetensors"] == made.pruned_dir / "model.safetensors"


def test_the_card_of_a_checkpoint_has_base_model_licence_layers_and_figures(made, tmp_path):
    card = planned(made, "checkpoint").card
    (tmp_path / "card.md").write_text(card)
    said = metadata_load(tmp_path / "card.md")
    assert (said["base_model"], said["license"], said["language"]) == ("org/seed-8B", "llama3.1", ["en"])
    assert "# seed-8B without 2 of its 8 layers\n" in card
    assert "| Layers removed, counted from 0 | 3, 4 |" in card
    assert "## What was kept\n\n98 %" in card
    assert "Paste this" not in card
    assert "## Trained on" not in card


@pytest.mark.parametrize(
    ("recorded", "published"),
    [
        ({}, {}),
        ({"seed_dir": "/home/me/.cache/hub/seed"}, {}),
        ({"seed_model": "/data/seed-8B"}, {"seed_model": "seed-8B"}),
        ({"settings": {"num_layers": 2}}, {"settings": {"num_layers": 2}}),
        ({"settings": {"num_layers": 2, "calibration": {"path": "/data/texts.jsonl"}}}, {}),
    ],
)
def test_the_record_of_the_pruning_goes_up_without_what_it_says_of_this_machine(made, recorded, published):
    write(made.pruned_dir / "provenance" / "layer_pruning.json", PROVENANCE | recorded)
    record = text_of(planned(made, "checkpoint"), "provenance/layer_pruning.json")
    assert json.loads(record) == PROVENANCE | published


def test_a_record_of_the_pruning_that_names_a_folder_elsewhere_is_refused(made):
    write(made.pruned_dir / "provenance" / "layer_pruning.json", PROVENANCE | {"metric": "/home/me/metric.py:mine"})
    with pytest.raises(ArtifactError, match=r"layer_pruning\.json: metric is '/home/me/metric\.py:mine', a folder of"):
        planned(made, "checkpoint")


def test_an_adapter_on_the_pruned_checkpoint_needs_that_on_the_hub(made):
    with pytest.raises(ConfigError, match=r"Publish that first \(--what checkpoint\), and name it by --base-repo-id"):
        planned(made, "model")
    upload = planned(made, "model", base_repo="me/pruned")
    assert json.loads(text_of(upload, "adapter_config.json"))["base_model_name_or_path"] == "me/pruned"
    assert "base_model: me/pruned" in upload.card
    assert "library_name: peft" in upload.card
    assert "- a self-distilled dataset: 2 of 3 trained answers rewritten" in upload.card


def test_what_was_merged_is_published_in_the_place_of_the_adapter(made):
    write(made.output_dir / "merged" / "config.json", {"num_hidden_layers": 6})
    write(made.output_dir / "merged" / "model.safetensors", WEIGHTS)
    upload = planned(made, "model")
    assert upload.source == made.output_dir / "merged"
    assert "# seed-8B without 2 of its 8 layers, trained\n" in upload.card


@pytest.mark.parametrize(("trained_at", "is_told"), [(50, False), (150, True)])
def test_a_merge_that_is_older_than_what_was_trained_since_is_told(made, caplog, trained_at, is_told):
    write(made.output_dir / "merged" / "config.json", {"num_hidden_layers": 6})
    write(made.output_dir / "merged" / "model.safetensors", WEIGHTS)
    os.utime(made.output_dir / "merged" / "model.safetensors", (100, 100))
    os.utime(made.output_dir / "adapter_model.safetensors", (trained_at, trained_at))

    assert planned(made, "model").source == made.output_dir / "merged"

    assert ("may be a merge of an earlier training; merge again" in caplog.text) == is_told


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"api_key": "sk-0123456789abcdef0123"}, "api_key holds what looks like a key"),
        ({"inner": {"cache": "/data/mine"}}, "inner.cache is '/data/mine', a folder of this machine"),
    ],
)
def test_settings_that_give_something_away_are_refused(made, settings, fault):
    write(made.pruned_dir / "config.json", settings)
    with pytest.raises(ArtifactError, match=fault):
        planned(made, "checkpoint")


def test_a_dataset_is_parquet_with_a_card_that_names_the_seed_model_and_both_licences(made, tmp_path):
    upload = planned(made, "dataset", licence="mit")
    (tmp_path / "rows.parquet").write_bytes(upload.files["data/train-00000-of-00001.parquet"])
    rows = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train", cache_dir=str(tmp_path))
    assert rows["output"] == ["3", "A"]
    assert "[`org/seed-8B`](https://huggingface.co/org/seed-8B)" in upload.card
    assert "Licence of the seed model, whose terms may hold for what it wrote: llama3.1." in upload.card
    assert "Licence of these rows: mit." in upload.card
    (tmp_path / "card.md").write_text(upload.card)
    said = metadata_load(tmp_path / "card.md")
    assert said["license"] == "mit"
    assert said["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-00000-of-00001.parquet"}]
    assert "Before you publish" not in upload.card


def test_a_row_that_holds_a_key_is_refused(made):
    folder = made.distilled_dirs[0].parent / "leaking"
    Dataset.from_list([{"output": "fine"}, {"output": "use sk-0123456789abcdef0123"}]).save_to_disk(str(folder))
    write(folder / "summary.json", SUMMARY)
    leaking = Artifacts(None, None, [folder], made.output_dir)
    with pytest.raises(ArtifactError, match="row 1, output holds what looks like a key or a password"):
        planned(leaking, "dataset")


def test_rows_of_which_a_file_is_gone_are_not_published(made):
    for file in made.distilled_dirs[0].glob("*.arrow"):
        file.unlink()
    with pytest.raises(ArtifactError, match=r"rows is damaged .*run axolotl self-distill CONFIG: the answers are kept"):
        planned(made, "dataset")


def test_one_of_several_datasets_is_chosen_by_its_number(made):
    two = Artifacts(None, None, [*made.distilled_dirs, *made.distilled_dirs], made.output_dir)
    with pytest.raises(ConfigError, match=r"there are 2 self-distilled datasets \(0: rows, 1: rows\); choose one"):
        planned(two, "dataset")
    assert planned(two, "dataset", index=1).source == made.distilled_dirs[0]
    with pytest.raises(ConfigError, match="--index is 2, but there are 2"):
        planned(two, "dataset", index=2)


def test_a_report_names_models_and_no_folders(made, tmp_path):
    upload = planned(made, "report")
    assert set(upload.files) == {"README.md", "report.html", "report.json"}
    assert text_of(upload, "report.html") == "<td>seed</td>"
    assert str(tmp_path) not in text_of(upload, "report.json")


def test_a_report_names_no_path_of_this_machine_whatever_file_and_part_of_it_says_it(tmp_path):
    root = tmp_path / "o'neil & co" / "a folder with so long a name that the page breaks it over several lines"
    notes = (f"trained: {root / 'out'} holds no model yet", "plain: /srv/models/plain is not there, ~/other neither.")
    settings = {
        "models": {"plain": "/srv/models/plain"},
        "held_out": {"path": str(root / "client" / "test.jsonl")},
        "general_prompts": {"path": "../secret/prompts.txt"},
        "prompts": ["What is /etc/passwd?"],
    }
    provenance = {"data": f"rows.jsonl, {tmp_path}/more.jsonl", "general_prompts": "../secret/prompts.txt"}
    models = (model("seed", 4, str(root / "seed")), model("trained", 4, "/srv/models/plain-2"))
    report = RecoveryReport(models=models, settings=settings, notes=notes, provenance=provenance)
    write_report(report, root / "out" / "recovery_report")

    upload = plan_upload(Artifacts(None, None, [], root / "out"), "report", root / "out" / "recovery_report")

    texts = [html.unescape(text_of(upload, name)) for name in upload.files]
    for secret in (str(tmp_path), "neil", "so long a name", "/srv", "../secret", "~/"):
        assert not any(secret in text for text in texts), secret
    said = json.loads(text_of(upload, "report.json"))
    assert said["settings"] == {
        "models": {"plain": "plain"},
        "held_out": {"path": "test.jsonl"},
        "general_prompts": {"path": "prompts.txt"},
        "prompts": ["What is /etc/passwd?"],
    }
    assert said["notes"][0] == "trained: out holds no model yet"


def test_a_report_that_holds_a_key_or_the_home_folder_is_refused(made, monkeypatch):
    page = made.output_dir / "recovery_report" / "report.html"
    write(page, "<p>sk-0123456789abcdef0123</p>")
    with pytest.raises(ArtifactError, match=r"report\.html holds what looks like a key; take it out"):
        planned(made, "report")
    monkeypatch.setenv("HOME", "/home/ann")
    write(page, "<p>see /home/ann/rows.jsonl</p>")
    with pytest.raises(ArtifactError, match=r"report\.html names /home/ann, a folder of this machine"):
        planned(made, "report")


@pytest.mark.parametrize(
    ("kind", "way_out"),
    [
        ("checkpoint", "run: axolotl prune-layers CONFIG"),
        ("dataset", "run: axolotl self-distill CONFIG"),
        ("report", "run: axolotl recovery-report CONFIG"),
        ("model", "run: axolotl train CONFIG"),
    ],
)
def test_what_was_not_made_is_refused_with_the_way_to_make_it(tmp_path, kind, way_out):
    with pytest.raises(ArtifactError, match=way_out):
        plan_upload(Artifacts(None, None, [], tmp_path), kind, tmp_path / "recovery_report")


def test_what_a_training_that_stopped_has_left_is_not_published(made):
    (made.output_dir / "adapter_model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"holds no trained model yet; run: axolotl train CONFIG"):
        planned(made, "model", base_repo="org/pruned")


def test_a_merge_that_was_stopped_between_two_of_its_files_is_not_published(made):
    merged = made.output_dir / "merged"
    write(merged / "config.json", {"num_hidden_layers": 6})
    write(merged / "model-00001-of-00002.safetensors", WEIGHTS)
    with pytest.raises(ArtifactError, match=r"merged is not whole: .* has neither .* again: axolotl merge-lora CONFIG"):
        planned(made, "model")


def test_of_an_adapter_and_a_whole_model_in_one_folder_neither_is_published(made):
    write(made.output_dir / "model-00001-of-00002.safetensors", WEIGHTS)
    with pytest.raises(ArtifactError, match=r"an adapter beside the weights of a whole model: .* Delete what is not"):
        planned(made, "model", base_repo="org/pruned")


@pytest.mark.parametrize(("kind", "command"), [("checkpoint", "prune-layers"), ("model", "train")])
def test_weights_that_end_too_early_are_not_published(made, kind, command):
    for path in (made.pruned_dir / "model.safetensors", made.output_dir / "adapter_model.safetensors"):
        write(path, WEIGHTS[:-1])
    with pytest.raises(ArtifactError, match=rf"is not whole: .*safetensors is truncated: .*: axolotl {command} CONFIG"):
        planned(made, kind, base_repo="org/pruned")


def merge(made):
    write(made.output_dir / "merged" / "config.json", {"num_hidden_layers": 6})
    write(made.output_dir / "merged" / "model.safetensors", WEIGHTS)


@pytest.mark.parametrize("kind", ["adapter", "merged adapter"])
def test_a_card_has_the_figures_of_a_report_on_this_very_model_alone(made, kind, caplog):
    if kind == "merged adapter":
        merge(made)
    assert "## What was kept\n\n98 %" in planned(made, "model", base_repo="me/pruned").card
    assert planned(made, "report")
    assert not caplog.records
    write(made.output_dir / "adapter_config.json", {"base_model_name_or_path": str(made.pruned_dir), "r": 16})
    assert "98 %" not in planned(made, "model", base_repo="me/pruned").card
    folder = made.output_dir / "merged" if kind == "merged adapter" else made.output_dir
    assert f"is not of the model in {folder} as it is by now; the figures are left out of the card" in caplog.text
    assert planned(made, "report")
    assert "as it is by now. To publish its figures, run first: axolotl recovery-report CONFIG" in caplog.text


def test_the_figures_of_what_was_trained_are_not_those_of_its_merge_with_another_model(made, caplog):
    merge(made)
    (made.output_dir / "merged").rename(made.output_dir / "sdft_merged")
    assert "98 %" not in planned(made, "model").card
    merged = made.output_dir / "sdft_merged"
    assert (
        f"the figures are left out of the card. To have them there, set recovery_report.models: {{merged: {merged}}}"
        in (caplog.text)
    )


def test_the_lines_list_files_with_sizes_and_the_card(made):
    lines = list(planned(made, "checkpoint").lines())
    assert lines[0] == f"checkpoint: {made.pruned_dir}"
    assert "         0.000 MB  model.safetensors" in lines
    assert lines[lines.index("README.md:") + 1] == "  ---"


class StandInHub:
    def __init__(self, fault=None, is_private=True):
        self.fault, self.is_private, self.asked = fault, is_private, []

    def create_repo(self, repo_id, **settings):
        self.asked.append((repo_id, settings))
        if self.fault is not None:
            raise self.fault

    def repo_info(self, repo_id, *, repo_type):
        assert (repo_id, repo_type) == ("me/rows", "dataset")
        return SimpleNamespace(private=self.is_private)

    def create_commit(self, repo_id, operations, **settings):
        self.asked.append((repo_id, settings, sorted(operation.path_in_repo for operation in operations)))
        return f"https://hub.test/{repo_id}"


def test_all_files_go_up_in_one_commit_to_a_repository_of_their_kind(made):
    hub = StandInHub()
    assert publish(planned(made, "dataset"), "me/rows", True, hub) == "https://hub.test/me/rows"
    created, committed = hub.asked
    assert created == ("me/rows", {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert committed[2] == ["README.md", "data/train-00000-of-00001.parquet"]


@pytest.mark.parametrize("fault", [OSError("no token"), RuntimeError("Error while uploading 'rows' to the Hub.")])
def test_a_hub_that_refuses_is_one_clear_error(made, fault):
    with pytest.raises(ArtifactError, match=rf"me/rows could not be written \(\w+: {fault}\); .*log in with: hf auth"):
        publish(planned(made, "dataset"), "me/rows", False, StandInHub(fault))


def test_a_hub_that_is_not_reached_is_one_clear_error(made, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    nobody = HfApi(endpoint="http://127.0.0.1:9", token="a-token-of-the-test")
    with pytest.raises(ArtifactError, match=r"me/rows could not be written \(.*refused\); check the connection"):
        publish(planned(made, "dataset"), "me/rows", False, nobody)


def test_nothing_private_goes_to_a_repository_that_is_public_already(made):
    hub = StandInHub(is_private=False)
    with pytest.raises(ConfigError, match=r"but me/rows is there already, and public; nothing was uploaded"):
        publish(planned(made, "dataset"), "me/rows", True, hub)
    assert len(hub.asked) == 1
    publish(planned(made, "dataset"), "me/rows", False, hub)
    assert len(hub.asked) == 3


def test_a_name_that_no_repository_has_is_refused_before_the_hub_is_asked(made):
    hub = StandInHub()
    with pytest.raises(ConfigError, match="--repo-id is 'rows'; write it as your-name/name-of-the-dataset"):
        publish(planned(made, "dataset"), "rows", False, hub)
    assert hub.asked == []


@pytest.fixture
def server():
    """A Hub that takes small files, and remembers what was committed."""
    committed = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.path == "/api/repos/create":
                answer = {"url": f"http://{self.headers['host']}/me/report", "id": "me/report", "name": "me/report"}
            elif self.path == "/api/validate-yaml":  # of the card
                answer = {"errors": [], "warnings": []}
            elif "/preupload/" in self.path:
                names = [each["path"] for each in json.loads(body)["files"]]
                answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            else:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        committed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                answer = {
                    "commitUrl": f"http://{self.headers['host']}/me/report/commit/1",
                    "commitOid": "1",
                    "hookOutput": "",
                }
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_args):
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", committed
        running.shutdown()


def test_huggingface_hub_s_own_client_commits_the_files_to_a_real_server(made, server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    address, committed = server
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)  # older clients ask it what an address means
    upload = planned(made, "report")
    publish(upload, "me/report", False, HfApi(endpoint=address, token="a-token-of-the-test"))
    assert committed == {name: text_of(upload, name).encode() for name in upload.files}
