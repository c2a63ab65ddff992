"""What is wrong with a YAML file itself is one line that names the file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_sdft.config import yaml_file
from axolotl_sdft.config.yaml_file import read_yaml_file
from axolotl_sdft.core.errors import ConfigError


@pytest.fixture
def read(tmp_path):
    """Read bytes, or a text in UTF-8, as a configuration."""

    def read_content(content):
        path = tmp_path / "mine.yml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_yaml_file(path)

    return read_content


def aliases(levels):
    """Ten values, and lists of ten times the list before: 10 ** levels values in a few hundred bytes."""
    first = "l0: &l0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    return first + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, levels))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("base_model: Größe\n".encode("latin-1"), r"mine\.yml is not UTF-8 \(byte 0xf6 at 14\); save it as UTF-8"),
        ("base_model: x\n".encode("utf-16"), r"is not UTF-8 \(it looks like UTF-16\)"),
        ("a: [1", "is not valid YAML: line 1, column 6: while parsing a flow sequence"),
        ("a:\n\tb: 1", "line 2, column 1: .*found character '\\\\t'"),
        ("a: b\0", "is not valid YAML: unacceptable character #x0000"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: expected a single document"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
        ("a: *nowhere", "found undefined alias 'nowhere'"),
        ("? [a]\n: b\n", "found unhashable key"),
        ("a: 2024-13-45", "holds a value that YAML can't read: month must be in 1..12; put it in quotes"),
        ("", "holds no keys"),
        ("- a\n", "holds no keys"),
        ("a: " + "[" * 50_000, "is nested too deeply; a configuration has at most 100 levels"),
        ("a: " + "[" * 150 + "]" * 150, "is nested too deeply"),
        (aliases(12), "holds more than 200,000 values, its aliases"),
        ("a: 1\nb: &b [1, *b]\n", r"line 2: a value contains itself by an alias \(\*name\)"),
    ],
    ids=range(16),
)
def test_a_file_that_can_not_be_a_configuration_is_refused_in_one_line(read, content, message):
    with pytest.raises(ConfigError, match=message) as refused:
        read(content)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_too_large_is_not_parsed(read, monkeypatch):
    monkeypatch.setattr(yaml_file, "MAX_BYTES", 10)
    with pytest.raises(ConfigError, match="has 11 bytes; a configuration has at most 10"):
        read("a: 12345678")


def test_a_folder_is_refused_as_one(tmp_path):
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        read_yaml_file(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_text(read):
    file = read(b"\xef\xbb\xbf# title: A\na: 1\n")
    assert (file.text, file.values) == ("# title: A\na: 1\n", {"a": 1})


def test_a_few_aliases_and_merge_keys_are_read_as_yaml_says(read):
    file = read("a: &a {b: 1, c: 2}\nd: *a\ne: {<<: *a, c: 3}\n")
    assert file.values == {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 2}, "e": {"b": 1, "c": 3}}
    assert file.repeated == ()


def test_a_key_that_stands_twice_is_told_with_both_lines_at_any_depth(read):
    file = read("a: 1\nb:\n  c: 1\n  c: 2\nd:\n  - {e: 1}\n  - {e: 1, f: 2, e: 3}\na: 4\n")
    told = [(each.key, each.first_line, each.last_line) for each in file.repeated]
    assert told == [("b.c", 3, 4), ("d[1].e", 7, 7), ("a", 1, 8)]
    assert file.repeated[-1].sentence() == "stands there twice, in lines 1 and 8, and only the last one counts"
    assert file.values["a"] == 4


@given(st.binary(max_size=200))
def test_no_content_raises_anything_but_our_own_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("yaml") / "any.yml"
    path.write_bytes(content)
    try:
        message = ""
        assert isinstance(read_yaml_file(path).values, dict)
    except ConfigError as err:
        message = str(err)
    assert "\n" not in message
