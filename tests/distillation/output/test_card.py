import re
import shutil
from pathlib import Path

import pytest
import yaml
from datasets import load_dataset, load_from_disk
from huggingface_hub import DatasetCard

from axolotl_sdft.distillation.output.card import card_text, publish_commands, size_category
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec
from tests.distillation.test_pipeline import alpaca_rows, echo_config


def made(tmp_path, seed_dir, **settings):
    """Return the folder of nine rewritten rows, the eighth of which is rejected."""
    config = echo_config(tmp_path, checks=("no_seven",), **settings)
    return run_distillation(DistillationSpec(alpaca_rows(9), config, seed_dir, {"type": "alpaca"}, "org/seed"))


def summary(**changes):
    generation = {"backend": "openai", "max_new_tokens": 9, "base_urls": ["http://host:1"], "api_key_env": "MY_KEY"}
    settings = {"template": "plain", "checks": ["leak"], "max_attempts": 3, "selection": "first"}
    provenance = {
        "seed_model": "org/seed",
        "seed_model_fingerprint": "0123456789ab",
        "created": "2031-05-06 07:08 UTC",
        "package_versions": {"axolotl-sdft": "9.9"},
        "settings": settings | {"on_reject": "drop", "generation": generation, "output_dir": "/home/ann/out"},
    }
    counts = {"rows": 1200, "rows_dropped": 200, "turns": 1200, "turns_distilled": 1000, "rejections": {"leak": 200}}
    counts |= {"turns_left_alone": 0, "left_alone": {}}
    return counts | {"gap": None, "provenance": provenance | changes}


@pytest.mark.usefixtures("echo_plugin")
def test_the_card_is_one_that_the_hub_client_reads(tmp_path, seed_dir):
    card = DatasetCard.load(made(tmp_path, seed_dir) / "README.md", ignore_metadata_errors=False)

    assert card.data.tags == ["self-distilled", "axolotl-sdft", "synthetic"]
    assert card.data.size_categories == ["n<1K"]
    assert (card.data.license, card.data.language) == (None, None)
    assert "| Trained answers rewritten | 8 of 9 |" in card.text
    assert "| Answers rejected | `no_seven` 1 |" in card.text
    gap = "8.00 nats per token before, 27.56 after; of answers drawn at temperature 1 or above it need not fall"
    assert f"| Distribution gap | {gap} (9 answers under the seed model) |" in card.text


@pytest.mark.usefixtures("echo_plugin")
def test_an_uploaded_folder_is_read_through_the_metadata_of_its_card(tmp_path, seed_dir):
    folder = made(tmp_path, seed_dir)
    uploaded = tmp_path / "uploaded"
    shutil.copytree(folder, uploaded)
    (uploaded / "state.json").unlink()  # on this machine it would make load_dataset ask for load_from_disk

    read = load_dataset(str(uploaded), split="train", cache_dir=str(tmp_path / "cache"))

    assert read.to_list() == load_from_disk(str(folder)).to_list()


@pytest.mark.usefixtures("echo_plugin")
def test_axolotl_reads_the_folder_with_the_report_and_the_card_in_it(tmp_path, seed_dir):
    shared = pytest.importorskip("axolotl.utils.data.shared")
    from axolotl.utils.dict import DictDefault

    folder = made(tmp_path, seed_dir)

    read = shared.load_dataset_with_config(DictDefault(path=str(folder), type="alpaca"), False, streaming=False)

    assert {"report.html", "README.md", "summary.json", "state.json"} <= {path.name for path in folder.iterdir()}
    assert read["output"][:2] == ["2 messages, the last ends in 0", "2 messages, the last ends in 1"]


def test_a_card_names_no_folder_server_or_key_of_this_machine(tmp_path):
    text = card_text(tmp_path / "distilled-0123", summary(seed_model="/home/ann/models/my-seed"))

    assert not re.search(r"/home|http:|MY_KEY|ann|output_dir", text)
    assert str(tmp_path) not in text
    assert "rewritten by `my-seed` in its own words" in text
    assert "took its whole row with it" in text


def test_a_template_of_many_lines_and_fences_stays_inside_its_block(tmp_path):
    told = summary()
    told["provenance"]["settings"]["template"] = "```\n# No heading\n```\n---\n{{ reference }}"

    card = DatasetCard(card_text(tmp_path, told))

    (block,) = re.findall(r"^````yaml\n(.*?)^````$", card.text, flags=re.M | re.S)
    assert yaml.safe_load(block)["template"] == "```\n# No heading\n```\n---\n{{ reference }}"
    assert yaml.safe_load(block)["generation"] == {"backend": "openai", "max_new_tokens": 9}


@pytest.mark.parametrize(
    ("template", "is_told"),
    [("unaided", True), (["unaided"], True), ("reference", False), (["unaided", "reference"], False)],
)
def test_the_card_says_whether_the_seed_model_saw_the_original_answers(tmp_path, template, is_told):
    told = summary()
    told["provenance"]["settings"]["template"] = template

    text = card_text(tmp_path, told)

    assert ("which saw the questions alone" in text) is is_told
    assert ("guided by the original answers" in text) is not is_told


@pytest.mark.parametrize(
    ("rows", "category"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (999_999, "100K<n<1M"), (10**6, "1M<n<10M"), (10**12, "n>1T")],
)
def test_the_size_category_is_the_hubs_name_for_a_number_of_rows(rows, category):
    assert size_category(rows) == category


@pytest.mark.usefixtures("echo_plugin")
def test_the_publishing_commands_upload_the_card_before_the_rows(tmp_path, seed_dir, monkeypatch):
    import datasets
    import huggingface_hub

    calls = []

    class Hub:
        def create_repo(self, name, **options):
            calls.append(("create", name, options["private"]))

        def upload_file(self, *, repo_id, repo_type, path_in_repo, path_or_fileobj):
            calls.append(("upload", repo_id, repo_type, path_in_repo, Path(path_or_fileobj).is_file()))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(
        datasets.Dataset, "push_to_hub", lambda rows, name, split: calls.append(("push", name, split, len(rows)))
    )

    exec(publish_commands(made(tmp_path, seed_dir)), {})

    name = "your-name/your-dataset"
    assert calls == [("create", name, True), ("upload", name, "dataset", "README.md", True), ("push", name, "train", 9)]
