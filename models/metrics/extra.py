"""The packages of the optional extra `metrics`: one message where they are not installed."""

from models.errors import ModelError


def missing_extra(metric: str, error: ImportError) -> ModelError:
    """The error to raise where a package of the extra cannot be imported."""
    return ModelError(f"{metric}: package '{error.name}' is not installed; add it with: pip install -e '.[metrics]'")
