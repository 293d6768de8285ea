"""Whole numbers within limits, judged alike wherever one comes from: config, settings, forms, the API, the log.

True and false are no numbers, though Python counts with them. Pure.
"""

from typing import TypeGuard


def is_whole(value: object, least: int = 0, most: int | None = None) -> TypeGuard[int]:
    """Tell whether this is a whole number within the limits."""
    return (
        isinstance(value, int) and not isinstance(value, bool) and value >= least and (most is None or value <= most)
    )


def must_be(value: object, least: int = 0, most: int | None = None) -> str:
    """Say to a person what a number must be that is not; the sentence begins with its name."""
    limits = f"from {least} to {most}" if most is not None else f"of at least {least}"
    return f"must be a whole number {limits}, not {value!r:.40}"
