"""Every error that mintbook raises on purpose, as one tree.

    MintbookError
    ├── ConfigError            (ValueError)   an option has a value that cannot be honoured
    ├── DataError              (ValueError)   a training example or a file of them cannot be used
    ├── InvalidReference       (ValueError)   the text is not of the form name, name@3, name@alias or @digest
    ├── UnknownReference       (LookupError)  the form is right, but no such record, revision or alias exists
    ├── BaseError
    │   ├── BaseUnavailable                   the base model cannot be obtained or read
    │   ├── BaseUnsupported                   the packed forward cannot run this model faithfully
    │   └── BaseMismatch                      an adapter belongs to another base than the resident one
    ├── AdapterError
    │   ├── TargetError        (ValueError)   target modules match nothing, or not what the file holds
    │   ├── ShapeError         (ValueError)   a tensor has another shape than the base or the rank demands
    │   └── FormatError        (ValueError)   a file is broken, unsafe, or of a kind that is not taken
    ├── StoreError
    │   ├── RecordExists                      a record of that name is there already
    │   ├── RecordLeased                      another process holds the record's one training session
    │   ├── CorruptStore                      bytes do not match their digest, or a row lacks its file
    │   └── StoreUnsupported                  the folder cannot hold a store (newer format, network file system)
    ├── RunError
    │   ├── RunFailed                         a long action ended with an error; its log says where
    │   └── RunStopped                        a result was asked of a run that was stopped before it had one
    └── CapacityError          (retryable)    no room now: slots, KV cache or queue; says when to try again

A message says what was asked, what was found, and what to do. Each class also inherits the standard error a caller
would expect, so ``except ValueError`` keeps working.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class MintbookError(Exception):
    """The root of the tree: ``except MintbookError`` catches all that mintbook raises on purpose."""


class ConfigError(MintbookError, ValueError):
    """An option has a value that cannot be honoured."""


class DataError(MintbookError, ValueError):
    """A training example, or a file of them, cannot be used."""


class InvalidReference(MintbookError, ValueError):
    """The text is not of the form ``name``, ``name@3``, ``name@alias`` or ``@digest``."""


class UnknownReference(MintbookError, LookupError):
    """The form of a reference is right, but nothing of that name exists."""


class BaseError(MintbookError):
    """Something about the base model."""


class BaseUnavailable(BaseError):
    """The base model cannot be obtained or read."""


class BaseUnsupported(BaseError):
    """The packed forward cannot run this model faithfully."""


class BaseMismatch(BaseError):
    """An adapter belongs to another base than the resident one."""


class AdapterError(MintbookError):
    """Something about an adapter's weights or files."""


class TargetError(AdapterError, ValueError):
    """Target modules match nothing in the base, or not what a file holds."""


class ShapeError(AdapterError, ValueError):
    """A tensor has another shape than the base or the rank demands."""


class FormatError(AdapterError, ValueError):
    """A file is broken, unsafe, or of a kind that is not taken."""


class StoreError(MintbookError):
    """Something about the store on disk."""


class RecordExists(StoreError):
    """A record of that name is there already."""


class RecordLeased(StoreError):
    """Another process holds the record's one training session."""


class CorruptStore(StoreError):
    """Bytes do not match their digest, or a row lacks its file."""


class StoreUnsupported(StoreError):
    """The folder cannot hold a store."""


class RunError(MintbookError):
    """Something about a long action."""


class RunFailed(RunError):
    """A long action ended with an error; its log says where."""


class RunStopped(RunError):
    """A result was asked of a run that was stopped before it had one."""


class CapacityError(MintbookError):
    """No room now; the same call may succeed after ``retry_after_s`` seconds."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def nearest(asked: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Return `` Nearest: 'x', 'y'.`` for an error message, or an empty string when nothing is near.

    >>> nearest("alise", ["alice", "bob"])
    " Nearest: 'alice'."
    """
    close = get_close_matches(asked, list(known), n=limit, cutoff=0.5)
    return f" Nearest: {', '.join(repr(name) for name in close)}." if close else ""
