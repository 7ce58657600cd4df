"""What a revision says about itself: which base, which weights, and how they came to be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from mintbook.errors import FormatError, nearest
from mintbook.store.clock import utc_now

_TUPLES = ("targets", "rollout_ids")
_OBJECTS = ("lora", "train", "metrics", "packages", "receipt")


def canonical(data: Mapping[str, Any]) -> str:
    """Return ``data`` as the one JSON text that equal data has: sorted keys, no spaces, ASCII.

    Raises `FormatError` for values that JSON has no form for, numbers that are not finite among them.

    >>> canonical({"b": (1, 2), "a": None})
    '{"a":null,"b":[1,2]}'
    """
    try:
        return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FormatError(
            f"This cannot be written as JSON: {error}. Use finite numbers, text, lists and dicts only."
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The provenance of one revision; its digest, which covers ``weights_digest``, is the revision's identity."""

    base_digest: str
    base_name: str
    tokenizer_digest: str
    renderer_digest: str
    lora: dict[str, Any]
    """`LoraConfig.to_dict()` of the record."""
    sites: int
    """Number of linear layers that the adapter changes."""
    parameters: int
    rank: int
    targets: tuple[str, ...]
    """Names of the adapted modules."""
    alpha: float
    alpha_rule: str
    init: str
    dtype: str
    """Precision of the stored weights."""
    layout_version: str
    weights_digest: str
    seed: int
    code_version: str
    compute_dtype: str = ""
    """Precision of the base, and of the adapter's copy beside it, when the weights were made."""
    parent: str | None = None
    """Digest of the revision that training started from."""
    rollout_ids: tuple[str, ...] = ()
    data_digest: str | None = None
    data_count: int = 0
    train: dict[str, Any] | None = None
    """`TrainConfig.to_dict()`, or None when the weights were not trained here."""
    metrics: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that computed the weights."""
    cell: str | None = None
    """Source of the notebook cell that made the revision."""
    receipt: dict[str, Any] = field(default_factory=dict)
    """What the adapter does: modules matched, share of non-zero B, norms, logit shift."""
    created: str = field(default_factory=utc_now)

    def __post_init__(self) -> None:
        for name in _TUPLES:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in _OBJECTS:
            value = getattr(self, name)
            # A private copy in JSON's types: the caller's later changes stay out, and reading back gives an equal one.
            object.__setattr__(self, name, None if value is None else json.loads(canonical(value)))

    @property
    def digest(self) -> str:
        """The revision's identity: sha256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as plain data, ready for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the canonical JSON text that the digest is taken of."""
        return canonical(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make the manifest that `to_dict` was called on; raise `FormatError` on unknown or missing fields."""
        known = [item.name for item in fields(cls)]
        for name in data:
            if name not in known:
                raise FormatError(
                    f"A manifest has no field {name!r}.{nearest(name, known)} It may be of a newer version."
                )
        try:
            return cls(**data)
        except TypeError as error:
            raise FormatError(f"The manifest is incomplete: {error}.") from error
