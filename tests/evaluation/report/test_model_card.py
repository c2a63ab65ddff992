import dataclasses

from axolotl_sdft.evaluation.report.model_card import model_card_section
from tests.evaluation.reports import full_report, model, seed_model


def table_rows(card):
    return [line for line in card.splitlines() if line.startswith("|")]


def test_the_section_says_the_verdict_both_figures_and_how_to_paste_it():
    card = model_card_section(full_report())
    assert card.startswith("<!-- Paste this section into the README.md of the model.")
    assert "The trained model: 20 % smaller, 20 % faster; task 63 → 98 % of the seed model's" in card
    assert "- The task: 97.9 % (94.9 to 101) of the seed model's, by the right answers on held-out rows." in card
    assert "- Everything else: 81.2 % (78.2 to 84.2) of the seed model's, by the tasks of" in card
    assert "come back last, if at all (arXiv 2602.01997)" in card


def test_the_table_has_a_column_for_each_model_and_intervals_in_brackets():
    rows = table_rows(model_card_section(full_report()))
    assert rows[:2] == ["|  | seed | pruned | trained |", "| --- | ---: | ---: | ---: |"]
    assert "| parameters | 30.0 k | 24.0 k | 24.0 k |" in rows
    assert "| gsm8k | 40.0 % (38.0 to 42.0) | 31.0 % (29.0 to 33.0) | 35.5 % (33.5 to 37.5) |" in rows
    assert len({row.count("|") for row in rows}) == 1


def test_the_section_says_how_each_figure_was_measured():
    card = model_card_section(full_report())
    for line in (
        "- In brackets: 95 % confidence intervals, by 1,000 bootstrap resamples of the rows.",
        "- Right answers: greedy answers to 60 held-out prompts that pass: `numeric_answer`.",
        "- Tasks: lm-evaluation-harness, gsm8k (5 shots).",
        "- Generation: one sequence, 128 tokens of prompt and 64 new ones,",
        "- Versions: axolotl-sdft 9.9.",
    ):
        assert line in card


def test_no_folder_of_this_machine_is_named():
    assert "/models" not in model_card_section(full_report())


def test_names_can_not_break_the_table_or_the_markup():
    hostile = "a|b\n**c** <script> `d`"
    models = (seed_model(), dataclasses.replace(model("x", 24), name=hostile))
    card = model_card_section(full_report(models=models))
    assert table_rows(card)[0] == r"|  | seed | a\|b \*\*c\*\* \<script\> \`d\` |"


def test_a_report_without_quality_has_a_table_all_the_same():
    card = model_card_section(full_report(models=(seed_model(),)))
    assert "| layers | 30 |" in card
    assert "by the likelihood of" not in card
