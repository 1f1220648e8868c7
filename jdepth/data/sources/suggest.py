"""The "did you mean" part of an error message."""

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str:
    """" (did you mean 'x'?)" for the most similar known word, or nothing if none is near."""
    matches = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean '{matches[0]}'?)" if matches else ""
