"""What a value holds is told in the same words in every process, and other values in others."""

import json
import re
import subprocess
import sys
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from axolotl_sdft.core.callables import plain_value


class Colour(Enum):
    RED = "red"


def told(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=plain_value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (date(2026, 1, 2), "2026-01-02"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), "2026-01-02T03:04:05+00:00"),
        (time(3, 4), "03:04:00"),
        (timedelta(days=-1, seconds=2), "-1 days 2 s 0 us"),
        (Decimal("1.50"), "1.50"),
        (PurePosixPath("a/b"), "a/b"),
        (Colour.RED, "red"),
        (re.compile("a+"), ["a+", 32]),
        ({"b", "a", 3}, ['"a"', '"b"', "3"]),
        (MappingProxyType({"a": {1}}), {"a": ["1"]}),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.array([{"a": 1}, None], dtype=object), [{"a": 1}, None]),
    ],
)
def test_a_value_is_told_by_what_it_holds(value: Any, expected: Any):
    assert json.loads(told(value)) == expected


def picture(mode: str, size: tuple[int, int], palette: list[int] | None = None) -> Any:
    made = pytest.importorskip("PIL.Image").new(mode, size)
    if palette:
        made.putpalette(palette)
    return made


LOOK_ALIKE = {
    "arrays of two shapes": lambda: (np.zeros((2, 3)), np.zeros((3, 2))),
    "arrays of two dtypes": lambda: (np.zeros(2, np.int32), np.zeros(2, np.float32)),
    "long arrays that differ in the middle": lambda: (np.zeros(9999), np.eye(1, 9999, 5000)[0]),
    "pictures of two sizes": lambda: (picture("L", (2, 8)), picture("L", (4, 4))),
    "pictures of two palettes": lambda: (picture("P", (2, 2), [0] * 3), picture("P", (2, 2), [255] * 3)),
    "bytes": lambda: (b"one", b"two"),
}


@pytest.mark.parametrize("make", LOOK_ALIKE.values(), ids=LOOK_ALIKE)
def test_values_that_look_alike_are_told_apart(make: Any):
    first, second = make()
    assert told(first) == told(make()[0]) != told(second)


def test_tensors_are_told_in_full():
    torch = pytest.importorskip("torch")
    values = torch.zeros(3000, dtype=torch.bfloat16, requires_grad=True)
    others = torch.zeros(3000, dtype=torch.bfloat16).index_fill(0, torch.tensor([1500]), 1.0)
    assert told(values) == told(values.detach().clone()) != told(others)


def test_sets_are_told_in_one_order_in_every_process():
    code = (
        "import json; from axolotl_sdft.core.callables import plain_value; "
        "print(json.dumps({str(n) for n in range(50)}, default=plain_value))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("value", [object(), iter([1]), {"a": object()}])
def test_an_object_without_a_plain_form_is_named(value: Any):
    with pytest.raises(TypeError, match=r"a builtins\.(object|list_iterator) has no plain form"):
        told(value)
