import pytest

from tests.benchmarks.effect_forgetting import equal_skill, equal_skill_table, forgotten_at


def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
    """Points of skill and of what is forgotten; skill is the same on both kinds of answers."""
    return [{"original_nll": nll, "rewritten_nll": nll, "others_kl": kl} for nll, kl in points]


PLAIN = curve((3.0, 0.0), (2.0, 0.4), (1.0, 0.8))
OTHER = curve((3.0, 0.0), (2.5, 0.1), (2.0, 0.1), (2.2, 0.9))


def test_what_is_forgotten_at_a_level_is_read_between_the_points():
    assert forgotten_at(PLAIN, "original", 1.5) == pytest.approx(0.6)


def test_a_curve_is_read_where_it_first_comes_down_to_a_level():
    there_and_back = curve((3.0, 0.0), (2.0, 0.2), (3.0, 0.5), (1.0, 0.9))
    assert forgotten_at(there_and_back, "original", 2.5) == pytest.approx(0.1)


def test_two_ways_are_compared_at_the_best_skill_that_both_reach_and_on_the_way_there():
    assert equal_skill(PLAIN, OTHER, "original", 1.0) == pytest.approx((2.0, 0.4, 0.1))
    assert equal_skill(PLAIN, OTHER, "original", 0.5) == pytest.approx((2.5, 0.2, 0.1))


def test_rounding_does_not_put_a_level_out_of_reach():
    assert 1.58 + (0.57 - 1.58) < 0.57
    plain, other = curve((1.58, 0.0), (0.57, 0.2)), curve((1.58, 0.0), (0.5, 0.1))
    assert equal_skill(plain, other, "original", 1.0)[1] == pytest.approx(0.2)


def test_ways_that_never_improve_are_not_compared():
    assert equal_skill(PLAIN, curve((3.0, 0.0), (3.1, 0.2)), "original", 1.0) is None


def test_the_table_holds_each_way_against_plain_training_with_the_same_seed():
    found = {("dolly", "plain", 0): {"points": PLAIN}, ("dolly", "sdft", 0): {"points": OTHER}}
    found["dolly", "sdft", 1] = {"points": OTHER}  # plain training with this seed has not been run
    lines = equal_skill_table(found, ["dolly"]).splitlines()
    assert (
        lines[3] == "| Dolly | SDFT, greedy | original answers | all that both reach | 2.000 | 0.400 | 0.100 | 0.25 |"
    )
    assert len(lines) == 2 + 4
