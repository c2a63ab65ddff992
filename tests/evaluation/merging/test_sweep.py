from pathlib import Path

from axolotl_sdft.evaluation.figures import Estimate, LikelihoodFigures
from axolotl_sdft.evaluation.merging.sweep import Candidate, choice_lines, choose, sweep_lines


def figures(perplexity, kl, spread=None):
    ends = (None, None) if spread is None else (perplexity - spread, perplexity + spread)
    return LikelihoodFigures(
        *(Estimate(1.0, None, None, 40), Estimate(perplexity, *ends, 40), Estimate(kl, None, None, 40)),
        Estimate(1.0, None, None, 40),
    )


def candidates(*measured, spread=None):
    """Give (perplexity, KL) at ratios 0, 0.25, 0.5 and so on; None for a perplexity that was not measured."""
    return [
        Candidate(
            n / 4,
            Path(f"/merged/{n / 4:g}"),
            None if perplexity is None else figures(perplexity, 9.0, spread),
            None if kl is None else figures(9.0, kl),
        )
        for n, (perplexity, kl) in enumerate(measured)
    ]


def test_of_ratios_as_good_as_the_best_the_one_that_forgot_least_is_taken():
    # 14 and 10 plus or minus 1 don't overlap; 11.5, 10.5 and 10 do.
    choice = choose(candidates((14.0, 0.0), (11.5, 0.1), (10.5, 0.3), (10.0, 0.5), spread=1.0))
    assert (choice.best.ratio, choice.taken.ratio) == (0.75, 0.25)


def test_without_intervals_only_an_equal_perplexity_is_as_good():
    choice = choose(candidates((10.0, 0.2), (10.0, 0.1), (10.1, 0.0)))
    assert choice.taken.ratio == 0.25


def test_an_end_that_touches_the_other_interval_overlaps_it():
    assert choose(candidates((12.0, 0.0), (10.0, 0.5), spread=1.0)).taken.ratio == 0.0
    assert choose(candidates((12.1, 0.0), (10.0, 0.5), spread=1.0)).taken.ratio == 0.25


def test_without_general_prompts_the_best_is_taken_and_without_held_out_rows_none():
    choice = choose(candidates((12.0, None), (10.0, None)))
    assert choice.best == choice.taken
    assert choice.best.ratio == 0.25
    assert choose(candidates((None, 0.1), (None, 0.2))) is None
    assert list(choice_lines(None)) == [
        "no ratio is marked: without held-out rows nothing says how well a merge does the task"
    ]


def test_the_table_shows_intervals_marks_and_folders():
    swept = candidates((12.0, 0.0), (10.0, 0.25), (11.0, 0.125), (None, None), spread=1.0)
    assert list(sweep_lines(swept, choose(swept))) == [
        "ratio  held-out perplexity  KL to the seed model",
        "0      12.0 (11.0 to 13.0)  0                     take",
        "0.25   10.0 (9.00 to 11.0)  0.250                 best",
        "0.5    11.0 (10.0 to 12.0)  0.125",
        "0.75   -                    -",
        "",
        *(f"{ratio}: /merged/{ratio}" for ratio in ("0", "0.25", "0.5", "0.75")),
    ]


def test_what_to_take_is_said_with_the_reason():
    apart, same = candidates((12.0, 0.0), (10.0, 0.5), spread=1.0), candidates((10.0, 0.0), (12.0, 0.5))
    assert list(choice_lines(choose(apart))) == [
        "take ratio 0: its held-out perplexity can't be told from that of the best, 0.25, and of such ratios it has "
        "forgotten least"
    ]
    assert list(choice_lines(choose(same))) == [
        "take ratio 0: it predicts held-out answers best, and none as good forgot less"
    ]
