"""Every exception the package raises on purpose, and the message for a name that is not known."""

import difflib
from collections.abc import Iterable


class CompressError(Exception):
    """Something a user can act on, said in one line; a model that can't be handled (exit code 1)."""

    exit_code = 1


class UsageError(CompressError):
    """A wrong request: unknown pass or option, missing file, data that does not fit (exit code 2)."""

    exit_code = 2


class BoundError(CompressError):
    """A verification or accuracy bound was missed; nothing was written (exit code 3)."""

    exit_code = 3


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the one-line message for a `name` that is not among the `known`, with what was likely meant."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known) or 'none'}"
    return f"{name}: no such {kind}; {hint}"
