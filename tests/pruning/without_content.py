"""Marks for tests that run models on torch's meta device, which older versions of transformers can't do for all."""

import pytest
from transformers import cache_utils
from transformers.utils.generic import maybe_autocast


def _knows_meta() -> bool:
    try:
        with maybe_autocast(device_type="meta", enabled=False):
            return True
    except RuntimeError:
        return False


runs_without_content = pytest.mark.skipif(
    not _knows_meta(), reason="this transformers can't compute rotary angles without content"
)
keeps_states_in_caches = pytest.mark.skipif(
    not hasattr(cache_utils, "LinearAttentionLayer"), reason="this transformers keeps recurrent states elsewhere"
)
