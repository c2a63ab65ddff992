"""Options of answer checks, such as ``- length_ratio: {min: 0.5}``, and checks made of a score and a threshold.

A check declares its options as keyword-only parameters with defaults; their annotations say what may be written. What
the settings can't know, such as a package that is missing, a check finds out in its ``prepare`` function.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from axolotl_sdft.config import nearest_key_hint
from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.distillation.interfaces import AnswerCheck
from axolotl_sdft.inference.interfaces import Answer, Target

YAML_KEY = "self_distillation.checks"
TEMPLATE_SENTENCES = "template_sentences"
"""No option: a check with a parameter of this name is given the wording of the rewriting template."""

NOTHING_TO_COMPARE = "the reference holds no"
"""How a reason begins where the original answer lacks what a check compares: it tells nothing of the rewritten one."""

_PREPARE = "prepare"
_Check = TypeVar("_Check", bound=Callable[..., str | None])


def prepared_by(prepare: Callable[..., None]) -> Callable[[_Check], _Check]:
    """Let ``prepare(**options)`` run when a check is named in the settings, before any work starts.

    It raises ConfigError where options contradict each other and MissingExtraError where a package is missing.
    """

    def mark(check: _Check) -> _Check:
        setattr(check, _PREPARE, prepare)
        return check

    return mark


def with_options(
    name: str, check: Callable[..., str | None], options: Mapping[str, Any], template_sentences: tuple[str, ...]
) -> AnswerCheck:
    """Return a check whose options are set, prepared for use.

    Raises:
        ConfigError: An option is unknown or its value is not allowed; the message names the check and the option.
        MissingExtraError: The check needs a package that is not installed.
    """
    keywords = {parameter.name: parameter for parameter in _keyword_parameters(check)}
    given = {TEMPLATE_SENTENCES: template_sentences} if TEMPLATE_SENTENCES in keywords else {}
    checked = _validated(name, check, keywords, options)
    prepare = getattr(check, _PREPARE, None)
    if prepare is not None:
        prepare(**checked)
    return partial(check, **checked, **given) if checked or given else check


def keyword_options(check: Callable[..., str | None]) -> dict[str, Any]:
    """Return the options of a check with their defaults, in the order in which it declares them."""
    return {
        parameter.name: parameter.default
        for parameter in _keyword_parameters(check)
        if parameter.name != TEMPLATE_SENTENCES
    }


def _keyword_parameters(check: Callable[..., str | None]) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(check).parameters.values()
    except (TypeError, ValueError):  # some builtins tell no signature
        return []
    return [parameter for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def _validated(
    name: str, check: Callable[..., str | None], keywords: Mapping[str, inspect.Parameter], options: Mapping[str, Any]
) -> dict[str, Any]:
    known = [option for option in keywords if option != TEMPLATE_SENTENCES]
    for option in options:
        if option not in known:
            hint = nearest_key_hint(str(option), known) if known else "it takes none; write the name alone"
            raise ConfigError(f"{YAML_KEY}: the check {name} has no option {option!r}; {hint}")
    if not known:
        return {}
    fields: dict[str, Any] = {
        option: (
            Any if keywords[option].annotation is inspect.Parameter.empty else keywords[option].annotation,
            keywords[option].default,
        )
        for option in known
    }
    module = getattr(check, "__module__", type(check).__module__)
    model: type[BaseModel] = create_model(
        f"Options of {name}", __config__=ConfigDict(extra="forbid", strict=False), __module__=module, **fields
    )
    try:
        values = model(**options)
    except ValidationError as err:
        fault = err.errors()[0]
        option = ".".join(str(part) for part in fault["loc"])
        raise ConfigError(f"{YAML_KEY}: the check {name} has {option}: {fault['input']!r}; {fault['msg']}") from err
    return {option: getattr(values, option) for option in known}


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
