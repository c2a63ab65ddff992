import dataclasses
import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axolotl_sdft.evaluation.figures import Estimate
from axolotl_sdft.evaluation.report.headline import SOURCES, headline
from axolotl_sdft.evaluation.report.page import render_page, title_of
from tests.distillation.output.test_report import HOSTILE, Page
from tests.evaluation.reports import figure, full_report, model, relative, seed_model


@pytest.fixture(scope="module")
def html():
    """The page of a full report, drawn once."""
    return render_page(full_report())


def page_full_of(text):
    """Return a page on which every text that users can shape is this one."""
    report = full_report(notes=(text,), provenance={text: text, "package_versions": {text: text}})
    models = [
        dataclasses.replace(
            each, name=each.name if each.name == "seed" else text, folder=text, tasks={text: figure(0.5)}
        )
        for each in report.models
    ]
    settings = dict(report.settings) | {"output_dir": text}
    return Page(render_page(dataclasses.replace(report, models=tuple(models), settings=settings)))


def test_the_page_shows_tiles_pictures_the_table_notes_settings_and_provenance(html):
    page = Page(html)

    for shown in (
        "20.0 % fewer parameters",
        "1.20 x the seed model's tokens per second",
        "0.210 nats per token away from the seed model on general prompts: what was forgotten 0.158 to 0.263",
        "2.00 → 4.00 % of the answers run in circles, seed model → trained 60 answers",
        "held-out rows, divided by the model's",
        "parameters 30.0 k 24.0 k 24.0 k",
        "agreement with the seed model 100 %",
        "Multiple choice arc_easy 70.0 %",
        "Multiple choice comes back to about 90 % of the seed model",
        "Not measured pass at 100: set it",
        "original rows: ./plain holds no model yet",
        "vllm serve /models/seed --speculative-config",
        "pruned /models/pruned",
        "created 2031-05-06 07:08 UTC",
        "package versions axolotl-sdft 9.9",
        "bootstrap_samples: 1000",
        "model_card.md",
    ):
        assert shown in page.text
    assert page.tags.count("svg") == 7


def test_model_data_and_day_stand_in_the_title_and_the_verdict_below(html):
    titled = "Recovery report: org/seed-135M on org/word-problems, 2031-05-06"
    assert f"<title>{titled}</title>" in html
    assert f"<h1>{titled}</h1>" in html
    assert f"trained : {headline(full_report()).verdict}" in Page(html).text


@pytest.mark.parametrize(
    ("provenance", "expected"),
    [
        ({"seed_model": "/home/me/models/tiny", "created": "2031-05-06 07:08 UTC"}, "tiny, 2031-05-06"),
        ({"data": "rows.jsonl"}, "rows.jsonl"),
        ({}, ""),
    ],
)
def test_a_title_holds_what_is_known_and_no_folder_of_this_machine(provenance, expected):
    assert title_of(full_report(provenance=provenance)) == expected


def test_the_two_headline_tiles_hold_both_figures_with_interval_and_rows(html):
    page = Page(html)
    assert (
        "The task 62.6 → 97.9 % of the seed model's right answers on held-out rows; 300 rows; 95 % interval"
        in page.text
    )
    assert (
        "Everything else 72.0 → 81.2 % of the seed model's tasks of lm-evaluation-harness; 300 questions" in page.text
    )
    assert html.count('class="tile headline"') == 2


def test_fewer_than_fifty_rows_leave_a_tile_without_a_figure():
    kept = {"held_out": figure(97.0, rows=49), "general": figure(88.0, rows=64)}
    page = Page(render_page(full_report(models=(seed_model(), model("trained", 24, relative_to_seed=kept)))))
    assert "The task no figure Only 49 were measured" in page.text
    assert "Everything else 88.0 % of the seed model's" in page.text
    assert "task without a figure" in page.text


def test_more_than_the_seed_model_is_called_better_and_never_kept():
    kept = relative(held_out=107.6, general=99.0)
    page = Page(render_page(full_report(models=(seed_model(), model("trained", 24, relative_to_seed=kept)))))
    assert "108 % of the seed model's: better than the seed model on this measure" in page.text
    assert not {"kept", "retention", "keeps"} & set(page.text.lower().split())


def test_answers_of_all_models_stand_side_by_side(html):
    page = Page(html)
    assert "your prompt Why is the sky blue? seed It scatters. pruned (nothing) trained Light." in page.text
    assert "held-out prompt What is 2 + 2? reference 2 + 2 = 4 seed 4 pruned (no answer: see the notes)" in page.text


def test_each_picture_is_told_in_words(html):
    text = html
    for told in (
        "The task: seed 100 %; pruned 62.6 % (59.6 to 65.6); trained 97.9 % (94.9 to 101)",
        "Everything else: seed 100 %; pruned 72.0 % (69.0 to 75.0); trained 81.2 % (78.2 to 84.2)",
        "Forgetting: pruned 0.800 (0.600 to 1.00); trained 0.210 (0.158 to 0.263)",
        "Speed: seed 30.0 (29.0 to 31.0); pruned, trained 36.0 (35.0 to 37.0)",
        "How many layers to remove: bare cut from 0.1 to 0.98; patched from 0.05 to 0.73",
        "Training: trained: training loss from 2.5 to 1.75; evaluation loss from 2.4 to 1.9",
    ):
        assert f'aria-label="{told}"' in text
    assert text.count('role="img"') == 7


def test_an_interval_without_width_is_not_drawn():
    kept = {"held_out": Estimate(100.0, 100.0, 100.0, 60)}
    text = render_page(
        full_report(models=(seed_model(relative_to_seed=kept), model("trained", 24, relative_to_seed=kept)))
    )
    assert 'aria-label="The task: seed 100 %; trained 100 %"' in text


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_of_quality_is_explained_where_it_was_measured(source):
    models = (
        seed_model(relative_to_seed={source: figure(100.0)}),
        model("trained", 24, relative_to_seed={source: figure(90.0)}),
    )
    page = Page(render_page(full_report(models=models)))
    assert " ".join(SOURCES[source][1].split()) in page.text
    assert not any(SOURCES[other][1] in page.text for other in SOURCES if other != source)


def test_hostile_texts_are_shown_and_do_nothing():
    page, harmless = page_full_of(HOSTILE), page_full_of("harmless")

    assert page.tags == harmless.tags
    assert page.attributes == harmless.attributes
    assert not {"script", "img", "link", "iframe", "a"} & set(page.tags)
    assert not {"src", "href"} & page.attributes
    assert '<script>alert(1)</script><img src=x onerror="alert(2)">' in page.text
    assert not {"\x00", "\x1b", "\u202e"} & set(page.text)


def test_the_page_loads_nothing_and_follows_the_readers_colours(html):
    text = html
    assert "default-src 'none'; style-src 'unsafe-inline'" in text
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    for part in ("prefers-color-scheme: dark", "@media print", 'name="viewport"'):
        assert part in text


def test_without_matplotlib_the_page_says_once_how_to_get_its_pictures(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Page(render_page(full_report()))
    assert page.text.count("pip install 'axolotl-sdft[plots]'") == 1
    assert "parameters 30.0 k 24.0 k 24.0 k" in page.text
    assert "svg" not in page.tags


def test_the_harness_s_own_table_stands_on_the_page():
    pytest.importorskip("lm_eval")
    scores = {"alias": "gsm8k", "exact_match,strict-match": 0.4, "exact_match_stderr,strict-match": 0.1}
    own = {"results": {"gsm8k": scores}, "versions": {"gsm8k": 3}, "n-shot": {"gsm8k": 5}}
    page = Page(render_page(full_report(harness={"seed": own})))
    assert "|gsm8k|3|strict-match|5|exact_match||0.4|±|0.1|" in page.text.replace(" ", "")
    assert "lm_eval beside this page" in page.text


def test_a_report_of_the_seed_alone_says_so():
    page = Page(
        render_page(
            full_report(models=(seed_model(),), notes=("trained: out holds no model yet",), curves=(), removals=())
        )
    )
    assert "There is only the seed model to measure." in page.text
    assert "trained: out holds no model yet" in page.text
    assert "svg" not in page.tags


@settings(max_examples=12, deadline=None)  # pictures take their time
@given(st.text(st.characters(), min_size=1, max_size=40), st.floats(min_value=0) | st.just(math.nan))
def test_any_name_and_any_value_give_a_page_that_is_well_formed(name, value):
    kept = {"held_out": Estimate(value, value, value, 60)}
    models = (seed_model(relative_to_seed=kept), model(name, 24, relative_to_seed=kept))
    report = full_report(models=models, curves=(), removals=())
    Page(render_page(report).encode("utf-8").decode("utf-8"))
