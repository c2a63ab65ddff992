"""The measures together, on a tiny random Llama: what is kept, found again, noted and refused."""

import dataclasses
import gc
import json
import math
import shutil
import weakref
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from axolotl_sdft import cut_layers
from axolotl_sdft.config import RecoveryReportConfig
from axolotl_sdft.core.errors import ArtifactError, CheckpointError, ConfigError, UnknownNameError
from axolotl_sdft.core.model_folder import slug
from axolotl_sdft.evaluation import loading, measuring
from axolotl_sdft.evaluation.figures import FigureStore, ModelFigures, SpeedFigures, model_fingerprint
from axolotl_sdft.evaluation.measures.task_scores import Scores
from axolotl_sdft.evaluation.pipeline import check_report, finite, run_report, unmeasured, write_report
from axolotl_sdft.evaluation.spec import RecoverySpec, ReportedModel
from axolotl_sdft.inference.interfaces import Target
from tests.evaluation.reports import full_report, likelihood

TARGETS = tuple(Target(({"role": "user", "content": f"Say {n}."},), f"It is {n}.") for n in range(4))
SMALL = {"general_prompts": {"num_samples": 2, "max_new_tokens": 4}, "speed": {"rounds": 0}, "bootstrap_samples": 50}


@pytest.fixture(scope="module", autouse=True)
def imports_are_not_collected():
    """Each model that is freed collects garbage: going through all that was imported takes longer than the tests."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def pruned_dir(tiny_llama_dir, tmp_path_factory):
    return cut_layers(tiny_llama_dir, [2, 3], tmp_path_factory.mktemp("models") / "pruned")


@pytest.fixture
def spec(tiny_llama_dir, pruned_dir, tmp_path):
    models = (ReportedModel("seed", tiny_llama_dir), ReportedModel("pruned", pruned_dir))
    return RecoverySpec(models, RecoveryReportConfig.model_validate(SMALL), tmp_path / "report", TARGETS)


def with_settings(spec, **settings):
    return dataclasses.replace(spec, config=RecoveryReportConfig.model_validate(SMALL | settings))


def test_seed_and_others_are_measured_on_the_same_rows(spec):
    seed, pruned = run_report(spec).models

    assert (seed.name, seed.footprint.num_layers) == ("seed", 6)
    assert (pruned.name, pruned.footprint.num_layers) == ("pruned", 4)
    assert seed.held_out.nll.rows == pruned.held_out.nll.rows == 4
    assert seed.general.nll.rows == pruned.general.nll.rows == 2
    assert (seed.general.kl_to_seed.value, seed.general.agreement.value) == (0.0, 1.0)
    assert pruned.general.kl_to_seed.value > 0
    assert seed.relative_to_seed["held_out"].value == 100.0
    expected = 100 * seed.held_out.perplexity.value / pruned.held_out.perplexity.value
    assert pruned.relative_to_seed["held_out"].value == pytest.approx(expected)
    assert pruned.relative_to_seed["held_out"].low <= expected <= pruned.relative_to_seed["held_out"].high


def test_a_second_run_finds_all_figures_and_loads_no_model(spec, monkeypatch):
    first = run_report(spec)
    monkeypatch.setattr(loading, "load_model", None)
    assert run_report(spec).models == first.models


def test_a_run_that_was_killed_half_way_goes_on_where_it_stopped(spec, monkeypatch):
    known, calls = measuring.answer_statistics, []

    def killed_at_the_last(*args):
        calls.append(args)
        if len(calls) == 4:  # seed and pruned, held-out and general rows each
            raise KeyboardInterrupt
        return known(*args)

    monkeypatch.setattr(measuring, "answer_statistics", killed_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        run_report(spec)

    monkeypatch.setattr(measuring, "answer_statistics", lambda *args: calls.append(args) or known(*args))
    report = run_report(spec)

    assert len(calls) == 5  # the one that was killed, once more
    assert all(model.held_out and model.general for model in report.models)


@pytest.mark.parametrize(
    ("change", "num_measured"),
    [
        (lambda spec: with_settings(spec, bootstrap_samples=9), 0),  # another interval needs no new measuring
        (lambda spec: dataclasses.replace(spec, held_out=TARGETS[1:]), 2),
        (lambda spec: with_settings(spec, general_prompts={"num_samples": 3, "max_new_tokens": 4}), 2),
        (lambda spec: with_settings(spec, dtype="bfloat16"), 4),
    ],
)
def test_a_change_measures_anew_what_it_shapes(spec, monkeypatch, change, num_measured):
    run_report(spec)
    calls, known = [], measuring.answer_statistics
    monkeypatch.setattr(measuring, "answer_statistics", lambda *args: calls.append(args) or known(*args))
    run_report(change(spec))
    assert len(calls) == num_measured


def test_a_model_that_was_trained_on_is_measured_anew(spec, pruned_dir, tmp_path):
    trained = ReportedModel("trained", Path(shutil.copytree(pruned_dir, tmp_path / "trained")))
    before = model_fingerprint(trained)
    (weights,) = trained.folder.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    assert model_fingerprint(trained) != before


def test_an_adapter_is_known_by_its_own_scale_and_its_base_but_not_by_where_that_lies(pruned_dir, tmp_path):
    def fingerprint_of(name, base, **settings):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)} | settings))
        return model_fingerprint(ReportedModel("trained", folder))

    moved = shutil.copytree(pruned_dir, tmp_path / "moved")
    first = fingerprint_of("a", pruned_dir, lora_alpha=8)
    assert fingerprint_of("b", moved, lora_alpha=8) == first
    assert fingerprint_of("c", moved, lora_alpha=16) != first


def test_a_model_that_can_not_be_loaded_becomes_one_note_and_the_others_keep_their_figures(
    spec, tmp_path, monkeypatch, caplog
):
    broken = tmp_path / "broken"
    shutil.copytree(spec.models[1].folder, broken)
    (weights,) = broken.glob("*.safetensors")
    weights.write_bytes(b"nonsense")
    known, loaded = loading.load_model, []
    monkeypatch.setattr(
        loading, "load_model", lambda model, *args, **kw: loaded.append(model.name) or known(model, *args, **kw)
    )

    report = run_report(dataclasses.replace(spec, models=(*spec.models, ReportedModel("trained", broken))))

    assert report.models[1].general is not None
    assert report.models[2].general is None
    [note] = [note for note in report.notes if "not measured" in note]
    assert note.startswith("trained: held out, general, general answers: not measured: recovery_report: the model 'tr")
    assert loaded.count("trained") == 1
    assert caplog.text.count("trained: held out: not measured") == 1


def test_a_model_that_diverged_in_training_is_noted_and_the_others_keep_their_figures(spec, tmp_path):
    diverged = Path(shutil.copytree(spec.models[1].folder, tmp_path / "diverged"))
    weights = load_file(diverged / "model.safetensors")
    save_file({name: tensor.fill_(math.nan) for name, tensor in weights.items()}, diverged / "model.safetensors")
    spec = with_settings(spec, exact_match={"max_new_tokens": 4, "pass_at": [1], "num_answers": 2})

    report = run_report(dataclasses.replace(spec, models=(*spec.models, ReportedModel("trained", diverged))))

    assert [bool(model.general and model.exact_match and model.pass_at) for model in report.models] == [
        True,
        True,
        False,
    ]
    told = "trained: general answers, held out answers, sampled answers: not measured: the model predicts no numbers"
    assert any(note.startswith(told) for note in report.notes)


@pytest.mark.parametrize(
    ("template", "is_noted"),
    [
        ("{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}[assistant]", True),
        ("{# of another day #}", False),
        ("{{ raise_exception('not this') }}", False),
    ],
    ids=["another", "the same in other words", "one that fails"],
)
def test_a_model_that_learnt_another_chat_template_than_it_is_asked_in_is_noted(spec, tmp_path, template, is_noted):
    trained = Path(shutil.copytree(spec.models[1].folder, tmp_path / "trained"))
    own = trained / "chat_template.jinja"
    own.write_text(template + (own.read_text() if template.startswith("{#") else ""))

    report = run_report(dataclasses.replace(spec, models=(*spec.models, ReportedModel("trained", trained))))

    noted = (
        "trained: its chat template writes chats otherwise than the seed model's, with which all models are asked, so"
    )
    assert [note.startswith(noted) for note in report.notes if "chat template" in note] == [True] * is_noted


def test_an_adapter_without_its_base_is_left_out_with_a_note(spec, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "./nowhere"}')
    report = run_report(dataclasses.replace(spec, models=(*spec.models, ReportedModel("trained", tmp_path))))
    assert [model.name for model in report.models] == ["seed", "pruned"]
    assert any(note.startswith("trained: ") and "nowhere" in note for note in report.notes)


def test_a_seed_that_can_not_be_measured_is_an_error(spec, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(spec.seed.folder, broken)
    (weights,) = broken.glob("*.safetensors")
    weights.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="'seed'"):
        run_report(dataclasses.replace(spec, models=(ReportedModel("seed", broken), spec.models[1])))


def test_right_answers_are_counted_and_a_seed_without_any_is_noted(spec):
    right = {"checks": ["empty"], "num_samples": 2, "max_new_tokens": 3}
    report = run_report(with_settings(spec, exact_match=right))
    assert report.models[1].exact_match.rows == 2

    wrong = right | {"checks": ["exact_match"]}
    report = run_report(with_settings(spec, exact_match=wrong))
    assert report.models[0].exact_match.value == 0.0
    assert "exact_match" not in report.models[1].relative_to_seed
    assert any(note.startswith("exact_match: the seed model answers none") for note in report.notes)


def test_prompts_that_can_not_be_answered_count_for_no_model_and_are_noted(spec):
    empty = Target(TARGETS[0].context, " ")
    too_long = Target(({"role": "user", "content": "word " * 3000},), "It is long.")
    sampled = {"pass_at": [1], "num_answers": 1, "max_new_tokens": 2, "checks": ["empty"]}
    asked = with_settings(spec, exact_match=sampled, held_out={"num_samples": 40})
    report = run_report(dataclasses.replace(asked, held_out=(empty, *TARGETS, too_long)))

    for model in report.models:
        assert (model.exact_match.rows, model.exact_match.value, model.pass_at["1"].rows) == (4, 1.0, 4)
    assert any(
        note.startswith("held-out prompts: 1 of 5 are left out, which the seed model can't answer, such as: the prompt")
        for note in report.notes
    )
    assert "exact_match: 1 of 6 held-out rows are left out, whose answer is empty" in report.notes
    assert (
        "recovery_report.exact_match.num_samples is 50, but only 40 held-out rows are read (held_out.num_samples); "
        "raise that, too"
    ) in report.notes


def test_what_models_write_is_judged_and_stands_side_by_side(spec):
    calling = Target(({"role": "user", "content": "Say 5."},), "[say(number=5)]")
    asked = with_settings(dataclasses.replace(spec, held_out=(*TARGETS, calling)), prompts=["What is a glacier?"])

    report = run_report(asked)

    for model in report.models:
        assert (model.refusals.rows, model.repetition["general"].rows) == (2, 2)
        assert (model.tool_calls.rows, model.repetition["held_out"].rows) == (1, 1)
    assert [(shown.kind, shown.reference) for shown in report.answers] == [
        ("yours", None),
        ("general", None),
        ("general", None),
        ("held out", "[say(number=5)]"),
    ]
    assert report.answers[0].prompt == "What is a glacier?"
    assert all(shown.answers.keys() == {"seed", "pruned"} for shown in report.answers)
    assert (
        "tool calls: the seed model makes none of the references' calls, so no share of it can be told" in report.notes
    )
    assert set(report.unmeasured) == {"multiple choice", "right answers"}


def test_sampled_answers_give_pass_at_k(spec):
    sampled = {"checks": ["empty"], "num_samples": 2, "max_new_tokens": 2, "pass_at": [1, 2], "num_answers": 2}
    seed, pruned = run_report(with_settings(spec, exact_match=sampled)).models
    assert list(pruned.pass_at) == ["1", "2"]
    assert 0 <= pruned.pass_at["1"].value <= pruned.pass_at["2"].value <= 1
    assert seed.pass_at["2"].rows == 2


def test_a_comparison_by_likelihood_alone_has_no_answers(spec):
    report = run_report(dataclasses.replace(spec, has_answers=False))
    assert (report.answers, report.models[1].refusals, report.models[1].repetition) == ((), None, {})
    assert report.models[1].general is not None


@pytest.mark.parametrize(
    ("settings", "held_out", "missing"),
    [
        ({}, (), {"likelihood of held-out answers", "multiple choice", "right answers", "tool calls", "refusals"}),
        ({"exact_match": {}}, TARGETS, {"multiple choice", "pass@k", "tool calls", "refusals"}),
    ],
)
def test_what_no_model_has_is_told_with_its_reason(spec, settings, held_out, missing):
    asked = with_settings(dataclasses.replace(spec, held_out=held_out), **settings)
    figures = ModelFigures("seed", "/seed", held_out=likelihood(2.0, 0.0, 1.0) if held_out else None)
    assert set(unmeasured(asked, [figures], {})) == missing


def test_smaller_models_are_tried_as_drafts_of_the_seed(spec):
    report = run_report(with_settings(spec, drafting={"num_prompts": 1, "max_new_tokens": 4}))
    seed, pruned = report.models
    assert seed.drafting is None
    assert pruned.drafting.prompts == 1
    assert 0 <= pruned.drafting.acceptance <= 1


def test_each_task_is_kept_by_itself(spec, monkeypatch):
    asked = []

    def scores(model, config, *args, **kwargs):
        asked.append((model.name, config.tasks[0].task))
        (task,) = config.tasks
        questions = [1.0, 0.0] if model.name == "seed" else [0.0, 0.5]
        return {task.task: Scores(None, questions, {"results": {task.task: {"acc,none": 0.5}}, "date": len(asked)})}

    monkeypatch.setattr(measuring, "task_scores", scores)
    report = run_report(with_settings(spec, lm_eval={"tasks": ["one", "two"]}))
    run_report(with_settings(spec, lm_eval={"tasks": ["two", "three"]}))

    assert asked[:4] == [("seed", "one"), ("seed", "two"), ("pruned", "one"), ("pruned", "two")]
    assert asked[4:] == [("seed", "three"), ("pruned", "three")]
    assert report.models[0].tasks["one"].value == 0.5
    assert report.models[1].relative_to_seed["tasks"].value == 50.0
    both = {"one": {"acc,none": 0.5}, "two": {"acc,none": 0.5}}
    assert {name: results["results"] for name, results in report.harness.items()} == {"seed": both, "pruned": both}


def test_models_are_timed_together_and_one_that_fails_is_noted_and_tried_again(spec, monkeypatch):
    calls = []

    def speed(models, config, dtype, on_failure, **_):
        calls.append([model.name for model in models])
        if len(calls) == 1:
            on_failure("the speed of pruned can't be measured: why")
        return {model.name: SpeedFigures(9.0, (9.0,), 100, 8, 4, "cpu") for model in models[: len(calls)]}

    monkeypatch.setattr(measuring, "measure_speed", speed)
    timed = with_settings(spec, speed={"rounds": 1})

    report = run_report(timed)
    assert (report.models[0].speed.peak_bytes, report.models[1].speed) == (100, None)
    assert "the speed of pruned can't be measured: why" in report.notes
    assert run_report(timed).models[1].speed is not None
    run_report(timed)
    assert calls == [["seed", "pruned"]] * 2  # the third time they are found


def test_rows_that_are_cut_away_are_counted_in_a_note(spec):
    report = run_report(with_settings(spec, held_out={"sequence_len": 8}))  # the prompt alone is longer
    assert report.models[1].held_out is None
    assert any("4 of 4 are left out" in note and "sequence_len (8 tokens)" in note for note in report.notes)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"exact_match": {"checks": ["leek"]}}, UnknownNameError, r"recovery_report.exact_match.checks.*'leek'"),
        ({"speed": {"prompt_tokens": 4000}}, ConfigError, r"recovery_report.speed.prompt_tokens is 4000"),
        ({"general_prompts": {"path": "nowhere.txt"}}, Exception, r"recovery_report.general_prompts.path is 'nowhere"),
    ],
)
def test_what_would_stop_the_report_later_is_refused_before_a_model_is_loaded(spec, settings, error, message):
    with pytest.raises(error, match=message):
        check_report(with_settings(spec, **settings))


def test_right_answers_without_held_out_rows_are_refused(spec):
    with pytest.raises(ConfigError, match=r"exact_match is set, but there are no held-out rows; set"):
        check_report(dataclasses.replace(with_settings(spec, exact_match={}), held_out=()))


def test_a_seed_without_a_tokenizer_of_its_own_is_refused(spec, tmp_path):
    seed = Path(shutil.copytree(spec.seed.folder, tmp_path / "seed"))
    for path in seed.glob("tokenizer*"):
        path.unlink()
    told = r"the tokenizer of .*seed can't be loaded \(.*; put the tokenizer's files into that"
    with pytest.raises(CheckpointError, match=told):
        check_report(dataclasses.replace(spec, models=(ReportedModel("seed", seed),)))


def test_a_seed_without_chat_template_is_refused(spec, tmp_path):
    seed = Path(shutil.copytree(spec.seed.folder, tmp_path / "seed"))
    (seed / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="chat template"):
        check_report(dataclasses.replace(spec, models=(ReportedModel("seed", seed),)))


def test_the_report_is_written_as_page_figures_and_section_and_replaces_an_older_one(tmp_path):
    paths = write_report(full_report(), tmp_path / "report")
    write_report(full_report(notes=("anew",)), tmp_path / "report")

    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.html", "report.json", "model_card.md"}
    told = json.loads(paths["figures"].read_text())
    assert told["notes"] == ["anew"]
    assert told["models"][2]["relative_to_seed"]["tasks"] == {
        "value": 81.2,
        "low": 78.2,
        "high": 84.2,
        "rows": 300,
    }


def test_the_harness_s_results_are_files_in_a_folder_for_each_model(tmp_path):
    pytest.importorskip("lm_eval")
    results = {"results": {"gsm8k": {"acc,none": math.nan}}, "versions": {}, "n-shot": {}, "date": 1_900_000_000.5}
    report = full_report(harness={"my model": results})
    path = write_report(report, tmp_path)["lm_eval results of my model"]
    write_report(report, tmp_path)

    assert list((tmp_path / "lm_eval" / slug("my model")).iterdir()) == [path]
    assert path.match("results_2030-03-1?T??-??-??.500000.json")
    assert json.loads(path.read_text()) == results | {"results": {"gsm8k": {"acc,none": None}}}
    assert "harness" not in json.loads((tmp_path / "report.json").read_text())


def test_numbers_that_json_can_not_hold_become_null():
    assert finite({"a": [1.5, math.nan], "b": (math.inf,)}) == {"a": [1.5, None], "b": [None]}


def test_a_figure_file_that_is_broken_is_measured_anew(tmp_path):
    store = FigureStore(tmp_path)
    store.keep("held_out", {"rows": 1}, [1, 2])
    assert store.find("held_out", {"rows": 1}) == [1, 2]
    assert store.find("held_out", {"rows": 2}) is None
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:20])
    assert store.find("held_out", {"rows": 1}) is None


def test_figures_that_can_not_be_kept_stop_the_report_with_the_file_and_the_cause(spec):
    spec.output_dir.mkdir(parents=True)
    (spec.output_dir / "figures").touch()

    with pytest.raises(ArtifactError, match=r"figures/held_out-\w+\.json can't be written \((File|Not)"):
        run_report(spec)


def test_models_are_freed_before_the_speed_is_measured(spec, monkeypatch):
    """Children need the memory."""
    loaded, alive, known = [], [], loading.load_model

    def load(*args, **kwargs):
        model, tokenizer = known(*args, **kwargs)
        loaded.append(weakref.ref(model))
        return model, tokenizer

    def speed(*args, **_):
        alive.extend(reference for reference in loaded if reference() is not None)
        return {}

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(measuring, "measure_speed", speed)
    run_report(with_settings(spec, speed={"rounds": 1}))
    assert (len(loaded), alive) == (2, [])
