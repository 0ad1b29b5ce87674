"""Translation validation against Arm's TOSA reference model: `validate`."""

from compiler.tosa.validate import Report, Row, validate

__all__ = ["Report", "Row", "validate"]
