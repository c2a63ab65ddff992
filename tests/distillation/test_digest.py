"""What a dataset holds has one digest, wherever its rows lie."""

from io import BytesIO

import pytest
from datasets import Dataset, Features, Image, Value

from axolotl_sdft.core.errors import DatasetError
from axolotl_sdft.distillation import digest
from axolotl_sdft.distillation.digest import digest_dataset, encoded
from axolotl_sdft.distillation.rows.formats import resolve_row_format
from axolotl_sdft.distillation.rows.validation import stored_rows
from axolotl_sdft.distillation.templates import resolve_template


def digests(rows):
    row_format, template = resolve_row_format({"type": "alpaca"}), resolve_template("reference", ())
    content = digest_dataset(stored_rows(rows, "dataset"), row_format, [template])
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


QA = [("Hi", "Hello."), ("Bye", "See you."), ("Sum?", "4"), ("More?", "No.")]


def questions(rows, **columns):
    return Dataset.from_dict(
        {"instruction": [asked for asked, _ in rows], "output": [said for _, said in rows], **columns}
    )


def test_the_digest_does_not_depend_on_how_the_rows_are_stored():
    plain = digests(questions(QA))
    chosen = questions([*QA[::-1], ("Not", "this")]).select([3, 2, 1, 0])
    swapped = questions(QA).select_columns(["output", "instruction"])
    assert digests(chosen) == digests(swapped) == plain
    assert digests(questions([QA[1], QA[0], *QA[2:]])) != plain


def test_a_dataset_longer_than_a_slice_is_read_to_its_end(monkeypatch):
    monkeypatch.setattr(digest, "_SLICE_ROWS", 3)
    content = digest.digest_dataset(
        questions(QA), resolve_row_format({"type": "alpaca"}), [resolve_template("unaided", ())]
    )
    assert content.num_targets.tolist() == [1, 1, 1, 1]
    assert len({bytes(one) for one in content.first_questions}) == 4
    others = digests(questions([*QA[:3], ("More?", "Yes.")]))
    assert others[0] != content.rows_digest


def test_what_moves_from_one_column_to_another_changes_the_digest():
    one, other = (questions(QA, note=note, tag=tag) for note, tag in ((["x"] * 4, [""] * 4), ([""] * 4, ["x"] * 4)))
    assert digests(one)[0] != digests(other)[0]


COUNTED = {
    "alpaca": ({"type": "alpaca"}, {"instruction": "Hi", "output": "Hello."}),
    "a null": ({"type": "alpaca"}, {"instruction": "Hi", "output": None}),
    "a chat": (
        {"type": "chat_template"},
        {"messages": [{"role": role, "content": role} for role in ("user", "assistant", "observation", "assistant")]},
    ),
}


@pytest.mark.parametrize(("settings", "row"), COUNTED.values(), ids=COUNTED)
def test_counting_targets_and_what_is_left_alone_at_once_tells_the_same(settings, row):
    row_format = resolve_row_format(settings)
    assert row_format.count_targets(row) == (row_format.num_targets(row), row_format.left_alone(row))
