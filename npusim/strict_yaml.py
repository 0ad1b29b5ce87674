"""Reads a YAML 1.2 file that a person wrote, strictly, and remembers on which line each value stands.

Stricter than YAML itself, so that a file means what it looks like: one document, one mapping at the top, text keys, no
key twice, no anchors, aliases, merge keys or tags, no switch to YAML 1.1 (where `no` is false and `12:30` is 750).
Size and nesting are bounded before anything is built, so a hostile file costs neither time nor memory.
"""

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    NodeEvent,
)
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from npusim.errors import UserError

MAX_FILE_BYTES = 64 * 1024
MAX_DEPTH = 8

FieldPath = tuple[str | int, ...]
"""Keys and list indices from the top of the file to a value, e.g. ("sram", "capacity_bytes")."""


@dataclass(frozen=True)
class YamlDocument:
    """A parsed file.

    Attributes:
        source: the file's path as the user gave it, for messages.
        data: plain dicts, lists, strings, ints, floats, bools and None.
        lines: the 1-based line of the key (or list item) at each path; the empty path is the first line of content.
    """

    source: str
    data: dict[str, Any]
    lines: dict[FieldPath, int]

    def where(self, path: FieldPath) -> str:
        """Return "file:line" of `path`, or of its nearest enclosing value that is in the file."""
        while path not in self.lines:
            path = path[:-1]
        return f"{self.source}:{self.lines[path]}"


def read_yaml(path: str | Path) -> YamlDocument:
    """Read and check the YAML file at `path`.

    Raises:
        UserError: the file is missing, unreadable, too large or nested too deep, is not YAML 1.2 in UTF-8, or breaks
            one of the rules in this module's docstring. The message names the file and, where known, the line.
    """
    source = printable(str(path))
    text = _read_text(Path(path), source)
    yaml = YAML(typ="safe", pure=True)
    try:
        _check_events(yaml, text, source)
        root = yaml.compose(text)
        if not isinstance(root, MappingNode):
            raise UserError(f"{source}: the file must hold fields, written `name: value`; it holds {_kind(root)}")
        lines: dict[FieldPath, int] = {(): root.start_mark.line + 1}
        _collect_lines(root, (), lines, source)
        data = yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = " ".join(", ".join(filter(None, (error.context, error.problem))).split())
        raise UserError(f"{source}{line}: not valid YAML 1.2: {printable(problem)}") from error
    except (YAMLError, ValueError, OverflowError) as error:
        # ValueError and OverflowError: a number with thousands of digits, an impossible date.
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: not valid YAML 1.2: {printable(problem)}") from error
    return YamlDocument(source, data, lines)


def _read_text(path: Path, source: str) -> str:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UserError(f"{source}: is {'a folder' if stat.S_ISDIR(mode) else 'a device or pipe'}, not a YAML file")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        beside = sorted(p.name for p in path.parent.glob("[!.]*.yaml"))[:10] if path.parent.is_dir() else []
        hint = f"; in {path.parent} there are: {', '.join(beside)}" if beside else ""
        raise UserError(f"{source}: no such file{printable(hint)}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{source[:200]}: cannot be read: {reason}") from error
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{source}: larger than {MAX_FILE_BYTES} bytes, the largest file allowed here")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{source}:{line}: not UTF-8 text (byte {error.start})") from error


def _check_events(yaml: YAML, text: str, source: str) -> None:
    """Refuse what YAML allows and this project does not, on the flat event stream: no recursion, nothing built yet."""
    depth = 0
    for event in yaml.parse(text):
        where = f"{source}:{event.start_mark.line + 1}" if event.start_mark is not None else source
        if isinstance(event, DocumentStartEvent) and event.version not in (None, (1, 2)):
            raise UserError(f"{where}: the file asks for another YAML version; only YAML 1.2 is read, drop the line")
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor is not None):
            raise UserError(f"{where}: YAML anchors (&) and aliases (*) are not allowed; write the value out")
        if getattr(event, "tag", None) is not None:
            raise UserError(f"{where}: YAML tags (!) are not allowed")
        if isinstance(event, CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise UserError(f"{where}: nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, CollectionEndEvent):
            depth -= 1


def _collect_lines(node: Node, path: FieldPath, lines: dict[FieldPath, int], source: str) -> None:
    """Note the line of every key and item below `node`; refuse a key that is not text or comes twice."""
    if isinstance(node, ScalarNode) and any("\ud800" <= character <= "\udfff" for character in node.value):
        line = node.start_mark.line + 1
        raise UserError(f"{source}:{line}: {dotted(path)}: half a character (\\ud800 to \\udfff); write the whole one")
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _collect_lines(item, (*path, index), lines, source)
    elif isinstance(node, MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise UserError(f"{source}:{line}: a field name must be text, not {_kind(key)}")
            _collect_lines(key, path, lines, source)
            here = (*path, key.value)
            if here in lines:
                raise UserError(f"{source}:{line}: {dotted(here)}: given twice, first on line {lines[here]}")
            lines[here] = line
            _collect_lines(value, here, lines, source)


def dotted(path: FieldPath) -> str:
    """Return a path as text: ("sram", "capacity_bytes") is "sram.capacity_bytes"."""
    return printable(".".join(str(part) for part in path))


def printable(text: str) -> str:
    """Escape what a terminal would obey or fail to print: control characters, lone surrogates, direction marks."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _kind(node: Node | None) -> str:
    if node is None:
        return "nothing"
    if isinstance(node, SequenceNode):
        return "a list"
    if isinstance(node, MappingNode):
        return "a mapping"
    return f"`{printable(str(node.value)[:40])}`"
