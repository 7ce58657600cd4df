"""Which linear layers of a base an adapter may change, and what a target's name stands for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mintbook.errors import TargetError, nearest
from mintbook.store.page import Site

ATTENTION = ("attn", "attention")
MLP = ("mlp", "feed_forward", "ffn")
GROUPS = ("all-linear", "upper-linear", "attention", "mlp")
LOWER_SHARE = 0.4
"""Share of the blocks, from the input, that ``"upper-linear"`` leaves alone."""


def linear_sites(model: nn.Module) -> tuple[Site, ...]:
    """Return every linear layer of the model but its unembedding, in the model's order."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return tuple(
        Site(name, module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    )


def choose_sites(sites: Sequence[Site], targets: str | Sequence[str]) -> tuple[Site, ...]:
    """Return the sites that ``targets`` names, in the base's order.

    A target is ``"all-linear"``, ``"upper-linear"`` (the upper 60% of the blocks), ``"attention"``, ``"mlp"``, or the
    end of a module name such as ``"q_proj"`` or ``"layers.3.mlp.up_proj"``. Every target must match something, or
    `TargetError` names it.
    """
    wanted = (targets,) if isinstance(targets, str) else tuple(targets)
    chosen: set[str] = set()
    for target in wanted:
        matched = _upper(sites) if target == "upper-linear" else [s.name for s in sites if _matches(s.name, target)]
        if not matched:
            ends = sorted({site.name.rsplit(".", 1)[-1] for site in sites})
            raise TargetError(
                f"Target {target!r} matches no linear layer of this base.{nearest(target, ends)} "
                f"It has {', '.join(ends)}; {', '.join(GROUPS)} name groups of them."
            )
        chosen.update(matched)
    return tuple(site for site in sites if site.name in chosen)


def target_names(sites: Sequence[Site], chosen: Sequence[Site]) -> str | tuple[str, ...]:
    """Return the shortest targets that `choose_sites` turns into exactly ``chosen``."""
    for group in GROUPS[:2]:
        if choose_sites(sites, group) == tuple(chosen):
            return group
    ends = tuple(sorted({site.name.rsplit(".", 1)[-1] for site in chosen}))
    return ends if choose_sites(sites, ends) == tuple(chosen) else tuple(site.name for site in chosen)


def _upper(sites: Sequence[Site]) -> list[str]:
    blocks = {site.name: next((int(part) for part in site.name.split(".") if part.isdigit()), None) for site in sites}
    count = 1 + max((block for block in blocks.values() if block is not None), default=-1)
    return [name for name, block in blocks.items() if block is not None and block >= int(LOWER_SHARE * count)]


def _matches(name: str, target: str) -> bool:
    parts = name.split(".")
    if target == "all-linear":
        return True
    if target in ("attention", "mlp"):
        words = ATTENTION if target == "attention" else MLP
        return any(word in part for part in parts[:-1] for word in words)
    ending = target.split(".")
    return parts[-len(ending) :] == ending
