import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_garbage_collection() -> Iterator[None]:
    """Each Trainer collects garbage, which takes a second when all imported modules are looked through again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
