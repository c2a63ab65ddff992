import io
import json
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from axolotl_sdft.core.texts import duration
from axolotl_sdft.distillation.generation.selection import RowVerdict, Selection
from axolotl_sdft.distillation.interfaces import RowLimit
from axolotl_sdft.distillation.output.gap import (
    EXAMPLES_PER_CHECK,
    NUM_PAIRS,
    Gap,
    MeasuredAnswer,
    Pair,
    ReportFigures,
)
from axolotl_sdft.distillation.output.report import lengths, render_report
from axolotl_sdft.distillation.pipeline import run_distillation
from axolotl_sdft.distillation.spec import DistillationSpec
from axolotl_sdft.inference.interfaces import Answer, Target
from tests.distillation.test_pipeline import alpaca_rows, echo_config

HOSTILE = (
    '<script>alert(1)</script><img src=x onerror="alert(2)">\'"><style>@import url(//evil)</style>{{ 7 * 7 }}{% raw %}'
    "&lt;b&gt;</div></article><!-- \x00\x1b[31m\u202eabc"
)

GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": None}


class Page(HTMLParser):
    """Reads a page strictly: every element that is opened is closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], set(), []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":  # the only one of the page that HTML leaves open
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def target(reference, question="What?"):
    return Target(({"role": "user", "content": question},), reference)


def taken(reference="one two", answer="three"):
    return Selection(target(reference), 0, Answer(answer, "stop", 3), (), (0,))


def refused(reference="one two", check="leak", reason="says so"):
    return Selection(target(reference), None, None, ((check, reason),), (0,))


def figures_of(*rows, dropped=()):
    """Collect from rows that are given as lists of settlements; a rejected answer reads `no, <row>`."""
    figures = ReportFigures(sum(map(len, rows)))
    for index, row in enumerate(rows):
        shown = tuple(replace(one, shown_answer=one.answer or Answer(f"no, {index}", "stop", 3)) for one in row)
        figures.add(index, RowVerdict({}, shown), is_dropped=index in dropped)
    return figures


def summary_of(figures, **changes):
    provenance = {
        "method": "SDFT",
        "dataset": "datasets[0]",
        "created": "2031-05-06 07:08 UTC",
        "seed_model": "org/seed",
        "seed_model_fingerprint": "0123456789ab",
        "settings": {"template": "plain", "on_reject": "original", "generation": GREEDY},
        "package_versions": {"axolotl-sdft": "9.9"},
    }
    counts = {"rows": 3, "rows_distilled": 2, "rows_original": 1, "rows_dropped": 0, "turns": 3, "turns_distilled": 2}
    counts |= {"turns_left_alone": 0, "left_alone": {}, "to_try_again": {"failed": 0, "not_judged": 0}}
    counts |= {"acceptance": 0.6667, "attempts": 3, "generated_tokens": 99, "generation_seconds": 75.0}
    counts |= {"tokens_per_second": 1.3, "rejections": {"leak": 1}, "rejected_attempts": {"leak": 1}}
    return counts | {"lengths": lengths(figures), "gap": None, "advice": [], "provenance": provenance} | changes


def page_of(tmp_path, figures, gap=None, **changes):
    gap = gap or Gap(why_unknown="the backend can't tell")
    return Page(render_report(tmp_path / "distilled-0123", summary_of(figures, **changes), figures, gap))


@pytest.mark.usefixtures("echo_plugin")
def test_the_report_of_a_run_stands_beside_its_summary(tmp_path, seed_dir):
    spec = DistillationSpec(
        alpaca_rows(9), echo_config(tmp_path, checks=("no_seven",)), seed_dir, {"type": "alpaca"}, "org/seed"
    )

    page = Page((run_distillation(spec) / "report.html").read_text(encoding="utf-8"))

    for shown in (
        "dataset, rewritten by org/seed",
        "88.9 % of the answers rewritten: 8 of 9",
        "8.00 → 27.56 nats per token under the seed model",
        "2 → 7 words, median answer",
        "no_seven 1 11.1 %",
        "Rejected by no_seven: the first 1 of 1",
        "original kept: no_seven: holds 7",
        "The gap narrowed for 0.0 % of the measured answers",
        "9 of 9, spread evenly",
        f"Self-distilled dataset dataset {spec.dataset_dir}",
        "are in rejected.jsonl beside this page",
        f"folder = '{spec.dataset_dir}'",
    ):
        assert shown in page.text
    assert page.tags.count("svg") == 2
    assert page.tags.count("meter") == 1
    assert page.tags.count("article") == 1 + 9 + 9  # the rejected one, the widest gaps, the samples
    (line,) = (spec.dataset_dir / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "row": 7,
        "answer": 0,
        "check": "no_seven",
        "reason": "holds 7",
        "prompt": "Question 7",
        "original": "Answer 7",
        "rejected": "2 messages, the last ends in 7",
    }


@pytest.mark.usefixtures("echo_plugin")
def test_the_summary_adds_lengths_and_the_gap_of_each_sampled_answer(tmp_path, seed_dir):
    spec = DistillationSpec(alpaca_rows(3), echo_config(tmp_path), seed_dir, {"type": "alpaca"}, "org/seed")

    summary = json.loads((run_distillation(spec) / "summary.json").read_text())

    # "Answer 0" becomes "1 messages, the last ends in 0"; the echo backend counts characters.
    assert summary["lengths"] == {"median_words_before": 2.0, "median_words_after": 7.0}
    assert summary["gap"]["rows"] == [{"row": row, "turn": 0, "before": 8.0, "after": 30.0} for row in range(3)]
    assert summary["gap"]["closed_share"] == 0.0
    assert not (spec.dataset_dir / "rejected.jsonl").exists()  # where nothing was rejected


def page_full_of(text, folder):
    """Return a page on which every value that rows, answers, settings or plugins can shape is this text."""
    measured, pair = MeasuredAnswer(0, 0, 3.0, 2.0), Pair(0, 0, 2, target(text, text), text, "rejected", text)
    figures = figures_of([refused(text, text, text)], [taken(text, text)])
    told = dict.fromkeys(("method", "dataset", "created", "seed_model", "seed_model_fingerprint"), text)
    told |= {"settings": {"template": text, "on_reject": text, "generation": GREEDY}, "package_versions": {text: text}}
    counts = {"rejections": {text: 1}, "rejected_attempts": {text: 1}}
    return page_of(folder, figures, Gap((measured,), ((measured, pair),)), **counts, provenance=told)


def test_hostile_texts_are_shown_and_do_nothing(tmp_path):
    page, harmless = page_full_of(HOSTILE, tmp_path / "<script>"), page_full_of("harmless", tmp_path)

    assert page.tags == harmless.tags
    assert page.attributes == harmless.attributes
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert page.tags.count("a") == 1  # to the file of all rejected answers
    assert "src" not in page.attributes
    assert not any(name.startswith("on") for name in page.attributes)
    assert '<script>alert(1)</script><img src=x onerror="alert(2)">' in page.text
    assert "{{ 7 * 7 }}{% raw %}&lt;b&gt;" in page.text
    assert not {"\x00", "\x1b", "\u202e"} & set(page.text)


@settings(max_examples=25, deadline=None)  # pictures take their time
@given(st.text(st.characters(), max_size=40))
def test_any_text_gives_a_page_that_is_well_formed_and_can_be_written(tmp_path_factory, text):
    figures = figures_of([taken(text, text)], [refused(text)])
    page = render_report(tmp_path_factory.getbasetemp(), summary_of(figures), figures, Gap(why_unknown=text))
    Page(page.encode("utf-8").decode("utf-8"))


def test_the_page_loads_nothing_and_follows_the_readers_colours(tmp_path):
    figures = figures_of([taken()])
    text = render_report(tmp_path, summary_of(figures), figures, Gap(why_unknown="gap_samples is 0"))
    assert "default-src 'none'; style-src 'unsafe-inline'" in text
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert 'name="viewport"' in text


def test_a_gap_that_is_not_known_is_explained(tmp_path):
    page = page_of(tmp_path, figures_of([taken()]), Gap(why_unknown="backend openai can't tell"))
    assert "The distribution gap was not measured: backend openai can't tell." in page.text
    assert page.tags.count("svg") == 1


def test_without_matplotlib_the_page_says_once_how_to_get_its_pictures_and_keeps_the_figures(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    gap = Gap((MeasuredAnswer(0, 0, 3.0, 2.0),))
    page = page_of(tmp_path, figures_of([taken("one two", "three")]), gap)
    assert page.text.count("pip install 'axolotl-sdft[plots]'") == 1
    assert "before: mean 3 nats per token after: mean 2 nats per token" in page.text
    assert "before: median 2 words after: median 1 words" in page.text
    assert "svg" not in page.tags


def test_attempts_are_counted_apart_where_answers_were_asked_for_again(tmp_path):
    figures = figures_of([taken()])
    counts = {"rejections": {}, "rejected_attempts": {"leak": 4}}
    assert "leak 0 0.0 % 4 " in page_of(tmp_path, figures, attempts=7, **counts).text
    assert "Attempts rejected" not in page_of(tmp_path, figures, attempts=3, **counts).text


def test_a_long_text_is_cut_with_a_note_of_what_is_left_out(tmp_path):
    page = page_of(tmp_path, figures_of([taken("x" * 5000, "short")]))
    assert "x ... (3,400 more characters)" in page.text


@given(st.integers(0, 400), st.integers(0, 3))
def test_samples_are_few_and_evenly_spread_however_many_rows_there_are(num_rows, every):
    rows = [[refused() if every and index % every == 0 else taken()] for index in range(num_rows)]

    figures = figures_of(*rows)

    count = min(num_rows, NUM_PAIRS)
    assert [pair.row for pair in figures.pairs] == [place * num_rows // count for place in range(count)]
    assert all(len(pairs) <= EXAMPLES_PER_CHECK for pairs in figures.examples.values())
    assert sum(figures.words_before.values()) == num_rows


@pytest.mark.usefixtures("echo_plugin")
def test_samples_are_spread_over_the_rows_that_were_asked_about(tmp_path, seed_dir):
    rows = [{"instruction": f"{row}?", "output": "word " * (9 if row < 60 else 1)} for row in range(80)]
    limit = RowLimit(8, lambda row: len(row["output"].split()))
    config = echo_config(tmp_path, gap_samples=0)
    spec = DistillationSpec(Dataset.from_list(rows), config, seed_dir, {"type": "alpaca"}, "seed", row_limit=limit)

    page = Page((run_distillation(spec) / "report.html").read_text(encoding="utf-8"))

    assert page.tags.count("article") == NUM_PAIRS  # all of the 20 short rows


def test_all_rejected_answers_are_written_whether_they_are_shown_or_not():
    file = io.StringIO()
    figures = ReportFigures(5, file)
    for index in range(4):
        figures.add(
            index, RowVerdict({}, (replace(refused(), shown_answer=Answer("no", "stop", 1)),)), is_dropped=False
        )
    figures.add(4, RowVerdict({}, (replace(taken(), shown_answer=taken().answer),)), is_dropped=False)

    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2, 3]
    assert lines[3]["reason"] == "says so"
    assert len(figures.examples["leak"]) == EXAMPLES_PER_CHECK


def test_name_and_path_stand_in_the_title_and_advice_with_each_reason(tmp_path):
    figures = figures_of([refused()])
    provenance = summary_of(figures)["provenance"] | {"source": "org/rows"}
    text = render_report(tmp_path / "distilled-0123", summary_of(figures, provenance=provenance), figures, Gap())
    assert f"<title>Self-distilled dataset org/rows, {tmp_path}/distilled-0123: 66.7 %" in text
    assert "What helps: choose another template, or show worked examples (examples)." in Page(text).text


def test_each_check_shows_its_first_two_rejected_answers():
    figures = figures_of([taken()], [refused()], [refused(check="empty")], [taken(), refused()], [refused()])

    shown = {name: [(pair.row, pair.turn, pair.answer) for pair in pairs] for name, pairs in figures.examples.items()}

    assert shown == {"leak": [(1, 0, "no, 1"), (3, 1, "no, 3")], "empty": [(2, 0, "no, 2")]}


def test_a_dropped_row_counts_no_words_and_says_what_became_of_its_answers():
    figures = figures_of([taken("one"), refused("one two")], [taken("one two three", "four")], dropped={0})

    assert (figures.words_before, figures.words_after) == ({3: 1}, {1: 1})
    assert [(pair.fate, pair.verdict) for pair in figures.pairs] == [
        ("dropped", "row dropped for another answer of it"),
        ("rejected", "row dropped: leak: says so"),
        ("taken", "rewritten"),
    ]


def test_without_any_trained_answer_there_are_no_lengths(tmp_path):
    assert lengths(figures_of()) is None
    assert "Length of the trained answers" not in page_of(tmp_path, figures_of()).text


@pytest.mark.usefixtures("echo_plugin")
def test_another_answer_of_a_conversation_is_named_by_its_number(tmp_path, seed_dir):
    turns = [{"role": role, "content": text} for text in ("a", "b") for role in ("user", "assistant")]
    rows = Dataset.from_list([{"messages": turns}])
    spec = DistillationSpec(rows, echo_config(tmp_path), seed_dir, {"type": "chat_template"}, "seed")

    page = Page((run_distillation(spec) / "report.html").read_text(encoding="utf-8"))

    assert "row 0, answer 2 of 2 rewritten after 2 earlier messages Prompt b Original answer b" in page.text


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3569, "59 min"),
        (3571, "1 h 0 min"),
        (12000, "3 h 20 min"),
        (190800, "2 days 5 h"),
    ],
)
def test_a_duration_is_told_in_the_units_that_matter(seconds, shown):
    assert duration(seconds) == shown


def test_each_reason_has_a_way_out_and_what_went_badly_stands_above(tmp_path):
    figures = figures_of([])
    text = render_report(tmp_path, summary_of(figures, advice=["the gap grew"]), figures, Gap(why_unknown="x"))
    assert "Warning: the gap grew." in text
    assert '<td class="long">choose another template, or show worked examples (examples)</td>' in text


def test_the_page_says_where_the_gap_does_not_tell_what_answers_protect(tmp_path):
    figures, note = figures_of([taken()]), "their gap need not fall"
    provenance = summary_of(figures)["provenance"]
    drawn = {"settings": provenance["settings"] | {"generation": GREEDY | {"temperature": 1.0}}}

    assert note not in page_of(tmp_path, figures).text
    assert note in page_of(tmp_path, figures, provenance=provenance | drawn).text
