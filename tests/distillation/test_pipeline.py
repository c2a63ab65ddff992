import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk

from axolotl_sdft import SelfDistillationConfig, distill_dataset
from axolotl_sdft.core.errors import ArtifactError, DatasetError, UnknownNameError
from axolotl_sdft.distillation import pipeline
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec


def alpaca_rows(count):
    return Dataset.from_list(
        [
            {"id": index, "instruction": f"Question {index}", "input": "", "output": f"Answer {index}"}
            for index in range(count)
        ]
    )


def echo_config(tmp_path, **settings):
    settings = {"template": "plain", "checks": (), "max_attempts": 1, "generation": {"backend": "echo"}} | settings
    return SelfDistillationConfig(output_dir=str(tmp_path / "out"), **settings)


@pytest.mark.usefixtures("echo_plugin")
def test_every_row_keeps_its_place_and_its_other_columns(tmp_path, seed_dir):
    rows = alpaca_rows(5)

    distilled = distill_dataset(rows, echo_config(tmp_path), seed_model=seed_dir)

    assert distilled["id"] == [0, 1, 2, 3, 4]
    assert distilled["instruction"] == rows["instruction"]
    assert distilled["output"] == [f"2 messages, the last ends in {index}" for index in range(5)]
    assert distilled["sdft_source"] == ["distilled"] * 5
    assert distilled["sdft_reasons"] == [[""]] * 5


@pytest.mark.usefixtures("echo_plugin")
def test_a_rejected_answer_leaves_the_original_and_says_why(tmp_path, seed_dir):
    distilled = distill_dataset(alpaca_rows(9), echo_config(tmp_path, checks=("no_seven",)), seed_model=seed_dir)

    assert distilled[7] == {
        "id": 7,
        "instruction": "Question 7",
        "input": "",
        "output": "Answer 7",
        "sdft_source": "original",
        "sdft_reasons": ["no_seven: holds 7"],
    }
    assert [row["sdft_source"] for row in distilled].count("distilled") == 8


@pytest.mark.usefixtures("echo_plugin")
def test_on_reject_drop_leaves_out_rejected_rows_alone(tmp_path, seed_dir):
    config = echo_config(tmp_path, checks=("no_seven",), on_reject="drop")

    distilled = distill_dataset(alpaca_rows(9), config, seed_model=seed_dir)

    assert distilled["id"] == [0, 1, 2, 3, 4, 5, 6, 8]


@pytest.mark.usefixtures("echo_plugin")
def test_dropping_every_row_is_an_error_that_counts_the_reasons(tmp_path, seed_dir):
    config = echo_config(tmp_path, checks=("no_seven",), on_reject="drop")
    rows = Dataset.from_list([{"instruction": "What?", "input": "", "output": "It is 7"}])

    with pytest.raises(DatasetError, match=r"all 1 rows were rejected \(no_seven 1\).*set on_reject: original"):
        distill_dataset(rows, config, seed_model=seed_dir)


@pytest.mark.usefixtures("echo_plugin")
def test_a_later_turn_is_asked_after_the_earlier_ones_as_they_will_be_trained(tmp_path, seed_dir):
    conversation = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "third"},
        {"role": "assistant", "content": "three"},
    ]
    rows = Dataset.from_list([{"messages": conversation}, {"messages": conversation[:2]}])
    config = echo_config(tmp_path, checks=("no_seven",))

    distilled = distill_dataset(rows, config, seed_model=seed_dir, dataset_config={"type": "chat_template"})

    # The second turn is rejected, so its original stays; the third is asked with five messages all the same.
    assert [message["content"] for message in distilled[0]["messages"]] == [
        "first",
        "1 messages, the last ends in one",
        "second",
        "7",
        "third",
        "5 messages, the last ends in three",
    ]
    assert distilled[0]["sdft_reasons"] == ["", "no_seven: holds 7", ""]
    assert distilled[1]["messages"][1]["content"] == "1 messages, the last ends in one"


@pytest.mark.usefixtures("echo_plugin")
def test_the_summary_counts_rows_turns_reasons_and_the_gap(tmp_path, seed_dir):
    rows, config = alpaca_rows(9), echo_config(tmp_path, checks=("no_seven",))
    folder = run_distillation(DistillationSpec(rows, config, seed_dir, {"type": "alpaca"}, "the-seed"))

    summary = json.loads((folder / "summary.json").read_text())

    counts = {key: summary[key] for key in ("rows", "rows_distilled", "rows_original", "rows_dropped", "turns")}
    assert counts == {"rows": 9, "rows_distilled": 8, "rows_original": 1, "rows_dropped": 0, "turns": 9}
    assert summary["rejections"] == {"no_seven": 1}
    # The echo backend takes the length of a text for its likelihood: "Answer 0" has 8 characters, an echo 30.
    gap = summary["gap"]
    assert (gap["answers"], gap["nats_per_token_before"]) == (9, 8.0)
    assert gap["nats_per_token_after"] == round((8 * 30 + 8) / 9, 4)
    assert summary["provenance"]["seed_model"] == "the-seed"


@pytest.mark.usefixtures("echo_plugin")
def test_other_checks_on_the_same_rows_generate_nothing_again(tmp_path, seed_dir, monkeypatch):
    log = tmp_path / "generated.txt"
    monkeypatch.setenv("ECHO_LOG", str(log))
    distill_dataset(alpaca_rows(9), echo_config(tmp_path), seed_model=seed_dir)
    generated = log.read_text()

    second = distill_dataset(alpaca_rows(9), echo_config(tmp_path, checks=("no_seven",)), seed_model=seed_dir)

    assert log.read_text() == generated
    assert second["sdft_source"].count("original") == 1


@pytest.mark.usefixtures("echo_plugin")
def test_a_dataset_that_another_run_finishes_just_before_this_one_begins_is_used(tmp_path, seed_dir, monkeypatch):
    rows, config = alpaca_rows(5), echo_config(tmp_path)
    begin, others = pipeline.together, iter([True])

    def after_another_run(*args):
        if next(others, False):
            distill_dataset(rows, config, seed_model=seed_dir)
        return begin(*args)

    monkeypatch.setattr(pipeline, "together", after_another_run)

    distilled = distill_dataset(rows, config, seed_model=seed_dir)

    assert distilled["output"] == [f"2 messages, the last ends in {index}" for index in range(5)]
    assert len(list((tmp_path / "out").glob("distilled-*"))) == 1


@pytest.mark.usefixtures("echo_plugin")
@pytest.mark.parametrize("change", ["template", "rows", "seed", "generation"])
def test_any_change_of_what_shapes_the_answers_makes_a_dataset_of_its_own(tmp_path, seed_dir, change):
    first = DistillationSpec(alpaca_rows(3), echo_config(tmp_path), seed_dir, {"type": "alpaca"}, "seed").dataset_dir
    rows, config = alpaca_rows(3), echo_config(tmp_path)
    if change == "template":
        config = echo_config(tmp_path, template="{{ instruction }} {{ reference }}")
    elif change == "generation":
        config = echo_config(tmp_path, generation={"backend": "echo", "max_new_tokens": 9})
    elif change == "rows":
        rows = alpaca_rows(4)
    else:
        (seed_dir / "config.json").write_text('{"a": 1}')

    assert DistillationSpec(rows, config, seed_dir, {"type": "alpaca"}, "seed").dataset_dir != first


@pytest.mark.usefixtures("echo_plugin")
@pytest.mark.parametrize(
    ("settings", "shares_answers"),
    [
        ({"on_reject": "drop"}, True),
        ({"max_attempts": 3}, True),
        ({"checks": ("no_seven",)}, True),
        ({"generation": {"backend": "echo", "temperature": 0.7}, "max_attempts": 2}, False),
    ],
)
def test_settings_that_choose_among_answers_make_another_dataset_of_the_same_first_ones(
    tmp_path, seed_dir, settings, shares_answers
):
    usual = DistillationSpec(alpaca_rows(3), echo_config(tmp_path), seed_dir, {"type": "alpaca"}, "seed")
    other = DistillationSpec(alpaca_rows(3), echo_config(tmp_path, **settings), seed_dir, {"type": "alpaca"}, "seed")

    assert other.dataset_dir != usual.dataset_dir
    assert (other.answers_dir == usual.answers_dir) is shares_answers


@pytest.mark.usefixtures("echo_plugin")
def test_settings_that_change_the_speed_alone_find_the_same_dataset(tmp_path, seed_dir):
    fast = {"backend": "echo", "max_batch_size": 3}

    specs = [
        DistillationSpec(
            alpaca_rows(3), echo_config(tmp_path, generation=generation), seed_dir, {"type": "alpaca"}, "s"
        )
        for generation in ({"backend": "echo"}, fast)
    ]

    assert specs[0].dataset_dir == specs[1].dataset_dir


@pytest.mark.usefixtures("echo_plugin")
def test_a_tilde_in_output_dir_is_the_home_folder(tmp_path, seed_dir, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = echo_config(tmp_path).model_copy(update={"output_dir": "~/rewritten"})

    distilled = distill_dataset(alpaca_rows(1), config, seed_model=seed_dir)

    assert Path(distilled.cache_files[0]["filename"]).is_relative_to(tmp_path / "home" / "rewritten")
    assert not (tmp_path / "~").exists()


@pytest.mark.usefixtures("echo_plugin")
def test_zero_rows_and_missing_columns_are_refused_before_anything_is_written(tmp_path, seed_dir):
    empty = Dataset.from_dict({"instruction": [], "output": []})
    with pytest.raises(DatasetError, match=r"datasets\[0\] has no rows"):
        DistillationSpec(empty, echo_config(tmp_path), seed_dir, {"type": "alpaca"}, "seed", "datasets[0]")
    wrong = Dataset.from_dict({"question": ["a"], "output": ["b"]})
    with pytest.raises(
        DatasetError, match=r"no column 'instruction', which its type 'alpaca' needs; its columns: quest"
    ):
        DistillationSpec(wrong, echo_config(tmp_path), seed_dir, {"type": "alpaca"}, "seed")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("echo_plugin")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "refrence"}, r"self_distillation.template is 'refrence'.*known: .*reference"),
        ({"checks": ("leek",)}, r"self_distillation.checks.*'leek'.*known: .*leak"),
        ({"generation": {"backend": "vlm"}}, r"self_distillation.generation.backend is 'vlm'.*known: .*transformers"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path, seed_dir, settings, message):
    with pytest.raises(UnknownNameError, match=message):
        DistillationSpec(alpaca_rows(1), echo_config(tmp_path, **settings), seed_dir, {"type": "alpaca"}, "seed")


def rows_file(folder):
    return folder / "data-00000-of-00001.arrow"


def first_rows(folder):
    other = folder / "other"
    load_from_disk(str(folder)).select(range(2)).save_to_disk(other)
    rows_file(other).rename(rows_file(folder))


DAMAGES = {
    "rows gone": (lambda folder: rows_file(folder).unlink(), "FileNotFoundError"),
    "rows empty": (lambda folder: rows_file(folder).write_bytes(b""), "ArrowInvalid"),
    "rows cut off": (
        lambda folder: rows_file(folder).write_bytes(rows_file(folder).read_bytes()[:900]),
        "Error|Invalid",
    ),
    "fewer rows": (first_rows, "it holds 2 of the 3 rows"),
    "state gone": (lambda folder: (folder / "state.json").unlink(), "FileNotFoundError"),
    "summary cut off": (lambda folder: (folder / "summary.json").write_text("{"), "summary.json can't be read"),
}


@pytest.mark.usefixtures("echo_plugin")
@pytest.mark.parametrize(("damage", "told"), DAMAGES.values(), ids=DAMAGES)
def test_a_distilled_dataset_of_which_a_file_is_damaged_or_gone_is_refused_with_the_way_to_have_it_again(
    tmp_path, seed_dir, damage, told
):
    spec = DistillationSpec(alpaca_rows(3), echo_config(tmp_path), seed_dir, {"type": "alpaca"}, "seed")
    folder = run_distillation(spec)
    before = rows_file(folder).read_bytes()
    damage(folder)
    way_out = rf"delete the folder and start again: the answers are kept in .*{spec.answers_dir.name}"
    with pytest.raises(ArtifactError, match=rf"{folder.name}.*({told}).*; put its files back; or {way_out}"):
        run_distillation(spec)

    shutil.rmtree(folder)
    assert rows_file(run_distillation(spec)).read_bytes() == before
