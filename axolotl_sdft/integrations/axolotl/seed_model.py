"""Which model a configuration starts from, before and after pruning."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from axolotl_sdft.core.errors import ConfigError
from axolotl_sdft.integrations.axolotl.blocks import SEED_KEY

_DEFAULT = "tokenizer_default"
_FALLBACK = "tokenizer_default_fallback_"


def seed_of(cfg: Any) -> tuple[str, str | None]:
    """Return the seed model and its revision, whether or not ``base_model`` is the pruned checkpoint by now."""
    return cfg.get(SEED_KEY) or cfg.base_model, cfg.get("revision_of_model")


def seed_dir_of(cfg: Any) -> Path:
    """Return the folder of the seed model; a Hub id is downloaded."""
    from axolotl_sdft.core.model_folder import resolve_seed

    return resolve_seed(*seed_of(cfg))


def yaml_chat_template(cfg: Any, entry: Any = None) -> str | None:
    """Return the chat template that a configuration names, for a seed model without one; None where it names none.

    Axolotl gives it to the tokenizer that is trained. The key may stand in an entry of ``datasets``.

    Raises:
        ConfigError: ``chat_template`` names no template that Axolotl knows, or its Jinja text is missing.
    """
    choice, jinja = _named_template(entry or {})
    if choice is None:
        choice, jinja = _named_template(cfg)
    if choice is None:
        return None
    from axolotl.utils.chat_templates import get_chat_template

    try:
        template = get_chat_template(choice, jinja_template=jinja)
    except ValueError as err:
        raise ConfigError(
            f"chat_template is {choice!r}, which can't be used for the seed model, which has none ({err}); name one of "
            "Axolotl's templates, such as chatml, or write it under chat_template_jinja"
        ) from err
    system = cfg.get("default_system_message")
    return template.replace("You are a helpful assistant.", system) if system and choice == "chatml" else template


def missing_chat_template(cfg: Any, seed_dir: Path, entry: Any = None) -> str | None:
    """Return the chat template that a configuration names where its seed model has none; None where it needs none."""
    if all(_named_template(keys)[0] is None for keys in (entry or {}, cfg)):
        return None
    has_own = _has_chat_template(seed_dir, bool(cfg.get("trust_remote_code")))
    return None if has_own else yaml_chat_template(cfg, entry)


@lru_cache(maxsize=8)
def _has_chat_template(seed_dir: Path, trust_remote_code: bool) -> bool:
    from axolotl_sdft.inference.prompts import is_mistral_common, load_tokenizer

    try:
        tokenizer = load_tokenizer(seed_dir, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):  # there is no tokenizer, which its backend says where it needs one
        return True
    return is_mistral_common(tokenizer) or bool(tokenizer.chat_template)


def _named_template(keys: Any) -> tuple[str | None, str | None]:
    """Return ``chat_template`` and ``chat_template_jinja``; the tokenizer's own one counts as none."""
    jinja = keys.get("chat_template_jinja")
    choice = keys.get("chat_template") or ("jinja" if jinja else None)
    choice = getattr(choice, "value", choice)
    if choice is None or choice == _DEFAULT:
        return None, None
    return str(choice).removeprefix(_FALLBACK), jinja
