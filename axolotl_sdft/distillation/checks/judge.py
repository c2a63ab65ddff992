"""For plugins: turns a score of an answer, such as a reward model's or a judge's, into a check with a threshold."""

from collections.abc import Callable

from axolotl_sdft.inference.interfaces import Answer, Target


def scored_check(score: Callable[[Answer, Target], float], *, min_score: float) -> Callable[..., str | None]:
    """Return a check that rejects answers with a score below a threshold; users change it as the option ``min_score``.

    ``register("reward", scored_check(my_score, min_score=0.5))`` lets them write ``- reward: {min_score: 0.7}``.
    """
    default = min_score

    def scored(answer: Answer, target: Target, *, min_score: float = default) -> str | None:
        value = score(answer, target)
        # Not value < min_score: a score that is not a number must not pass.
        return None if value >= min_score else f"score {value:.3g}, below {min_score:g}"

    scored.__module__ = (
        getattr(score, "__module__", None) or __name__
    )  # it is the plugin's code that may change or hang
    return scored
