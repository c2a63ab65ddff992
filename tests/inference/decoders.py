"""Rows for tiny random models, and what plain transformers writes after them."""

import torch

from axolotl_sdft.inference.interfaces import Prompt
from axolotl_sdft.inference.local.sequences import ActiveSequence
from tests.pruning.architectures import build, tiny_config

END = 3
LENGTHS = (20, 9, 14, 24, 8, 15, 11)


def tiny_model(model_type, **changes):
    """A random model of a type, in float32."""
    return build(tiny_config(model_type, **changes))


def rows_of(lengths=LENGTHS, num_new=12, shared=()):
    """Rows with random prompts that begin with the same tokens; none of those has a special meaning."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for number, length in enumerate(lengths):
        ids = [*shared, *torch.randint(5, 60, (length,), generator=generator).tolist()]
        rows.append(ActiveSequence(Prompt((number, 0), ()), ids, len(ids), len(ids) + num_new))
    return rows


@torch.inference_mode()
def plainly_written(model, row, num_new=12):
    """What `generate` writes greedily after a row's prompt when it is alone."""
    ids = torch.tensor([row.ids[: row.num_prompt]])
    settings = {"max_new_tokens": num_new, "do_sample": False, "eos_token_id": END, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, row.num_prompt :].tolist()
