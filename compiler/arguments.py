"""Checks the Python types of a builder's arguments, so that a mistake is named with the layer and what is allowed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from reprlib import repr as shortened
from typing import Any, TypeVar

import numpy as np

from npusim.errors import UserError

T = TypeVar("T")
Kind = tuple[Callable[[Any], bool], str]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _are_integers(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(map(_is_integer, value))


def _is_pair(value: Any) -> bool:
    return _are_integers(value) and len(value) == 2


def _is_numeric(value: Any) -> bool:
    """Numbers or records; whether they are the right ones is for the method to say."""
    try:
        return np.asarray(value).dtype.kind in "iufV"
    except ValueError:  # rows of different lengths
        return False


KINDS: dict[str, Kind] = {
    "str": (lambda value: isinstance(value, str), "a string"),
    "int": (_is_integer, "an integer"),
    "float": (lambda value: isinstance(value, float | int | np.number), "a number"),
    "float | None": (lambda value: value is None or isinstance(value, float | int | np.number), "a number"),
    "tuple[int, int]": (_is_pair, "two integers"),
    "Sequence[int]": (_are_integers, "a list of integers"),
    "ArrayLike": (_is_numeric, "integers, one or an array"),
    "ArrayLike | None": (lambda value: value is None or _is_numeric(value), "integers, one or an array"),
    "Factor": (lambda value: isinstance(value, str) or _is_numeric(value), "integers, one or an array, or a name"),
    "NDArray[Any]": (lambda value: isinstance(value, np.ndarray), "a NumPy array"),
    "NDArray[np.uint8]": (lambda value: isinstance(value, np.ndarray), "a NumPy array"),
}
"""What a parameter takes, by its annotation."""


def checked(**more: Kind) -> Callable[[type[T]], type[T]]:
    """Decorate a class: its public methods raise UserError for an argument of a type other than its annotation's.

    The message begins with the first argument, which is the layer or the name. ``more``: further `KINDS`.
    """

    def decorate(cls: type[T]) -> type[T]:
        for name, method in list(vars(cls).items()):
            if inspect.isfunction(method) and (name == "__init__" or name[0] != "_"):
                setattr(cls, name, _checked(method, KINDS | more))
        return cls

    return decorate


def _checked(method: Callable[..., Any], kinds: dict[str, Kind]) -> Callable[..., Any]:
    signature = inspect.signature(method)

    @wraps(method)
    def call(self: Any, *args: Any, **named: Any) -> Any:
        given = signature.bind(self, *args, **named).arguments
        layer = args[0] if args and isinstance(args[0], str) else f"{type(self).__name__}.{method.__name__}"
        for name, value in given.items():
            fits, allowed = kinds.get(signature.parameters[name].annotation, (lambda value: True, ""))
            if not fits(value):
                given_type = type(value).__name__
                raise UserError(f"{layer}: {name} is {shortened(value)} of type {given_type}; allowed: {allowed}")
        return method(self, *args, **named)

    return call
