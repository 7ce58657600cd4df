"""A whole comparison of two sides: weights, behaviour, and how it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import polars as pl

from mintbook.diff.behaviour import BehaviourDiff
from mintbook.diff.weights import WeightDiff
from mintbook.display import Bars, Block, Card, Facts, HeatMap, Marked, Note, Table, short_digest, word_marks
from mintbook.display.shown import Shown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ANSWERS_SHOWN = 8
MOST_SHOWN = 5
FIGURE_GAP = 90
"""Pixels between the two parts of the figure, room for labels and a title."""


@dataclass(frozen=True, slots=True)
class Side:
    """What is compared: the reference that was asked for, and the digest that it resolved to."""

    label: str
    digest: str


@dataclass(frozen=True, slots=True, repr=False)
class Diff(Shown):
    """What changes from ``left`` (a in the numbers) to ``right`` (b); ``behaviour`` is ``None`` without probes."""

    left: Side
    right: Side
    weights: WeightDiff
    behaviour: BehaviourDiff | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the whole comparison as plain data."""
        return {
            "left": {"label": self.left.label, "digest": self.left.digest},
            "right": {"label": self.right.label, "digest": self.right.digest},
            "weights": self.weights.to_dict(),
            "behaviour": self.behaviour.to_dict() if self.behaviour is not None else None,
        }

    def frame(self) -> pl.DataFrame:
        """Return the weights, a row per layer; ``diff.behaviour.frame()`` has a row per token of the probes."""
        return self.weights.frame()

    def figure(self) -> Figure:
        """Return a plotly figure: ‖ΔW_b − ΔW_a‖ by layer and module, and below it the KL of each probe."""
        from plotly.graph_objects import Bar, Heatmap
        from plotly.subplots import make_subplots

        layers, modules, values = self._grid()
        probes = self.behaviour.probes if self.behaviour is not None else ()
        titles = ["‖ΔW‖ of the difference, by layer", "KL(left ‖ right) per probe, nats per token"]
        heights = [max(120, 18 * len(layers)), 24 + 26 * len(probes)][: 2 if probes else 1]
        inner = sum(heights) + FIGURE_GAP * (len(heights) - 1)
        figure = make_subplots(
            rows=len(heights),
            cols=1,
            subplot_titles=titles[: len(heights)],
            row_heights=heights,
            vertical_spacing=FIGURE_GAP / inner if probes else 0,
        )
        scale = {"len": heights[0] / inner, "y": 1, "yanchor": "top"}
        largest = max((module.difference.norm for module in self.weights.modules), default=0.0) or 1.0
        shade = {"zmin": 0, "zmax": largest, "colorscale": "Viridis", "colorbar": scale}
        heat = Heatmap(x=modules, y=layers, z=values, **shade)
        figure.add_trace(heat, row=1, col=1)
        figure.update_yaxes(autorange="reversed", type="category", row=1, col=1)
        if probes:
            # Plotly reads tags in labels, and equal labels share one bar.
            prompts = [escape(shorten(probe.probe.prompt, 60, placeholder=" …"), quote=False) for probe in probes]
            names = [f"{number}. {prompt}" for number, prompt in enumerate(prompts, start=1)]
            bars = Bar(y=names, x=[probe.kl for probe in probes], orientation="h", showlegend=False)
            figure.add_trace(bars, row=2, col=1)
            figure.update_yaxes(autorange="reversed", row=2, col=1)
        margin = {"t": 100, "b": 60}
        return figure.update_layout(title=self._title(), height=inner + sum(margin.values()), margin=margin)

    def card(self) -> Card:
        """Return the comparison as one card."""
        return Card(self._title(), "diff", [self._facts(), *self._weight_blocks(), *self._behaviour_blocks()])

    def _title(self) -> str:
        return f"{self.left.label} → {self.right.label}"

    def _facts(self) -> Facts:
        weights = self.weights
        return Facts(
            [
                ("left", f"{self.left.label} ({short_digest(self.left.digest)})"),
                ("right", f"{self.right.label} ({short_digest(self.right.digest)})"),
                ("‖ΔW‖ left", weights.norm_a),
                ("‖ΔW‖ right", weights.norm_b),
                ("‖ΔW‖ of the difference", weights.norm_diff),
                ("cosine of the updates", weights.cosine),
            ]
        )

    def _weight_blocks(self) -> list[Block]:
        if not self.weights.norm_diff:
            return [Note("The two sides have the same weights.")]
        layers, modules, values = self._grid()
        short = [module.rsplit(".", 1)[-1] for module in modules]
        columns = short if len(set(short)) == len(short) else modules
        heat = HeatMap(layers, columns, values, caption="‖ΔW‖ of the difference, by layer")
        most = self.frame().sort("norm_diff", descending=True).head(MOST_SHOWN)
        names = ("layer", "module", "norm_diff", "effective_rank_diff", "cosine", "largest_angle_out")
        titles = ("layer", "module", "‖ΔW‖ diff", "effective rank", "cosine", "largest angle (°)")
        return [heat, Table(titles, most.select(names).rows(), caption="Where most changed")]

    def _behaviour_blocks(self) -> list[Block]:
        behaviour = self.behaviour
        if behaviour is None or not behaviour.probes:
            return [Note("Behaviour was not compared: no probes were given.")]
        kl = [(probe.probe.prompt, probe.kl) for probe in behaviour.probes]
        total = len(behaviour.probes)
        facts = Facts(
            [
                ("answers changed", f"{behaviour.changed} of {total}"),
                ("top-1 flips", f"{behaviour.flips} of {behaviour.positions} tokens"),
                ("mean KL(left ‖ right)", f"{behaviour.kl:.3g} nats per token"),
            ]
        )
        changed = [probe for probe in behaviour.probes if probe.text_a != probe.text_b]
        answers = [
            Marked(probe.probe.prompt, *word_marks(probe.text_a, probe.text_b), self.left.label, self.right.label)
            for probe in changed[:ANSWERS_SHOWN]
        ]
        more = len(changed) - ANSWERS_SHOWN
        rest = [Note(f"{more} more changed answers are in to_dict().")] if more > 0 else []
        return [facts, Bars(kl, unit="nats per token", caption="KL(left ‖ right) per probe"), *answers, *rest]

    def _grid(self) -> tuple[list[str], list[str], list[list[float | None]]]:
        """Return layers, modules and the norm of the difference for each pair, ``None`` where nothing is adapted."""
        modules = list(dict.fromkeys(module.module for module in self.weights.modules))
        numbers = sorted({m.layer for m in self.weights.modules}, key=lambda n: math.inf if n is None else n)
        norms: dict[tuple[int | None, str], float] = {}
        for module in self.weights.modules:
            key = (module.layer, module.module)
            norms[key] = math.hypot(norms.get(key, 0.0), module.difference.norm)
        layers = ["other" if number is None else str(number) for number in numbers]
        return layers, modules, [[norms.get((number, module)) for module in modules] for number in numbers]

    def __repr__(self) -> str:
        parts = [f"‖ΔW‖ {self.weights.norm_diff:.3g}"]
        if self.behaviour is not None and self.behaviour.kl is not None:
            parts.append(f"KL {self.behaviour.kl:.3g} nats")
            parts.append(f"{self.behaviour.changed} of {len(self.behaviour.probes)} answers changed")
        return f"<Diff {self._title()} · {' · '.join(parts)}>"
