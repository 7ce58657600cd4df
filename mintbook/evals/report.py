"""What an adapter knows and what it cost the base's abilities, as one record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from mintbook.display import Block, Card, Facts, Table, short_digest
from mintbook.display.shown import Shown
from mintbook.errors import DataError
from mintbook.evals.perplexity import Perplexity
from mintbook.evals.recall import SCORER, Score

WRONG_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a score belongs to: without one of these it could not be compared with another score.

    ``serving_path`` says how the answers were made, such as ``"engine, shared base, bfloat16 on cpu"``.
    """

    reference: str
    digest: str
    base_name: str
    base_digest: str
    renderer_digest: str
    targets: tuple[str, ...]
    serving_path: str
    scorer: str = SCORER


@dataclass(frozen=True, slots=True)
class Kept:
    """The same general questions asked of the base and of the adapter; raises `DataError` for different ones."""

    base: Score
    adapter: Score

    def __post_init__(self) -> None:
        if self.base.questions_digest != self.adapter.questions_digest:
            raise DataError(
                f"The base was asked {self.base.asked} questions and the adapter {self.adapter.asked} others. "
                "Ask both the same questions."
            )

    @property
    def answered(self) -> int:
        """Questions that the base answers rightly."""
        return self.base.right

    @property
    def kept(self) -> int:
        """Those of them that the adapter answers rightly too."""
        return sum(a.right and b.right for a, b in zip(self.base.rows, self.adapter.rows, strict=True))

    @property
    def share(self) -> float | None:
        """``kept / answered``, or ``None`` when the base answers none."""
        return self.kept / self.answered if self.answered else None

    def to_dict(self) -> dict[str, Any]:
        """Return counts and both sides' answers as plain data."""
        counts = {"answered_by_base": self.answered, "kept": self.kept, "share": self.share}
        return {**counts, "base": self.base.to_dict(), "adapter": self.adapter.to_dict()}


@dataclass(frozen=True, slots=True)
class Rise:
    """Perplexity of the same prose under the base and under the adapter; raises `DataError` for other tokens."""

    base: Perplexity
    adapter: Perplexity

    def __post_init__(self) -> None:
        if self.base.tokens != self.adapter.tokens:
            raise DataError("Base and adapter read paragraphs of different lengths. Measure both on the same tokens.")

    @property
    def share(self) -> float:
        """``adapter / base − 1``: 0.1 is a rise by 10%."""
        return self.adapter.value / self.base.value - 1

    def to_dict(self) -> dict[str, Any]:
        """Return the rise and both perplexities as plain data; a rise that is not finite becomes ``None``."""
        rise = self.share if math.isfinite(self.share) else None
        return {"rise": rise, "base": self.base.to_dict(), "adapter": self.adapter.to_dict()}


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation(Shown):
    """Scores of one subject: ``recall`` by name of the questions, and what was kept of the base."""

    subject: Subject
    recall: Mapping[str, Score] = field(default_factory=dict)
    general: Kept | None = None
    prose: Rise | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return subject, scores and every answer as plain data."""
        return {
            "subject": {**asdict(self.subject), "targets": list(self.subject.targets)},
            "recall": {name: score.to_dict() for name, score in self.recall.items()},
            "general": self.general.to_dict() if self.general is not None else None,
            "prose": self.prose.to_dict() if self.prose is not None else None,
        }

    def frame(self) -> pl.DataFrame:
        """Return a row per question, ``questions`` naming its set; ``base_right`` is null for those of recall."""
        parts = [_part(name, score, None) for name, score in self.recall.items()]
        if self.general is not None:
            parts.append(_part("general", self.general.adapter, self.general.base))
        return pl.concat(parts) if parts else _part("", Score(()), None)

    def card(self) -> Card:
        """Return the scores and what they belong to, with the questions that were answered wrongly."""
        subject = self.subject
        wrong = [
            [name, row.question.question, row.text]
            for name, s in self.recall.items()
            for row in s.rows
            if not row.right
        ]
        blocks: list[Block] = [Facts(self._facts())]
        if wrong:
            blocks.append(
                Table(("questions", "question", "answer"), wrong, caption="Answered wrongly", limit=WRONG_SHOWN)
            )
        facts = [
            ("base", f"{subject.base_name} ({short_digest(subject.base_digest)})"),
            ("targets", f"{len(subject.targets)} modules"),
            ("renderer", short_digest(subject.renderer_digest)),
            ("scorer", subject.scorer),
            ("served by", subject.serving_path),
        ]
        blocks.append(Facts(facts))
        return Card(subject.reference, "evaluation", blocks, badge=short_digest(subject.digest))

    def _facts(self) -> list[tuple[str, str]]:
        facts = [("recalled", f"{score.right} of {score.asked} ({name})") for name, score in self.recall.items()]
        if self.general is not None:
            share = f" ({self.general.share:.0%})" if self.general.share is not None else ""
            facts.append(("general answers kept", f"{self.general.kept} of the base's {self.general.answered}{share}"))
        if self.prose is not None:
            before, after = self.prose.base.value, self.prose.adapter.value
            facts.append(("perplexity of prose", f"{before:.2f} → {after:.2f} ({self.prose.share:+.1%})"))
        return facts

    def __repr__(self) -> str:
        return f"<Evaluation {self.subject.reference} · {' · '.join(f'{k} {v}' for k, v in self._facts())}>"


def _part(name: str, score: Score, base: Score | None) -> pl.DataFrame:
    judged = [row.right for row in base.rows] if base is not None else [None] * score.asked
    return score.frame().select(
        pl.lit(name).alias("questions"), pl.all(), pl.Series("base_right", judged, dtype=pl.Boolean)
    )
