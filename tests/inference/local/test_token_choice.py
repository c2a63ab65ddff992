import math
from collections import Counter
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axolotl_sdft.inference.interfaces import Prompt
from axolotl_sdft.inference.local import sequences
from axolotl_sdft.inference.local.sequences import ActiveSequence, TokenChooser


class Drawn(Random):
    """A source of chance that gives known numbers."""

    def __init__(self, *values):
        super().__init__()
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


def row(temperature=0.0, random=None, ids=(0,)):
    return ActiveSequence(Prompt((0, 0), ()), list(ids), 1, 99, temperature, random)


def logits(*rows):
    """The logits of given probabilities."""
    return torch.tensor(rows).log()


def test_without_temperature_the_most_likely_token_is_taken():
    assert TokenChooser()(logits([0.2, 0.5, 0.3], [0.6, 0.1, 0.3]), [row(), row()]) == [(1, 0.0), (0, 0.0)]


@pytest.mark.parametrize("broken", [[math.nan] * 3, [0.1, math.nan, 0.2], [0.0, math.inf, 0.0], [-math.inf] * 3])
@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_p": 0.9, "top_k": 2}])
def test_a_row_whose_prediction_is_no_number_fails_and_the_others_go_on(broken, settings):
    greedy, sampled, whole, ended = row(), row(1.0, Drawn(0.5)), row(1.0, Drawn(0.0)), row()
    ended.append(2, 0.0, {2})
    scores = torch.tensor([broken, broken, [5.0, -math.inf, -math.inf], broken])

    chosen = TokenChooser(**settings)(scores, [greedy, sampled, whole, ended])

    assert chosen[2] == (0, 0.0)
    assert [bool(each.error) for each in (greedy, sampled, whole, ended)] == [True, True, False, False]
    assert "the model predicts no numbers (NaN)" in greedy.error


@pytest.mark.parametrize(
    ("drawn", "token"),
    # What is left of 1 falls into (0, 0.2], (0.2, 0.2], (0.2, 0.7] or (0.7, 1]: token 1 is never drawn.
    [(0.999, 0), (0.81, 0), (0.79, 2), (0.31, 2), (0.29, 3), (0.0, 3)],
)
def test_a_token_is_drawn_where_the_cumulated_probability_reaches_the_number(drawn, token):
    [(chosen, logprob)] = TokenChooser()(logits([0.2, 0.0, 0.5, 0.3]), [row(1.0, Drawn(drawn))])

    assert chosen == token
    assert logprob == pytest.approx(math.log([0.2, 0.0, 0.5, 0.3][token]), abs=1e-6)


def test_temperature_shapes_the_draw_and_not_the_log_probability():
    # At temperature 0.5, 0.2 : 0.8 become 0.04 : 0.64, the first 1 / 17 of the sum.
    below, above = row(0.5, Drawn(1 - 0.058)), row(0.5, Drawn(1 - 0.059))

    chosen = TokenChooser()(logits([0.2, 0.8], [0.2, 0.8]), [below, above])

    assert [token for token, _ in chosen] == [0, 1]
    assert [logprob for _, logprob in chosen] == pytest.approx([math.log(0.2), math.log(0.8)], abs=1e-6)


@pytest.mark.parametrize("is_sorted_whole", [False, True])
def test_top_p_leaves_the_fewest_tokens_that_hold_so_much(is_sorted_whole, monkeypatch):
    monkeypatch.setattr(sequences, "_MOST_LIKELY", 1 if is_sorted_whole else 4)
    source = Random(5)

    drawn = Counter(
        TokenChooser(top_p=0.75)(logits([0.1, 0.5, 0.05, 0.35]), [row(1.0, source)])[0][0] for _ in range(2000)
    )

    # 0.5 is too little, 0.5 + 0.35 is enough; of 2000 draws, 0.5 / 0.85 are 1176.
    assert drawn.keys() == {1, 3}
    assert drawn[1] == pytest.approx(1176, abs=90)


@settings(max_examples=50)
@given(st.integers(0, 2**20), st.integers(1, 6), st.floats(0.2, 1.0))
def test_a_row_is_sampled_the_same_beside_any_other_rows(seed, num_others, top_p):
    scores = torch.randn(num_others + 1, 40, generator=torch.Generator().manual_seed(seed))
    chooser = TokenChooser(top_p)

    [alone] = chooser(scores[:1], [row(0.8, Random(seed))])
    others = [row(0.0 if number % 2 else 1.3, Random(number)) for number in range(num_others)]
    beside = chooser(scores, [row(0.8, Random(seed)), *others])

    assert beside[0] == pytest.approx(alone, abs=1e-5)


def test_the_repetition_penalty_lowers_what_the_row_has_and_leaves_the_log_probability():
    scores = torch.tensor([[2.0, 1.5, -1.0, -1.4], [2.0, 1.5, -1.0, -1.4], [-3.0, -3.5, -1.0, -1.4]])
    rows = [row(ids=[1, 3]), row(ids=[0, 0, 0]), row(1.0, Drawn(0.4), ids=[2])]

    chosen = TokenChooser(repetition_penalty=1.5)(scores, rows)

    # The first keeps 2; the second has 2 / 1.5 below 1.5. In the third, -1 * 1.5 makes token 3 begin at 0.55 of the sum
    # instead of 0.65, and 0.6 is drawn.
    assert [token for token, _ in chosen] == [0, 1, 3]
    assert chosen[2][1] == pytest.approx(scores[2].log_softmax(-1)[3].item(), abs=1e-6)


@pytest.mark.parametrize(
    ("top_p", "drawn", "token"),
    # Of 0.4, 0.3 and 0.1 the two largest are sampled from, 4/7 and 3/7 of the probability.
    [(1.0, 0.57, 1), (1.0, 0.58, 3), (1.0, 1.0, 3), (0.5, 1.0, 1), (0.6, 1.0, 3)],
)
def test_top_k_leaves_the_most_likely_tokens_of_which_top_p_takes_its_share(top_p, drawn, token):
    chooser = TokenChooser(top_p, top_k=2)
    [(chosen, logprob)] = chooser(logits([0.1, 0.4, 0.2, 0.3]), [row(1.0, Drawn(1 - drawn))])
    assert chosen == token
    assert logprob == pytest.approx(math.log([0.1, 0.4, 0.2, 0.3][token]), abs=1e-6)


def test_top_k_of_one_is_greedy_and_one_above_the_vocabulary_is_all_of_it():
    one = TokenChooser(top_k=1)(logits([0.1, 0.4, 0.2, 0.3]), [row(1.0, Drawn(0.99))])
    every = TokenChooser(top_k=99)(logits([0.1, 0.4, 0.2, 0.3]), [row(1.0, Drawn(0.0))])
    assert (one[0][0], every[0][0]) == (1, 0)
