import dataclasses
import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axolotl_sdft.evaluation.figures import Estimate
from axolotl_sdft.evaluation.report.page import render_page
from axolotl_sdft.evaluation.report.table import SOURCES
from tests.distillation.output.test_report import HOSTILE, Page
from tests.evaluation.reports import figure, full_report, model, seed_model


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


def test_the_page_shows_tiles_pictures_the_table_notes_settings_and_provenance():
    page = Page(render_page(full_report()))

    for shown in (
        "88.8 % of the seed's quality kept by trained 86.3 to 91.3 tasks of lm-evaluation-harness",
        "20.0 % fewer parameters",
        "1.20 x the seed's tokens per second",
        "0.21 nats per token away from the seed on general prompts: what was forgotten 0.158 to 0.263",
        "held-out rows, divided by the model's",
        "parameters 30.0 k 24.0 k 24.0 k",
        "top-1 agreement with the seed 100.0 %",
        "original rows: ./plain holds no model yet",
        "vllm serve /models/seed --speculative-config",
        "pruned /models/pruned",
        "created 2031-05-06 07:08 UTC",
        "package versions axolotl-sdft 9.9",
        "bootstrap_samples: 1000",
        "model_card.md",
    ):
        assert shown in page.text
    assert page.tags.count("svg") == 4


def test_each_picture_is_told_in_words():
    text = render_page(full_report())
    assert 'aria-label="Quality kept: seed 100 %; pruned 77.5 % (74.5 to 80.5); trained 88.8 % (86.3 to 91.3)"' in text
    assert 'aria-label="Forgetting: pruned 0.8 (0.6 to 1); trained 0.21 (0.158 to 0.263)"' in text
    assert text.count('role="img"') == 4


def test_an_interval_without_width_is_not_drawn():
    kept = {"held_out": Estimate(100.0, 100.0, 100.0, 4)}
    text = render_page(full_report(models=(seed_model(quality_kept=kept), model("trained", 24, quality_kept=kept))))
    assert 'aria-label="Quality kept: seed 100 %; trained 100 %"' in text


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_of_quality_is_explained_where_it_was_measured(source):
    models = (
        seed_model(quality_kept={source: figure(100.0)}),
        model("trained", 24, quality_kept={source: figure(90.0)}),
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


def test_the_page_loads_nothing_and_follows_the_readers_colours():
    text = render_page(full_report())
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
    page = Page(render_page(full_report(models=(seed_model(),), notes=("trained: out holds no model yet",))))
    assert "There is only the seed to measure." in page.text
    assert "trained: out holds no model yet" in page.text
    assert "svg" not in page.tags


@settings(max_examples=25, deadline=None)  # pictures take their time
@given(st.text(st.characters(), min_size=1, max_size=40), st.floats(min_value=0) | st.just(math.nan))
def test_any_name_and_any_value_give_a_page_that_is_well_formed(name, value):
    kept = {"held_out": Estimate(value, value, value, 3)}
    report = full_report(models=(seed_model(quality_kept=kept), model(name, 24, quality_kept=kept)))
    Page(render_page(report).encode("utf-8").decode("utf-8"))
