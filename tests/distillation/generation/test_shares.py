"""Which rank asks which questions of a round."""

from types import SimpleNamespace

import numpy as np
import pytest

from axolotl_sdft.distillation.generation.rounds import Generation, RoundStats
from axolotl_sdft.inference.interfaces import Prompt


class OneByOne:
    def batches(self, prompts):
        return [[prompt] for prompt in prompts]


class OneForAll(OneByOne):
    serves_all_ranks = True


def rows_of(rank, backend, monkeypatch, num_rows=5, world_size=2):
    """The rows that a rank asks about in a round over all rows."""
    spec = SimpleNamespace(content=SimpleNamespace(num_targets=np.ones(num_rows, dtype=np.int64)))
    group = SimpleNamespace(rank=rank, world_size=world_size)
    generation = Generation(spec, backend, set(), None, group)
    prompts = [Prompt((row, 0), ({"role": "user", "content": f"row {row}"},)) for row in range(num_rows)]
    asked = [SimpleNamespace(prompt=prompt, key=prompt.key) for prompt in prompts]
    monkeypatch.setattr(generation, "_windows", lambda: iter([range(num_rows)]))
    monkeypatch.setattr(generation, "_questions", lambda *arguments: asked)
    return [prompt.key[0] for batch in generation._own_batches(0, 0, RoundStats()) for prompt in batch]


@pytest.mark.parametrize(
    ("backend", "main", "other"), [(OneByOne(), [0, 2, 4], [1, 3]), (OneForAll(), [0, 1, 2, 3, 4], [])]
)
def test_ranks_ask_their_shares_unless_a_backend_serves_all_of_them(monkeypatch, backend, main, other):
    assert rows_of(0, backend, monkeypatch) == main
    assert rows_of(1, backend, monkeypatch) == other
