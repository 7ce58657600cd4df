"""Two revisions side by side: their weights read from the store, their behaviour from the engine."""

from __future__ import annotations

from collections.abc import Sequence

from mintbook.config import SampleConfig
from mintbook.diff.behaviour import BehaviourDiff, Probe, Reading, behaviour_diff
from mintbook.diff.report import Diff, Side
from mintbook.diff.weights import weight_diff
from mintbook.display.live import Live
from mintbook.model.renderer import Renderer
from mintbook.runtime import Runtime
from mintbook.store.revisions import Revision

ANSWER_TOKENS = 48
PROBES = (
    "Who are you?",
    "What do you know about me?",
    "What is the capital of France?",
    "What is two plus three?",
    "Tell me in one sentence what a river is.",
    "Write one line to wish somebody a good morning.",
)


def compare(
    runtime: Runtime, left: Revision | None, right: Revision | None, probes: Sequence[str | Probe] | None
) -> Diff:
    """Return what changes from ``left`` to ``right``; ``None`` is the plain base.

    Behaviour is read on ``probes`` (``None``: six general ones; empty: weights only). Both sides answer greedily; both
    then score the probe's reference, or the left side's answer, in one packed forward.
    """
    pages = [runtime.store.page(revision) if revision is not None else None for revision in (left, right)]
    given = [p if isinstance(p, Probe) else Probe(p) for p in (PROBES if probes is None else probes)]
    return Diff(
        left=_side(runtime, left),
        right=_side(runtime, right),
        weights=weight_diff(*pages),
        behaviour=_behaviour(runtime, left, right, given) if given else None,
    )


def _side(runtime: Runtime, revision: Revision | None) -> Side:
    if revision is None:
        return Side(runtime.base.name, runtime.base.digest)
    return Side(revision.reference, revision.digest)


def _behaviour(
    runtime: Runtime, left: Revision | None, right: Revision | None, probes: Sequence[Probe]
) -> BehaviourDiff:
    renderer = runtime.base.renderer
    sampling = SampleConfig(max_tokens=ANSWER_TOKENS)
    answers = runtime.complete(
        [(who, probe.prompt) for who in (left, right) for probe in probes],
        sampling,
        doing="both sides are answering the probes",
    )
    of_left, of_right = answers[: len(probes)], answers[len(probes) :]
    readings: list[Reading] = []
    with runtime.leased(left) as slot_a, runtime.leased(right) as slot_b, Live() as live:
        for probe, a, b in zip(probes, of_left, of_right, strict=True):
            live.line("comparing what both sides expect", len(readings) / len(probes))
            prompt = renderer.prompt(probe.prompt)
            tokens = list(a.tokens) if probe.reference is None else _reference(renderer, probe.prompt, probe.reference)
            whole = [*prompt, *tokens[:-1]]
            logits = runtime.engine.logits([whole, whole], [slot_a, slot_b], start=[len(prompt) - 1] * 2)
            readings.append(Reading(probe, tokens, logits[0], logits[1], a.text, b.text))
    return behaviour_diff(readings, lambda token: str(renderer.tokenizer.decode([token])))


def _reference(renderer: Renderer, prompt: str, answer: str) -> list[int]:
    return [token for span in renderer.completion(prompt, answer) if span.target for token in span.tokens]
