"""What all classes of a machine file share: field makers, clashes between values, strictness."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from npusim.config_messages import TEXT_PATTERN

# Description texts become the tables in hwconfigs; units are the last part of the field's name.


def whole(low: int, high: int, meaning: str) -> Any:
    """Describe a field that holds a whole number from ``low`` to ``high``."""
    return Field(ge=low, le=high, description=meaning)


def text(meaning: str) -> Any:
    """Describe a field that holds one line of text."""
    return Field(pattern=TEXT_PATTERN, description=meaning)


def clash(field: str, message: str) -> PydanticCustomError:
    """Make the error for values that are fine alone and do not fit together; `field` is relative to the section.

    The message goes in as context, not as the template, because it may hold braces.
    """
    return PydanticCustomError("clash", "{message}", {"field": field, "message": message})


def need_power_of_two(section: str, field: str, value: int) -> None:
    """Raise the error for a `value` that is no power of two."""
    if value & (value - 1):
        below = 1 << (value.bit_length() - 1)
        raise clash(field, f"{value} is not a power of two; {section}.{field} allows e.g. {below} or {2 * below}")


class Section(BaseModel):
    """Common rules: frozen, no unknown field, and no conversion ("5" and true are not numbers)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _whole_float(cls, value: object) -> object:
        # YAML reads 51.2e9 as a float although it is a whole number of bytes.
        return int(value) if isinstance(value, float) and value.is_integer() else value
