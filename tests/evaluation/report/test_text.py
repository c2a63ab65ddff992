import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from axolotl_sdft.evaluation.figures import Estimate
from axolotl_sdft.evaluation.report.headline import headline
from axolotl_sdft.evaluation.report.table import Cell, digits, percent_cell, plain_cell, sections, text_lines
from tests.evaluation.reports import figure, full_report, model, seed_model


def words(lines):
    """Each line with its columns one blank apart."""
    return [" ".join(line.split()) for line in lines]


def test_the_table_opens_with_what_matters_most_of_the_trained_model():
    lines = list(text_lines(full_report()))
    opening = " ".join(" ".join(lines[: lines.index("")]).split())
    assert opening == (
        f"trained: {headline(full_report()).verdict} "
        "the task: 62.6 → 97.9 % of the seed model's: right answers on held-out rows; 300 rows, interval 94.9 to 101 "
        "everything else: 72.0 → 81.2 % of the seed model's: tasks of lm-evaluation-harness; 300 rows, interval 78.2 "
        "to 84.2 forgetting: 0.210 nats per token from the seed model on general prompts (0.158 to 0.263)"
    )


def test_each_figure_is_a_line_with_its_intervals_below():
    lines = words(text_lines(full_report()))

    assert "seed pruned trained" in lines
    place = lines.index("tasks of lm-evaluation-harness 100 % 72.0 % 81.2 %")
    assert lines[place + 1] == "69.0 to 75.0 78.2 to 84.2"
    place = lines.index("tokens per second 30.0 36.0 36.0")
    assert lines[place + 1] == "29.0 to 31.0 35.0 to 37.0 35.0 to 37.0"
    for line in (
        "parameters 30.0 k 24.0 k 24.0 k",
        "KV cache per token 1.9 kB 1.5 kB 1.5 kB",
        "peak memory 420.0 MB 420.0 MB 420.0 MB",
        "perplexity of the answers 7.39 13.5 7.03",
        "gsm8k 40.0 % 31.0 % 35.5 %",
        "draft tokens accepted - 81.0 % 81.0 %",
        "pass@5 80.0 % - 70.0 %",
        "in circles, general prompts 2.00 % 40.0 % 4.00 %",
        "the calls of the reference 60.0 % 30.0 % 54.0 %",
        "answers that refuse 5.00 % 0 % 2.00 %",
        "not measured: pass at 100: set it",
        "note: original rows: ./plain holds no model yet",
    ):
        assert line in lines


def test_what_no_model_has_takes_no_line():
    report = full_report(models=(seed_model(), model("pruned", 24)), notes=(), unmeasured={})
    text = "\n".join(text_lines(report))
    for absent in (
        "lm-evaluation",
        "draft",
        "right answers",
        "tokens per second",
        "In percent",
        "note",
        "not measured",
    ):
        assert absent not in text


def test_the_seed_alone_has_a_table_and_no_headline():
    report = full_report(models=(seed_model(),))
    assert headline(report) is None
    assert next(iter(text_lines(report))) == ""


def test_figures_are_grouped_by_capability_with_the_papers_warning():
    titles = [section.title for section in sections(full_report())]
    assert titles[5:9] == ["Multiple choice", "Generation", "Tool calls", "Refusals"]
    generation = next(section for section in sections(full_report()) if section.title == "Generation")
    assert [row.label for row in generation.rows][-1] == "gsm8k"
    assert "come back last, if at all (arXiv 2602.01997)" in " ".join(" ".join(text_lines(full_report())).split())


def test_a_task_of_an_unknown_kind_stands_apart():
    titles = [section.title for section in sections(full_report(task_kinds={}))]
    assert "Other tasks of lm-evaluation-harness" in titles
    assert "Multiple choice" not in titles


def test_a_tile_without_a_figure_says_why_and_one_above_the_seed_model_is_better():
    few = {"held_out": figure(90.0, rows=7), "general": figure(103.0, rows=64)}
    lines = text_lines(full_report(models=(seed_model(), model("trained", 24, relative_to_seed=few))))
    text = " ".join(" ".join(lines).split())
    assert "the task: Only 7 were measured" in text
    assert "everything else: 103 % of the seed model's: better than the seed model on this measure" in text


def test_more_models_than_fit_get_a_table_of_their_own_beside_the_seed():
    others = [model(f"model {number}", 20) for number in range(5)]
    heads = [
        line for line in words(text_lines(full_report(models=(seed_model(), *others)))) if line.startswith("seed ")
    ]
    assert heads == ["seed model 0 model 1 model 2", "seed model 3 model 4"]


@settings(max_examples=60)
@given(st.lists(st.text(max_size=60), max_size=5), st.floats(), st.text(max_size=200))
@example(["\n"], 0.0, "")
def test_no_line_is_wider_than_100_columns_whatever_names_values_and_notes_are(names, value, note):
    kept = {"held_out": Estimate(value, value, value, 3)}
    others = [model(name, 20, relative_to_seed=kept, tasks={name: figure(value)}) for name in names]
    report = full_report(models=(seed_model(), *others), notes=(note,))
    assert all(len(line) <= 100 and "\n" not in line for line in text_lines(report))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (percent_cell(Estimate(0.5, 0.25, 0.75, 9), 100), Cell("50.0 %", "25.0 to 75.0")),
        (percent_cell(Estimate(50.0, None, None, 9)), Cell("50.0 %")),
        (plain_cell(Estimate(0.012344, 0.0123, 0.0124, 9)), Cell("0.0123", "0.0123 to 0.0124")),
        (plain_cell(Estimate(0.0, 0.0, 0.0, 9)), Cell("0")),  # such as the seed model's divergence from itself
        (plain_cell(None), Cell("-")),
    ],
)
def test_a_cell_holds_a_figure_and_its_interval_where_that_has_a_width(cell, expected):
    assert cell == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.345, "12.3"),
        (12.0, "12.0"),
        (0.5, "0.500"),
        (99.96, "100"),
        (999.6, "1,000"),
        (1234.5, "1,234"),
        (2e7, "2e+07"),
        (0.00012, "0.000120"),
        (0.0, "0"),
    ],
)
def test_a_number_has_three_digits(value, text):
    assert digits(value) == text


def test_only_rows_that_some_model_has_are_in_a_section():
    titles = [section.title for section in sections(full_report(models=(seed_model(), model("pruned", 24))))]
    assert titles == ["Size and cost", "Likelihood of held-out answers", "Likelihood of general answers"]
