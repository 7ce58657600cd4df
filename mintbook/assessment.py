"""What a revision knows and what it cost: questions asked through the engine, prose read by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mintbook.config import SampleConfig
from mintbook.display.live import Live
from mintbook.evals.perplexity import Perplexity, perplexity
from mintbook.evals.recall import Question, Score, score
from mintbook.evals.report import Evaluation, Kept, Rise, Subject
from mintbook.evals.suites import load_general, load_prose
from mintbook.runtime import Runtime
from mintbook.store.revisions import Revision

ANSWER_TOKENS = 32


def assess(
    runtime: Runtime, revision: Revision, questions: Mapping[str, Sequence[Question]], *, cost: bool
) -> Evaluation:
    """Ask a revision sets of questions, greedily and in shared batches.

    With ``cost``, the general questions and the prose that ship with mintbook are put to the base and to the revision,
    to say what is kept of the base. What the base itself answers is asked once per session.
    """
    base = runtime.base
    subject = Subject(
        reference=revision.reference,
        digest=revision.digest,
        base_name=base.name,
        base_digest=base.digest,
        renderer_digest=base.renderer.digest,
        targets=revision.manifest.targets,
        serving_path=f"engine, shared base, {base.dtype} on {base.device}",
    )
    recall = {name: ask(runtime, revision, asked) for name, asked in questions.items()}
    if not cost:
        return Evaluation(subject, recall)
    general, baseline = load_general(), runtime.baseline
    if baseline.general is None:
        baseline.general = ask(runtime, None, general)
    if baseline.prose is None:
        baseline.prose = _read_prose(runtime, None)
    return Evaluation(
        subject,
        recall,
        Kept(baseline.general, ask(runtime, revision, general)),
        Rise(baseline.prose, _read_prose(runtime, revision)),
    )


def ask(runtime: Runtime, revision: Revision | None, questions: Sequence[Question]) -> Score:
    """Return the greedy answers of a revision (``None``: the base) of at most 32 tokens, judged."""
    asks = [(revision, question.question) for question in questions]
    who = revision.reference if revision is not None else runtime.base.name
    answers = runtime.complete(asks, SampleConfig(max_tokens=ANSWER_TOKENS), doing=f"{who} is answering questions")
    return score(questions, [answer.text for answer in answers])


def _read_prose(runtime: Runtime, revision: Revision | None) -> Perplexity:
    tokenizer = runtime.base.renderer.tokenizer
    paragraphs = [list(tokenizer(text, add_special_tokens=False).input_ids) for text in load_prose()]
    with runtime.leased(revision) as slot, Live() as live:
        slots = [slot] * len(paragraphs)
        found = runtime.engine.logprobs(
            paragraphs, slots, budget=512, say=lambda done, total: live.line("reading prose", done / total)
        )
    return perplexity([row.tolist() for row in found])
