"""Which answers run in circles."""

import pytest

from axolotl_sdft.distillation.checks import repetition
from tests.distillation.checks.samples import asked, written


@pytest.mark.parametrize(
    "text",
    [
        "She has 9 cakes.\n" + "A: 12 - 3 = 9\n" * 8,
        "Tea is good, and " + "pin the tail on the donkey, a " * 7 + "pin the",
        "Tea grows on hills in Asia and it is picked by hand twice a year.\n" * 2,
        "very " * 30,
        "1. Count all of the cups and saucers.\n2. Count all of the cups and saucers.\n"
        "3. Count all of the cups and saucers.\nThen pour.",
    ],
)
def test_an_answer_that_runs_in_circles_is_repetition(text: str):
    assert repetition(written(text), asked()) is not None


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 72.\n\nThe answer is 72.",
        "Gymnast: flexible\nSteel: inflexible\nRubber: flexible\nLeather: flexible\nWood: inflexible\nYoga: flexible",
        "2 x 1 = 2\n2 x 2 = 4\n2 x 3 = 6\n2 x 4 = 8\n2 x 5 = 10\n2 x 6 = 12",
        "if a:\n    return 1\nif b:\n    return 2\nif c:\n    return 3\n}\n}\n}\n}",
        "No, no, no! Tea, tea, tea. Yes, yes, yes.",
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |",
        "|n|n^3|\n|---|---|\n" + "".join(f"|{number}|{number**3}|\n" for number in range(70)),
        "".join(f"{number},{number * 7 % 31}\n" for number in range(70)),
    ],
)
def test_a_list_a_table_or_code_is_no_repetition(text: str):
    assert repetition(written(text), asked()) is None


@pytest.mark.parametrize(
    "text",
    [
        "Tea.\n" + "~~~\n" * 70,
        "Tea " + "-" * 250,
        "Tea " + "* " * 150,
        "Tea" + "." * 300,
        "Tea!" + "\N{HOT BEVERAGE}" * 40,
        "Tea!" + " \U0001f375 \U0001f36a" * 30,
        "Tea." + "\n \n" * 60 + "End",
        "Tea" + " " * 900 + "End",
        " ".join(f"#cup{number}" for number in range(80)),
        " ".join(f"#{word}" for word in ("tea", "mate", "milk", "cake") * 20),
        "Cups: " + ", ".join(str(number) for number in range(1, 200)),
        "".join(f"|{number}|{number + 5}|\n" for number in range(70)),
        "\u0e0a\u0e32" + "\u0e23\u0e49\u0e2d\u0e19" * 30,
        "\u8336" + "\u5f88\u70ed" * 40,
        "\u304a\u8336\u306f\u71b1\u3044\u3002" * 12,
        "Te" + "a" * 200,
        "Mm" + "mjam" * 50,
        "So it is " + "very " * 50 + "hot. The end.",
    ],
)
def test_circles_of_marks_characters_and_numbers_are_repetition(text: str):
    assert repetition(written(text), asked()) is not None


CHORUS = "Pour the tea and pass the cup,\nDrink it while the sun comes up.\n"


@pytest.mark.parametrize(
    "text",
    [
        f"The kettle sings at dawn.\n{CHORUS}The spoon lies on the tray.\n{CHORUS}The leaves are green.\n{CHORUS}",
        "Cups\n- size (in millilitres)\n- colour\nPots\n- size (in millilitres)\n- lid\nTins\n- size (in millilitres)\n"
        "- label\nJars\n- size (in millilitres)\n- age",
        "\n".join(f"| {tea} | hot | yes | no |" for tea in ("Assam", "Oolong", "Sencha", "Matcha", "Ceylon", "Chai")),
        "\n".join(f'{{"name": "{name}", "type": "string", "required": true}},' for name in "abcdefghijkl"),
        "\n".join(f"9 x {number} = {9 * number}" for number in range(1, 21)),
        "Menu\n" + "=" * 80 + "\nTea " + "." * 60 + " 2\nMilk " + "." * 59 + " 1",
        "```c\n" + "\n".join(f"if (cup == {number}) {{ return {number}; }}" for number in range(30)) + "\n```",
    ],
)
def test_refrains_schemas_tables_and_code_repeat_themselves_rightly(text: str):
    assert repetition(written(text), asked()) is None


def test_an_answer_may_count_where_it_is_asked_to():
    count = ", ".join(str(number) for number in range(1, 101))
    assert repetition(written(count), asked("Count from 1 to 100.")) is None
    assert repetition(written(count), asked()) == "counts on 100 times"


def test_a_refrain_passes_where_the_original_has_one():
    song = "Row, row, row your boat gently down the stream.\n" * 4
    assert repetition(written(song), asked()) is not None
    assert repetition(written(song), asked(reference=song)) is None


def test_the_reason_says_how_much_goes_round():
    # "b c" follows "a" eight times: 16 of 17 words, the first three of which begin the loop
    assert repetition(written("a" + " b c" * 8), asked()) == "the last 16 words run in a loop"
