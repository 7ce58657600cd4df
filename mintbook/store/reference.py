"""The one grammar by which a revision is named: ``alice``, ``alice@3``, ``alice@prod``, ``@digest``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from mintbook.errors import InvalidReference

HEAD = "head"
"""How the history names the pointer that a bare record name follows; no alias may be called so."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_NAME_RULE = "1 to 128 letters, digits, '.', '_' or '-', the first of them not '.' or '-'"


def check_name(name: str) -> str:
    """Return ``name`` if a record may be called so; raise `InvalidReference` otherwise.

    >>> check_name("alice-2")
    'alice-2'
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidReference(f"{name!r} cannot name a record. A name has {_NAME_RULE}.")
    return name


def check_alias(alias: str) -> str:
    """Return ``alias`` if it may stand after the ``@``; raise `InvalidReference` when it would read as something else.

    >>> check_alias("prod")
    'prod'
    """
    if not isinstance(alias, str) or not _NAME.fullmatch(alias):
        raise InvalidReference(f"{alias!r} cannot be an alias. An alias has {_NAME_RULE}.")
    if alias.isdigit():
        raise InvalidReference(f"{alias!r} cannot be an alias: after the '@', digits are a revision's number.")
    if _DIGEST.fullmatch(alias):
        raise InvalidReference(f"{alias!r} cannot be an alias: it reads as a revision's digest. Add a letter beyond f.")
    if alias == HEAD:
        raise InvalidReference(f"{HEAD!r} cannot be an alias: a record's bare name already means its head.")
    return alias


@dataclass(frozen=True, slots=True)
class Reference:
    """What a text names: a record's head, one of its revisions, one of its aliases, or a revision by content."""

    record: str | None
    number: int | None = None
    alias: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str, *, within: str | None = None) -> Self:
        """Read ``text``; ``within`` is the record that a leading ``@3`` or ``@alias`` belongs to, where there is one.

        Raises `InvalidReference` when the text has another form.

        >>> Reference.parse("alice@3")
        Reference(record='alice', number=3, alias=None, digest=None)
        >>> str(Reference.parse("@prod", within="alice"))
        'alice@prod'
        """
        if not isinstance(text, str):
            raise InvalidReference(f"A reference is text such as 'alice@3'; this is {type(text).__name__}: {text!r}.")
        name, at, selector = text.partition("@")
        if not name and _DIGEST.fullmatch(selector):
            return cls(None, digest=selector)
        if not name and within is not None and selector:
            name = within
        if not name:
            raise InvalidReference(
                f"{text!r} is not a reference. Write a record's name ('alice'), a revision ('alice@3'), an alias "
                "('alice@prod'), or '@' and at least 8 lower-case hexadecimal digits of a digest."
            )
        check_name(name)
        if not at:
            return cls(name)
        if _NUMBER.fullmatch(selector):
            return cls(name, number=int(selector))
        if selector.isdigit():
            raise InvalidReference(f"{text!r} names no revision: numbers start at 1 and have no leading zeros.")
        return cls(name, alias=check_alias(selector))

    def __str__(self) -> str:
        """Return the text that `parse` reads as this reference."""
        if self.digest is not None:
            return f"@{self.digest}"
        if self.number is not None:
            return f"{self.record}@{self.number}"
        return f"{self.record}@{self.alias}" if self.alias is not None else str(self.record)
