"""The reference that every measured answer is held against: the base in fp32, one adapter at a time, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mintbook.bench.transformers_side import load_plain
from mintbook.errors import MintbookError
from mintbook.store.page import Page

TOLERANCE = {"bfloat16": 0.8, "float16": 0.1, "float32": 1e-3}
"""Nats that a greedy token may be below the reference's best one, by the precision of the measured side.

Seen on SmolLM2-135M in bf16, over 7 tokens each of 16 rows: at most 0.32 for the right adapter, at least 1.6 for the
next one and 1.4 for the base.
"""
BLIND = 0.5
"""Share of the adapters' answers that may pass for the base's before a check is not worth its name."""


@dataclass(frozen=True, slots=True)
class Claim:
    """That ``tokens`` are the greedy continuation of ``prompt`` under adapter number ``adapter``, as ``who`` says."""

    who: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    adapter: int | None


class Reference:
    """transformers' forward of the base in fp32 with ``s · B A x`` added by hooks: no kernel of ours is involved."""

    def __init__(self, folder: Path, pages: Sequence[Page], dtype: str) -> None:
        self.model = load_plain(folder, "float32")
        self.pages = pages
        self.tolerance = TOLERANCE[dtype]

    def check(self, claims: Sequence[Claim], say: Callable[[str], None]) -> float:
        """Return the largest gap in nats between a claimed token and the reference's best one.

        Raises `MintbookError` when a gap exceeds the tolerance, and when too many answers of adapters would pass for
        the base's too: then the check could not tell a row that was given to the wrong adapter.
        """
        worst, blind = 0.0, 0
        for number, claim in enumerate(claims):
            say(f"checking answer {number + 1} of {len(claims)}")
            gap = self.gap(claim, claim.adapter)
            if not gap <= self.tolerance:  # so that a NaN is an error too
                raise MintbookError(
                    f"{claim.who}: a row of {_named(claim.adapter)} said {claim.tokens}, of which a token is {gap:.3g} "
                    f"nats below the reference's best; {self.tolerance:g} are allowed. No row was written."
                )
            blind += claim.adapter is not None and self.gap(claim, None) <= self.tolerance
            worst = max(worst, gap)
        adapted = sum(claim.adapter is not None for claim in claims)
        if blind > BLIND * adapted:
            raise MintbookError(
                f"{blind} of {adapted} answers of adapters could be the base's own: the check is blind, and no row "
                "was written. The adapters are too weak for this base, or are not applied."
            )
        return worst

    @torch.no_grad()
    def gap(self, claim: Claim, adapter: int | None) -> float:
        """Return the largest ``max_v log p(v) − log p(token)`` over the claimed tokens, as ``adapter`` judges."""
        tokens = torch.tensor([[*claim.prompt, *claim.tokens[:-1]]])
        with self._adapted(adapter):
            logits = self.model(tokens, logits_to_keep=len(claim.tokens)).logits[0]
        said = logits.gather(1, torch.tensor(claim.tokens)[:, None])[:, 0]
        return float((logits.amax(dim=1) - said).max())

    @contextmanager
    def _adapted(self, adapter: int | None) -> Iterator[None]:
        handles = []
        if adapter is not None:
            page = self.pages[adapter]
            scales = dict(zip((site.name for site in page.sites), page.scales, strict=True))
            for name, (a, bt) in page.factors().items():
                update = _update(a.float(), bt.float(), scales[name])
                handles.append(self.model.get_submodule(name).register_forward_hook(update))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _update(a: Tensor, bt: Tensor, scale: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    return lambda _module, inputs, output: output + scale * (inputs[0] @ a.T @ bt)


def _named(adapter: int | None) -> str:
    return "the base" if adapter is None else f"adapter {adapter}"
