import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from axolotl_sdft.evaluation.figures import Estimate
from axolotl_sdft.evaluation.report.table import Cell, digits, headline, percent_cell, plain_cell, sections, text_lines
from tests.evaluation.reports import figure, full_report, model, seed_model


def words(lines):
    """Each line with its columns one blank apart."""
    return [" ".join(line.split()) for line in lines]


def test_the_table_opens_with_what_matters_most_of_the_trained_model():
    assert list(text_lines(full_report()))[:5] == [
        "trained: 88.8 % of the seed's quality kept (86.3 to 91.3): tasks of lm-evaluation-harness",
        "trained: 20.0 % fewer parameters",
        "trained: 1.20 times the seed's tokens per second",
        "trained: 0.21 nats per token from the seed on general prompts (0.158 to 0.263): forgetting",
        "",
    ]


def test_each_figure_is_a_line_with_its_intervals_below():
    lines = words(text_lines(full_report()))

    assert "seed pruned trained" in lines
    place = lines.index("tasks of lm-evaluation-harness 100.0 % 77.5 % 88.8 %")
    assert lines[place + 1] == "74.5 to 80.5 86.3 to 91.3"
    for line in (
        "parameters 30.0 k 24.0 k 24.0 k",
        "KV cache per token 1.9 kB 1.5 kB 1.5 kB",
        "tokens per second 30.0 36.0 36.0",
        "peak memory 420.0 MB 420.0 MB 420.0 MB",
        "perplexity of the answers 7.389 13.46 7.029",
        "gsm8k 40.0 % 31.0 % 35.5 %",
        "draft tokens accepted - 81.0 % 81.0 %",
        "note: original rows: ./plain holds no model yet",
    ):
        assert line in lines


def test_what_no_model_has_takes_no_line():
    text = "\n".join(text_lines(full_report(models=(seed_model(), model("pruned", 24)), notes=())))
    for absent in ("lm-evaluation", "draft", "right answers", "tokens per second", "Quality kept", "note"):
        assert absent not in text


def test_the_seed_alone_has_a_table_and_no_headline():
    report = full_report(models=(seed_model(),))
    assert headline(report) is None
    assert next(iter(text_lines(report))) == ""


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
    others = [model(name, 20, quality_kept=kept, tasks={name: figure(value)}) for name in names]
    report = full_report(models=(seed_model(), *others), notes=(note,))
    assert all(len(line) <= 100 and "\n" not in line for line in text_lines(report))


def test_the_headline_is_of_the_trained_model_else_of_the_last_and_takes_the_strongest_evidence():
    kept = {"general": figure(60.0), "held_out": figure(70.0)}
    trained, other = model("trained", 24, quality_kept=kept), model("other", 24, quality_kept={"general": figure(1.0)})

    top = headline(full_report(models=(seed_model(), trained, other)))
    assert (top.model.name, top.source, top.quality.value) == ("trained", "held_out", 70.0)
    top = headline(full_report(models=(seed_model(), other)))
    assert (top.model.name, top.source, top.speed_gained, top.forgetting) == ("other", "general", None, None)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (percent_cell(Estimate(0.5, 0.25, 0.75, 9), 100), Cell("50.0 %", "25.0 to 75.0")),
        (percent_cell(Estimate(50.0, None, None, 9)), Cell("50.0 %")),
        (plain_cell(Estimate(0.012344, 0.0123, 0.0124, 9)), Cell("0.01234", "0.0123 to 0.0124")),
        (plain_cell(Estimate(0.0, 0.0, 0.0, 9)), Cell("0")),  # such as the seed's divergence from itself
        (plain_cell(None), Cell("-")),
    ],
)
def test_a_cell_holds_a_figure_and_its_interval_where_that_has_a_width(cell, expected):
    assert cell == expected


@pytest.mark.parametrize(
    ("value", "text"), [(12.345, "12.35"), (1234.5, "1,234"), (2e7, "2e+07"), (0.00012, "0.00012")]
)
def test_a_number_has_the_digits_that_a_person_reads(value, text):
    assert digits(value, 4) == text


def test_only_rows_that_some_model_has_are_in_a_section():
    titles = [section.title for section in sections(full_report(models=(seed_model(), model("pruned", 24))))]
    assert titles == ["Size and cost", "Held-out rows", "General prompts: what was forgotten"]
