"""Reads a YAML file of Axolotl's kind: what is wrong with the file itself becomes one clear line. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from axolotl_sdft.core.errors import ConfigError, first_line

MAX_BYTES = 2_000_000
MAX_DEPTH = 100
MAX_VALUES = 200_000
"""Far above what a configuration needs, and far below what exhausts the memory: aliases can stand for billions."""

_SIGNATURES = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True)
class RepeatedKey:
    """A key that a mapping holds twice; YAML's rule here, and Axolotl's, is that the last one counts."""

    key: str
    """Dotted, such as ``self_distillation.template``."""

    first_line: int
    last_line: int
    """Where it stands, counted from 1."""

    def sentence(self) -> str:
        """Return what happens, without the key."""
        return f"stands there twice, in lines {self.first_line} and {self.last_line}, and only the last one counts"


@dataclass(frozen=True)
class YamlFile:
    """The content of a YAML file."""

    values: dict[Any, Any]
    text: str
    repeated: tuple[RepeatedKey, ...]


def read_yaml_file(path: Path) -> YamlFile:
    """Return the keys of a YAML file, and which of them stand there twice.

    A byte order mark, which Windows programs write, is skipped.

    Raises:
        ConfigError: The file can't be read, is not UTF-8, is not YAML, holds no keys, or is nested deeper or larger
            than a configuration can be, also by aliases of aliases. The message is one line.
    """
    text = _decoded(path)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path} holds no keys; see: axolotl sdft-configs list")
        _require_bounded(node, path)
        repeated = tuple(_repeated_keys(node, ""))  # before merge keys (<<) are resolved, which rewrites the tree
        values = loader.construct_document(node)
    except ConfigError:
        raise
    except yaml.YAMLError as err:
        raise ConfigError(f"{path} is not valid YAML: {_in_one_line(err)}") from err
    except RecursionError as err:
        raise ConfigError(f"{path} is nested too deeply; a configuration has at most {MAX_DEPTH} levels") from err
    except (ValueError, OverflowError) as err:  # such as a date with a 13th month
        raise ConfigError(f"{path} holds a value that YAML can't read: {first_line(err)}; put it in quotes") from err
    return YamlFile(values, text, repeated)


def _decoded(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path} has {size:,} bytes; a configuration has at most {MAX_BYTES:,}")
        data = path.read_bytes()
    except OSError as err:
        raise ConfigError(f"{path} can't be read: {err.strerror}") from err
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        looks_like = _SIGNATURES.get(data[:2])
        found = f"it looks like {looks_like}" if looks_like else f"byte {data[err.start]:#04x} at {err.start}"
        raise ConfigError(f"{path} is not UTF-8 ({found}); save it as UTF-8") from None


def _in_one_line(err: yaml.YAMLError) -> str:
    if isinstance(err, yaml.MarkedYAMLError):
        problem = ", ".join(part for part in (err.context, err.problem) if part)
        mark = err.problem_mark or err.context_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
    return " ".join(str(err).split())


def _require_bounded(root: yaml.Node, path: Path) -> None:
    """Refuse a tree that is too deep or, with its aliases written out, too large. Needs no recursion itself."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    stack: list[tuple[yaml.Node, bool]] = [(root, False)]
    while stack:
        node, is_left = stack.pop()
        if is_left:
            open_nodes.discard(id(node))
            sizes[id(node)] = 1 + sum(sizes[id(child)] for child in _children(node))
            if sizes[id(node)] > MAX_VALUES:
                raise ConfigError(
                    f"{path} holds more than {MAX_VALUES:,} values, its aliases (*name) written out; a configuration "
                    "has hundreds"
                )
        elif id(node) in open_nodes:
            line = node.start_mark.line + 1
            raise ConfigError(f"{path}, line {line}: a value contains itself by an alias (*name); write it out")
        elif id(node) not in sizes:
            open_nodes.add(id(node))
            if len(open_nodes) > MAX_DEPTH:
                raise ConfigError(f"{path} is nested too deeply; a configuration has at most {MAX_DEPTH} levels")
            stack.append((node, True))
            stack.extend((child, False) for child in _children(node))


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _repeated_keys(node: yaml.Node, where: str) -> Iterator[RepeatedKey]:
    """Yield the keys that stand twice in one mapping, at any depth."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _repeated_keys(item, f"{where}[{index}]")
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        name, line = f"{where}.{key.value}" if where else key.value, key.start_mark.line + 1
        if (key.tag, key.value) in lines:
            yield RepeatedKey(name, lines[key.tag, key.value], line)
        lines[key.tag, key.value] = line
        yield from _repeated_keys(value, name)
