"""Turns pydantic's validation errors into messages that a person can act on without reading the code."""

from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from npusim.strict_yaml import FieldPath, YamlDocument, dotted

MAX_LINES = 12
"""A file of another kind has a fault in every line; more than a screenful helps nobody."""

NAME_PATTERN = r"^[a-z][a-z0-9_]{0,63}$"
TEXT_PATTERN = r"^[ -~]{1,80}$"
PATTERN_WORDS = {
    NAME_PATTERN: "1 to 64 lower-case letters, digits and _, beginning with a letter",
    TEXT_PATTERN: "1 to 80 printable ASCII characters",
}


def problems(error: ValidationError, model: type[BaseModel], document: YamlDocument) -> list[str]:
    """Return one line for each fault, up to MAX_LINES: "file:line: field: value given, what is allowed".

    Args:
        error: what `model.model_validate(document.data)` raised.
        model: the top-level model.
        document: the file that was validated.
    """
    faults = error.errors(include_url=False)
    unknown = [fault["loc"] for fault in faults if fault["type"] == "extra_forbidden"]
    meant = {path: _nearest(path, model, document) for path in unknown}
    lines = []
    for fault in faults:
        path = fault["loc"]
        if fault["type"] == "extra_forbidden":
            near = meant[path]
            hint = f"did you mean `{dotted(near)}`? " if near else ""
            allowed = ", ".join(_section(model, path[:-1]).model_fields)
            what = f"unknown field; {hint}Allowed here: {allowed}"
        elif fault["type"] == "missing":
            if path in meant.values():
                continue  # the misspelled field is already reported; naming the right one twice would only distract
            what = f"missing; must be {allowed_text(model, path)}"
        elif fault["type"] == "clash":
            path = (*path, *fault["ctx"]["field"].split("."))
            what = fault["ctx"]["message"]
        else:
            what = f"{_shown(_value(document.data, path))} is not allowed; must be {allowed_text(model, path)}"
        lines.append(f"{document.where(path)}: {dotted(path)}: {what}")
    if len(lines) > MAX_LINES:
        lines[MAX_LINES:] = [f"{document.source}: and {len(lines) - MAX_LINES} more faults"]
    return lines


def leaf_fields(model: type[BaseModel], prefix: FieldPath = ()) -> dict[FieldPath, FieldInfo]:
    """Return every field of `model` that is not itself a section, by path, in order of declaration."""
    leaves: dict[FieldPath, FieldInfo] = {}
    for name, field in model.model_fields.items():
        section = _as_section(field)
        if section is not None:
            leaves |= leaf_fields(section, (*prefix, name))
        else:
            leaves[(*prefix, name)] = field
    return leaves


def allowed_text(model: type[BaseModel], path: FieldPath) -> str:
    """Say in words what the field at `path` may hold, e.g. "a whole number from 24 to 48"."""
    leaves = leaf_fields(model)
    if path not in leaves:
        table = f"the name of a table in hwconfigs/{path[-2]}, or " if path[-1] == "device" else ""
        return f"{table}a section with the fields {', '.join(_section(model, path).model_fields)}"
    field = leaves[path]
    if get_origin(field.annotation) is Literal:
        return " or ".join(str(choice) for choice in get_args(field.annotation))
    if field.annotation is bool:
        return "true or false"
    if field.annotation is int:
        low = next(bound.ge for bound in field.metadata if isinstance(bound, Ge))
        high = next(bound.le for bound in field.metadata if isinstance(bound, Le))
        return f"a whole number from {low} to {high}"
    pattern = next(bound.pattern for bound in field.metadata if getattr(bound, "pattern", None))
    return PATTERN_WORDS[pattern]


def _nearest(path: FieldPath, model: type[BaseModel], document: YamlDocument) -> FieldPath | None:
    """Return the field that an unknown one most likely stands for: a sibling, or else a field of another section."""
    name = str(path[-1])
    present = _value(document.data, path[:-1])
    siblings = [field for field in _section(model, path[:-1]).model_fields if field not in present]
    close = get_close_matches(name, siblings, n=1)
    if close:
        return (*path[:-1], close[0])
    leaves = [leaf for leaf in leaf_fields(model) if _value(document.data, leaf) is None]
    elsewhere = get_close_matches(name, [str(leaf[-1]) for leaf in leaves], n=1, cutoff=0.8)
    return next((leaf for leaf in leaves if elsewhere and leaf[-1] == elsewhere[0]), None)


def _section(model: type[BaseModel], path: FieldPath) -> type[BaseModel]:
    for part in path:
        section = _as_section(model.model_fields[str(part)])
        assert section is not None, f"{part} of {dotted(path)} is a plain field"
        model = section
    return model


def _as_section(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model class of a field that is a section, None for a plain field."""
    annotation: Any = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _value(data: Any, path: FieldPath) -> Any:
    for part in path:
        if not isinstance(data, dict) or part not in data:
            return None
        data = data[part]
    return data


def _shown(value: Any) -> str:
    """Show a value as it stands in the file, cut to a readable length."""
    if value is None:
        return "an empty value"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
