"""Which linear layers of a base an adapter may change, and what a target's name stands for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mintbook.errors import TargetError, nearest
from mintbook.store.page import Site

ATTENTION = ("attn", "attention")
MLP = ("mlp", "feed_forward", "ffn")


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

    A target is ``"all-linear"``, ``"attention"``, ``"mlp"``, or the end of a module name such as ``"q_proj"`` or
    ``"layers.3.mlp.up_proj"``. Every target must match something, or `TargetError` names it.
    """
    wanted = (targets,) if isinstance(targets, str) else tuple(targets)
    chosen: set[str] = set()
    for target in wanted:
        matched = [site.name for site in sites if _matches(site.name, target)]
        if not matched:
            ends = sorted({site.name.rsplit(".", 1)[-1] for site in sites})
            raise TargetError(
                f"Target {target!r} matches no linear layer of this base.{nearest(target, ends)} "
                f"It has {', '.join(ends)}; 'attention', 'mlp' and 'all-linear' name groups of them."
            )
        chosen.update(matched)
    return tuple(site for site in sites if site.name in chosen)


def target_names(sites: Sequence[Site], chosen: Sequence[Site]) -> str | tuple[str, ...]:
    """Return the shortest targets that `choose_sites` turns into exactly ``chosen``."""
    if len(chosen) == len(sites):
        return "all-linear"
    ends = tuple(sorted({site.name.rsplit(".", 1)[-1] for site in chosen}))
    return ends if choose_sites(sites, ends) == tuple(chosen) else tuple(site.name for site in chosen)


def _matches(name: str, target: str) -> bool:
    parts = name.split(".")
    if target == "all-linear":
        return True
    if target in ("attention", "mlp"):
        words = ATTENTION if target == "attention" else MLP
        return any(word in part for part in parts[:-1] for word in words)
    ending = target.split(".")
    return parts[-len(ending) :] == ending
