"""The tables of templates and checks that the documentation shows."""

from axolotl_sdft.cli.settings_reference import checks_table, refreshed, templates_table
from axolotl_sdft.distillation.checks import BUILT_IN as CHECKS
from axolotl_sdft.distillation.templates import BUILT_IN as TEMPLATES


def test_each_template_has_a_row_with_what_it_does_and_when_to_pick_it():
    heads, _, *rows = templates_table().splitlines()
    assert heads == "| Template | What it does | When to pick it |"
    assert [row.split("`")[1] for row in rows] == list(TEMPLATES)
    assert all(cell.strip() for row in rows for cell in row.strip("|").split(" | "))


def test_each_check_has_a_row_with_its_options_and_their_defaults():
    heads, _, *rows = checks_table().splitlines()
    assert heads == "| Check | What it does | Options |"
    assert [row.split("`")[1] for row in rows] == list(CHECKS)
    [length_ratio] = [row for row in rows if row.startswith("| `length_ratio`")]
    assert length_ratio.endswith("| `min: 0.25`, `max: 4.0`, `slack: 20` |")
    [leak] = [row for row in rows if row.startswith("| `leak`")]
    assert leak.endswith("| `phrases: []` |")


def test_tables_between_markers_are_brought_up_to_date_and_the_rest_is_left_as_it_is():
    text = "before\n<!-- table:checks -->\nold\n<!-- /table:checks -->\nafter <!-- table:templates -->"
    fresh = refreshed(text)
    assert fresh == text.replace("old", checks_table())
    assert refreshed(fresh) == fresh
