"""What a dataset holds has one digest, wherever its rows lie."""

from io import BytesIO

import pytest
from datasets import Dataset, Features, Image, Value

from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.distillation.digest import digest_dataset, encoded
from axolotl_sdft.distillation.rows.formats import resolve_row_format
from axolotl_sdft.distillation.rows.validation import stored_rows
from axolotl_sdft.distillation.templates import resolve_template


def digests(rows):
    row_format, template = resolve_row_format({"type": "alpaca"}), resolve_template("reference", ())
    content = digest_dataset(stored_rows(rows, "dataset"), row_format, template)
    return content.rows_digest, content.requests_digest


def picture(colour):
    pillow = pytest.importorskip("PIL.Image")
    buffer = BytesIO()
    pillow.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def with_photo(photo, number=1):
    features = Features(instruction=Value("string"), output=Value("string"), photo=Image(), id=Value("int64"))
    row = {"instruction": ["Hi"], "output": ["Hello."], "photo": [photo], "id": [number]}
    return Dataset.from_dict(row, features=features)


def test_a_picture_counts_by_its_bytes_not_by_its_place(tmp_path):
    (tmp_path / "one.png").write_bytes(picture("red"))
    (tmp_path / "two.png").write_bytes(picture("red"))
    (tmp_path / "blue.png").write_bytes(picture("blue"))
    one, two, blue = (digests(with_photo(str(tmp_path / name))) for name in ("one.png", "two.png", "blue.png"))
    assert one == two == digests(with_photo({"bytes": picture("red"), "path": None}))
    assert one[0] != blue[0]


def test_a_column_that_plays_no_part_changes_nothing_that_is_asked():
    seven, eight = (digests(with_photo({"bytes": picture("red"), "path": None}, number)) for number in (7, 8))
    assert seven[1] == eight[1]
    assert seven[0] != eight[0]


def test_objects_count_by_their_content():
    pillow = pytest.importorskip("PIL.Image")
    red, again, blue = (pillow.new("RGB", (2, 2), colour) for colour in ("red", "red", "blue"))
    assert encoded({"photo": red}) == encoded({"photo": again}) != encoded({"photo": blue})
    assert encoded({"a": b"1"}) == encoded({"a": bytearray(b"1")}) != encoded({"a": b"2"})


def test_an_object_that_can_not_be_told_is_refused_by_its_type():
    with pytest.raises(DatasetError, match=r"a row can't be told from others \(a builtins\.object .*dataset\.map"):
        encoded({"photo": object()})
