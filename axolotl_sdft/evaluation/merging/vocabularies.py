"""Tells whether two models mean the same tokens by the rows of their embeddings. No torch is imported here.

Row 49152 of one may stand for ``<tool>`` and that of the other for ``<think>``, in checkpoints whose shapes agree.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from axolotl_sdft.core.errors import ConfigError, first_line

LOG = logging.getLogger(__name__)

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
)
_WAY_OUT = (
    "merge models that were trained with the same tokens at the same ids; where reserved tokens were only renamed "
    "(added_tokens_overrides), save the other model with that tokenizer too"
)

Vocabulary = Mapping[str, int]
"""Tokens with their ids."""


def check_same_tokens(first_dir: Path, second_dir: Path) -> None:
    """Return when two folders hold tokenizers that agree in the id of each token, as far as that can be known.

    Chat templates and special roles may differ. The first model's tokenizer becomes the merged model's, so it may know
    more tokens than the second, not less. What can't be compared is logged.

    Raises:
        ConfigError: A token has another id in the second tokenizer, or an id stands for another token there, or the
            first lacks a token. The message names a token and its ids.
    """
    if _digests(first_dir) == _digests(second_dir):
        if not has_tokenizer(first_dir):
            LOG.warning("neither %s nor %s holds a tokenizer, so their tokens are not compared", first_dir, second_dir)
        return
    first, second = _vocabulary(first_dir), _vocabulary(second_dir)
    if first is None or second is None:
        return
    fault = _moved_token(first_dir, first, second_dir, second) or _renamed_token(first_dir, first, second_dir, second)
    if fault is not None:
        raise ConfigError(f"{fault}, so the same row of the embeddings means different tokens; {_WAY_OUT}")
    _check_extra_tokens(first_dir, first, second_dir, second)


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder holds files of a tokenizer."""
    return bool(_digests(folder))


def _digests(folder: Path) -> dict[str, str]:
    files = [folder / name for name in _TOKENIZER_FILES]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


def _vocabulary(folder: Path) -> Vocabulary | None:
    """Return what the tokenizer of a folder knows, added tokens among them; None, with a word, where none can be read.

    transformers reads it: what counts is what a user of the merged model will get.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        LOG.warning("%s holds no tokenizer, so its tokens are not compared with those of the other model", folder)
        return None
    try:
        # Code of its own is not run, and not asked about.
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return tokenizer.get_vocab()
    except Exception as err:  # each kind of tokenizer fails in its own way
        LOG.warning(
            "the tokenizer of %s can't be read (%s), so its tokens are not compared with those of the other model",
            *(folder, first_line(err)),
        )
        return None


def _moved_token(first_dir: Path, first: Vocabulary, second_dir: Path, second: Vocabulary) -> str | None:
    """Say which token has two ids, the one with the lowest id in the first vocabulary; None where there is none."""
    moved = [token for token, number in first.items() if second.get(token, number) != number]
    if not moved:
        return None
    token = min(moved, key=first.__getitem__)
    return (
        f"token {token!r} has id {first[token]} in {first_dir}, but {second[token]} in {second_dir}"
        f"{_and_others(len(moved) - 1)}"
    )


def _renamed_token(first_dir: Path, first: Vocabulary, second_dir: Path, second: Vocabulary) -> str | None:
    """Say which id stands for two tokens; None where there is none."""
    names = {number: token for token, number in second.items()}
    renamed = [token for token, number in first.items() if token not in second and number in names]
    if not renamed:
        return None
    token = min(renamed, key=first.__getitem__)
    number = first[token]
    return (
        f"id {number} is token {token!r} in {first_dir}, but {names[number]!r} in {second_dir}"
        f"{_and_others(len(renamed) - 1)}"
    )


def _check_extra_tokens(first_dir: Path, first: Vocabulary, second_dir: Path, second: Vocabulary) -> None:
    """Refuse tokens that only the second tokenizer knows: the merged model would lose their names."""
    lost = [token for token in second if token not in first]
    if lost:
        token = min(lost, key=second.__getitem__)
        raise ConfigError(
            f"token {token!r} has id {second[token]} in {second_dir}, but the tokenizer of {first_dir}, which the "
            f"merged model gets, has no token there{_and_others(len(lost) - 1)}; name the "
            "model that knows it first, with ratio counted from the other end"
        )
    extra = [token for token in first if token not in second]
    if extra:
        LOG.info(
            "%d tokens, such as %r, are known to %s alone; their rows are merged with rows that %s does not use",
            *(len(extra), min(extra, key=first.__getitem__), first_dir, second_dir),
        )


def _and_others(count: int) -> str:
    return f" (and {count} more)" if count else ""
