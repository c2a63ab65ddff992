"""How a model predicts given answers, beside the seed model, and how good that makes it in percent of the seed model.

The answers are those of held-out rows, or the seed model's own to general prompts: there the divergence is what a model
has forgotten. The seed model's tokenizer and chat template encode them for every model, so that all are asked the same.

Shapes: N answer tokens of all rows of a batch, C of them in a chunk, V vocabulary.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from axolotl_sdft.core.errors import CheckpointError, ConfigError, DatasetError
from axolotl_sdft.core.terminal import progress
from axolotl_sdft.evaluation.figures import Estimate, LikelihoodFigures
from axolotl_sdft.evaluation.measures.answer_accuracy import Written, require_template, written_answers
from axolotl_sdft.evaluation.measures.bootstrap import Resampler, transformed
from axolotl_sdft.inference.interfaces import Target
from axolotl_sdft.inference.likelihood import (
    AnswerBatch,
    ScoredIds,
    answer_chunks,
    measured_in_batches,
)
from axolotl_sdft.inference.loading import context_length
from axolotl_sdft.inference.prompts import answer_ids, prompt_ids

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowSums:
    """Sums over the tokens of one answer."""

    tokens: int
    nll: float
    """Negative log-likelihood of the answer, in nats."""

    kl: float
    """``KL(seed || model)`` summed over the tokens, in nats."""

    agreement: int
    """Tokens at which model and seed model hold the same one most likely."""


def encode_targets(
    tokenizer: Any,
    targets: Sequence[Target],
    sequence_len: int,
    template_arguments: Mapping[str, Any] | None = None,
) -> tuple[list[ScoredIds], int]:
    """Return reference answers after their conversations, as token ids, and how many targets are left out.

    The seed model's chat template wraps the conversation, and the token that ends the turn counts as part of the
    answer: as where the distribution gap is measured. Longer texts are cut at their end. Left out is an answer that is
    empty, of which nothing remains, or whose conversation the chat template refuses.

    Args:
        tokenizer: That of the seed model.
        targets: What is answered, and how.
        sequence_len: Longest text, in tokens.
        template_arguments: What the chat template is given besides.

    Raises:
        ConfigError: The tokenizer has no chat template.
    """
    require_template(tokenizer)
    scored, refusals = [], []
    for target in targets:
        if target.reference.strip():
            try:
                prompt = prompt_ids(tokenizer, target.context, template_arguments)
            except DatasetError as err:
                refusals.append(err)
                continue
            ids = [*prompt, *answer_ids(tokenizer, target.reference, template_arguments)][:sequence_len]
            scored.append(ScoredIds(ids, max(0, len(ids) - len(prompt))))
    if refusals:
        LOG.warning("%d of %d held-out answers are left out: %s", len(refusals), len(targets), refusals[0])
    kept = [text for text in scored if text.num_answer]
    return kept, len(targets) - len(kept)


def seed_answers(
    seed: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    template_arguments: Mapping[str, Any] | None = None,
) -> list[ScoredIds]:
    """Return the seed model's own greedy answers after their prompts, as the very tokens that it wrote.

    A prompt that the seed model can't answer, since it leaves no room or memory runs out, is left out; the log says so.

    Args:
        seed: The model, in evaluation mode; it is left as it was.
        tokenizer: That of the seed model.
        prompts: What it is asked, each in a chat of its own.
        max_new_tokens: Longest answer, in tokens.
        template_arguments: What the chat template is given besides.

    Raises:
        ConfigError: The tokenizer has no chat template.
    """
    chats = [({"role": "user", "content": prompt},) for prompt in prompts]
    return scored_answers(
        written_answers(seed, tokenizer, chats, max_new_tokens, "answers of the seed model", template_arguments)
    )


def scored_answers(written: Sequence[Written]) -> list[ScoredIds]:
    """Return the seed model's answers as what models are measured on; those that failed are left out, and the log says
    so."""
    failures = [answer.error for answer in written if answer.error is not None]
    if failures:
        LOG.warning("the seed model can't answer %d of %d prompts: %s", len(failures), len(written), failures[0])
    return [ScoredIds(answer.ids, answer.num_new) for answer in written if answer.error is None]


def require_shared_vocabulary(tokenizer: Any, seed_tokenizer: Any, where: str) -> None:
    """Refuse a model whose tokenizer gives other ids to the seed model's tokens.

    Further tokens of its own do no harm, nor do other names of added tokens, as ``added_tokens_overrides`` gives them.

    Args:
        tokenizer: The model's.
        seed_tokenizer: The seed model's.
        where: What the message calls the model.

    Raises:
        CheckpointError: They differ; the message names the first token that does.
    """
    own, expected = tokenizer.get_vocab(), seed_tokenizer.get_vocab()
    names = {number: name for name, number in own.items()}
    added = {number for each in (tokenizer, seed_tokenizer) for number in getattr(each, "added_tokens_decoder", ())}

    def is_renamed(token: str, number: int) -> bool:
        return token not in own and number in added and names.get(number, token) not in expected

    differing = (token for token in sorted(expected, key=expected.__getitem__) if own.get(token) != expected[token])
    token = next((token for token in differing if not is_renamed(token, expected[token])), None)
    if token is not None:
        raise CheckpointError(
            f"recovery_report: {where} has another tokenizer than the seed model (the token {token!r} is number "
            f"{expected[token]} in the seed model's, {own.get(token, 'not there')} in its own), so their predictions "
            "can't be compared token by token; compare models that come from the same seed model"
        )


def answer_statistics(model: Any, seed: Any, answers: Sequence[ScoredIds]) -> list[RowSums]:
    """Return for each answer how the model predicts it, beside the seed model.

    Both models see each text once. Logits are held in float32 for a chunk of tokens at a time. Where one model's
    embeddings are padded to more entries than the other's, the entries that both have are compared. Given the seed
    model itself as ``model``, it runs once, and divergence is exactly 0.

    Args:
        model: What is measured, in evaluation mode.
        seed: The model that it is compared with; each may be on a device of its own.
        answers: Texts as :func:`encode_targets` returns them.

    Raises:
        ConfigError: A text is longer than one of the models takes.
        CheckpointError: A likelihood is not finite: the model is broken, or overflows in its dtype.
    """
    longest = max((len(answer.ids) for answer in answers), default=0)
    for limit in filter(None, map(context_length, (seed, model))):
        if longest > limit:
            raise ConfigError(
                f"recovery_report.held_out.sequence_len lets a text have {longest} tokens, but a model takes at most "
                f"{limit}; lower it to {limit}"
            )
    with progress("likelihood", len(answers), "answers", LOG) as shown:

        def measured(batch: Sequence[ScoredIds]) -> list[RowSums]:
            sums = _batch_sums(model, seed, batch)
            shown.advance(len(batch))
            return sums

        rows = measured_in_batches(answers, measured)
    num_broken = sum(not math.isfinite(row.nll + row.kl) for row in rows)
    if num_broken:
        raise CheckpointError(
            f"recovery_report: {num_broken} of {len(rows)} answers have no finite likelihood under the model or the "
            "seed model; set recovery_report.dtype: float32, and if that doesn't help, its weights are broken"
        )
    return rows


@torch.inference_mode()
def _batch_sums(model: Any, seed: Any, texts: Sequence[ScoredIds]) -> list[RowSums]:
    models = [model] if model is seed else [model, seed]
    chunks = answer_chunks(models, AnswerBatch.of(texts))
    sums_3N = torch.cat([_compared(answers_C, *logits) for logits, answers_C in chunks], dim=1).double()
    rows = (own_3N.sum(1).tolist() for own_3N in sums_3N.split([text.num_answer for text in texts], dim=1))
    return [
        RowSums(text.num_answer, nll, kl, int(agreement))
        for text, (nll, kl, agreement) in zip(texts, rows, strict=True)
    ]


def _compared(answers_C: Tensor, logits_CV: Tensor, seed_CV: Tensor | None = None) -> Tensor:
    """Return each token's negative log-likelihood, KL(seed || model), and whether both hold one most likely, [3, C].

    Without logits of the seed model, the model is the seed model.
    """
    if seed_CV is not None:
        common = min(logits_CV.shape[-1], seed_CV.shape[-1])
        logits_CV, seed_CV = logits_CV[:, :common], seed_CV[:, :common].to(logits_CV.device)
    log_probs_CV = logits_CV.float().log_softmax(-1)
    nll_C = -log_probs_CV.gather(-1, answers_C.to(log_probs_CV.device)[:, None])[:, 0]
    if seed_CV is None:
        return torch.stack((nll_C, torch.zeros_like(nll_C), torch.ones_like(nll_C))).cpu()
    agreement_C = logits_CV.argmax(-1) == seed_CV.argmax(-1)
    seed_log_probs_CV = seed_CV.float().log_softmax(-1)
    terms_CV = seed_log_probs_CV.exp() * (seed_log_probs_CV - log_probs_CV)
    # An entry that the seed model rules out adds nothing. Rounding may leave a hair less than 0 in all.
    kl_C = terms_CV.masked_fill(seed_log_probs_CV == -math.inf, 0.0).sum(-1).clamp(min=0.0)
    return torch.stack((nll_C, kl_C, agreement_C.float())).cpu()


def likelihood_figures(rows: Sequence[RowSums], resampler: Resampler) -> LikelihoodFigures:
    """Return the means per token over all answers, with their intervals.

    Raises:
        ValueError: There are no rows.
    """
    tokens = [row.tokens for row in rows]
    nll = resampler.ratio([row.nll for row in rows], tokens)
    return LikelihoodFigures(
        nll=nll,
        perplexity=transformed(nll, lambda value: float(np.exp(value))),
        kl_to_seed=resampler.ratio([row.kl for row in rows], tokens),
        agreement=resampler.ratio([row.agreement for row in rows], tokens),
    )


@dataclass(frozen=True)
class MeasuredRows:
    """What was measured of a model row by row; empty where something was not. All models have the same rows."""

    held_out: "Sequence[RowSums]" = ()
    general: "Sequence[RowSums]" = ()
    exact_match: Sequence[bool] = ()
    tool_calls: Sequence[bool] = ()
    tasks: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Scores of each question, by task."""


def relative_to_seed(seed: MeasuredRows, model: MeasuredRows, resampler: Resampler) -> dict[str, Estimate]:
    """Return how good a model is, in percent of the seed model, by source; above 100 it is better on that measure.

    ``tasks``: the mean score over the tasks. ``exact_match``: the share of right answers. ``tool_calls``: the share of
    right calls. ``held_out`` and ``general``: the perplexity of the seed model divided by that of the model, ``exp(nll
    of the seed model - nll of the model)``. Rows are resampled for both at once, since both find the same ones hard. A
    source that is missing in one of the two is left out, and so is one in which the seed model scores 0.

    Raises:
        ValueError: Seed model and model were measured on different numbers of rows.
    """
    kept: dict[str, Estimate] = {}
    tasks = [task for task in seed.tasks if task in model.tasks]
    if any(any(seed.tasks[task]) for task in tasks):
        scores = ([rows.tasks[task] for task in tasks] for rows in (model, seed))
        kept["tasks"] = resampler.quotient_of_means(*scores)
    for name in ("exact_match", "tool_calls"):
        of_seed, of_model = getattr(seed, name), getattr(model, name)
        if any(of_seed) and of_model:
            ones = [1] * len(of_seed)
            kept[name] = resampler.quotient(of_model, ones, of_seed, ones)
    for name in ("held_out", "general"):
        rows = getattr(seed, name), getattr(model, name)
        if all(rows):
            kept[name] = _perplexity_quotient(*rows, resampler)
    return {name: transformed(figure, lambda share: 100 * share) for name, figure in kept.items()}


def _perplexity_quotient(seed: "Sequence[RowSums]", model: "Sequence[RowSums]", resampler: Resampler) -> Estimate:
    nll, tokens = ([[getattr(row, name) for row in rows] for rows in (seed, model)] for name in ("nll", "tokens"))
    return resampler.quotient(nll[0], tokens[0], nll[1], tokens[1], np.exp)
