"""An adapter: a named, durable change of the base that can be trained, asked, compared, moved and rolled back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mintbook.answers import Answers
from mintbook.assessment import assess
from mintbook.comparison import compare
from mintbook.config import SampleConfig, TrainConfig
from mintbook.diff.behaviour import Probe
from mintbook.diff.report import Diff
from mintbook.display import Block, Card, Facts, Note, Table
from mintbook.display.quantity import bytes_text, number_text, short_digest
from mintbook.display.shown import Shown
from mintbook.engine.generation import Generation
from mintbook.engine.request import Completion
from mintbook.errors import ConfigError, UnknownReference
from mintbook.evals.recall import Question
from mintbook.evals.report import Evaluation
from mintbook.prewarming import set_alias_when_ready, start_prewarm
from mintbook.run import Run
from mintbook.runtime import Prompt, Runtime
from mintbook.store.peft_format import write_peft
from mintbook.store.records import Record
from mintbook.store.revisions import Revision
from mintbook.train.examples import Examples, ExampleSource, Preview, preview, tokenize
from mintbook.training_run import resume_training, start_training


class Adapter(Shown):
    """One record of the store, on the resident base; made by `Session.adapter` or ``fleet[name]``."""

    def __init__(self, name: str, runtime: Runtime) -> None:
        self.name = name
        self._runtime = runtime

    @property
    def record(self) -> Record:
        """The durable side of the adapter, as it is in the store now."""
        return self._runtime.store.record(self.name)

    @property
    def head(self) -> Revision | None:
        """The current revision, or ``None`` before the first training."""
        return self._runtime.store.resolve(self.name) if self.record.head is not None else None

    @property
    def revisions(self) -> list[Revision]:
        """Every revision, the first one first."""
        return self._runtime.store.revisions(self.name)

    def revision(self, reference: str = "") -> Revision:
        """Return one revision: ``""`` the head, ``"@3"`` a number, ``"@prod"`` an alias.

        Raises `UnknownReference` otherwise.
        """
        if reference and not reference.startswith("@"):
            raise UnknownReference(
                f"{reference!r} does not name a revision of {self.name}. "
                "Write '@3' for a number or '@prod' for an alias."
            )
        if not reference and self.record.head is None:
            raise UnknownReference(
                f"{self.name} has no revision yet, so it would answer as the base. Train it first, "
                "or ask the base itself with fleet.generate([(None, prompt)])."
            )
        return self._runtime.store.resolve(f"{self.name}{reference}")

    def examples(self, source: ExampleSource, *, max_length: int = TrainConfig().max_length) -> Examples:
        """Return what training would make of ``source``: tokens, which of them are learnt, what is cut."""
        longest = self._runtime.base.max_length
        if max_length > longest:
            raise ConfigError(f"max_length is {max_length}; {self._runtime.base.name} was made for {longest} tokens.")
        return tokenize(source, self._runtime.base.renderer, max_length)

    def preview(self, source: ExampleSource, *, count: int = 3, max_length: int = TrainConfig().max_length) -> Preview:
        """Return the first examples as the model will see them, context and targets told apart."""
        return preview(self.examples(source, max_length=max_length), self._runtime.base.renderer, count)

    def train(self, examples: ExampleSource, *, background: bool = False, **options: Any) -> Run[Revision]:
        """Train on examples from the head on, with its optimizer state, and commit the result as the next revision.

        ``examples``: dicts with ``messages`` or with ``prompt`` and ``completion``, pairs, a JSONL file, a polars frame
        or a datasets object. ``options`` are the fields of `TrainConfig`. Waits and shows progress, unless
        ``background``; the returned run has the metrics and its ``result()`` is the revision.
        """
        config = TrainConfig.from_options(**options)
        run = start_training(self._runtime, self.name, self.examples(examples, max_length=config.max_length), config)
        if not background:
            run.wait()
        return run

    def resume(self, *, background: bool = False) -> Run[Revision]:
        """Continue the last training that was stopped or killed, from its last checkpoint, with the same losses."""
        run = resume_training(self._runtime, self.name)
        if not background:
            run.wait()
        return run

    def generate(self, prompt: Prompt, *, at: str = "", **options: Any) -> Completion:
        """Answer a prompt with the head, or with the revision ``at`` (``"@2"``, ``"@prod"``).

        ``options`` are as in `SampleConfig`.
        """
        sampling = SampleConfig.from_options(**options)
        return self._runtime.complete([(self.revision(at), prompt)], sampling)[0]

    def sample(self, prompt: Prompt, n: int = 4, *, at: str = "", temperature: float = 1.0, **options: Any) -> Answers:
        """Draw ``n`` answers to one prompt in one batch; the first has the seed ``seed``, each other the next one.

        ``options`` are as in `SampleConfig`; `generate` with the same and the ``seed`` of an answer draws it again.
        """
        sampling = SampleConfig.from_options(temperature=temperature, **options)
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ConfigError(f"n is {n!r}; it must be an integer, at least 1.")
        if not sampling.temperature:
            raise ConfigError("At temperature 0 all answers are the same. Give a temperature above 0, or use generate.")
        configs = sampling.seeded(n)
        completions = self._runtime.complete([(self.revision(at), prompt)] * n, configs)
        return Answers(completions, [(f"{self.name}{at}", prompt)] * n)

    def stream(self, prompt: Prompt, *, at: str = "", **options: Any) -> Generation:
        """Return the answer in the making: iterate it for chunks of text, or ``cancel()`` it.

        ``options`` are as in `SampleConfig`.
        """
        return self._runtime.submit(self.revision(at), prompt, SampleConfig.from_options(**options))

    def diff(
        self,
        first: Adapter | str | None = None,
        second: Adapter | str | None = None,
        *,
        probes: list[str] | list[Probe] | None = None,
    ) -> Diff:
        """Say what changed, in weights and in behaviour.

        ``diff()`` compares the base with the head, ``diff(b)`` or ``diff("@1")`` the head with it, ``diff("@1", "@2")``
        the first with the second. ``probes`` are the questions on which behaviour is compared; an empty list compares
        weights only.
        """
        if first is None and second is None:
            return compare(self._runtime, None, self.revision(), probes)
        if second is None:
            return compare(self._runtime, self.revision(), self._side(first), probes)
        return compare(self._runtime, self._side(first), self._side(second), probes)

    def evaluate(
        self, questions: Mapping[str, Sequence[Question]] | Sequence[Question] = (), *, cost: bool = True, at: str = ""
    ) -> Evaluation:
        """Ask questions of the head (or ``at``) and measure what it cost the base.

        ``questions`` is one set, or sets by name. ``cost`` adds general questions that the base answers, and the
        perplexity of held-out prose; both ship with mintbook.
        """
        sets = questions if isinstance(questions, Mapping) else {"asked": questions} if questions else {}
        return assess(self._runtime, self.revision(at), sets, cost=cost)

    def alias(self, name: str, at: str = "", *, when_ready: bool = False) -> Revision:
        """Let ``alice@name`` mean the head, or the revision ``at``, from now on, and return that revision.

        With ``when_ready`` it is loaded first, and its effect is seen in its slot. Until then ``alice@name`` answers as
        before, and for good when that fails: what went wrong is raised, and says so.
        """
        revision = self.revision(at)
        if when_ready:
            set_alias_when_ready(self._runtime, revision, name)
        else:
            self._runtime.store.set_alias(self.name, name, revision.number)
        return revision

    def prewarm(self, at: str = "", *, background: bool = False) -> Run[list[Revision]]:
        """Load the head, or the revision ``at``, and see its effect, so that nobody who asks it waits for a load.

        The run is done when the revision is ready. Waits and shows progress, unless ``background``.
        """
        run = start_prewarm(self._runtime, [self.revision(at)], f"Prewarming {self.name}")
        if not background:
            run.wait()
        return run

    def pin(self, at: str = "", *, in_memory: bool = False) -> Revision:
        """Keep the head, or the revision ``at``, in its slot until `unpin`; or ``in_memory``, a copy away from one.

        Raises `CapacityError` when it does not fit beside what is pinned and in use.
        """
        revision, residency = self.revision(at), self._runtime.residency
        (residency.pin_in_memory if in_memory else residency.pin)(revision, self._runtime.store)
        return revision

    def unpin(self, at: str = "") -> Revision:
        """Let the head, or the revision ``at``, make room for others again, wherever it was pinned."""
        revision = self.revision(at)
        self._runtime.residency.unpin(revision)
        return revision

    def rollback(self, to: str = "") -> Revision:
        """Make an earlier revision the head again (by default the head's parent); nothing is deleted."""
        head = self.revision()
        if to:
            target = self.revision(to)
        elif head.manifest.parent is not None:
            target = self._runtime.store.resolve(f"@{head.manifest.parent}")
        else:
            raise UnknownReference(
                f"{head.reference} is the first revision of {self.name}; there is nothing before it."
            )
        self._runtime.store.set_head(self.name, target.number)
        return target

    def export(self, folder: str | Path, *, at: str = "") -> Path:
        """Write a revision as a PEFT folder, re-read it, and return the folder once it holds the same numbers."""
        revision = self.revision(at)
        runtime = self._runtime
        runtime.residency.check_base(revision.manifest.base_digest, revision.reference)
        write_peft(
            runtime.store.page(revision),
            Path(folder),
            base_model_name=runtime.base.name,
            base_digest=runtime.base.digest,
            sites=runtime.engine.model.sites,
        )
        return Path(folder)

    def card(self) -> Card:
        """Return what a person wants to know about the adapter."""
        record, revisions = self.record, self.revisions
        lora = record.lora
        facts: list[tuple[str, Any]] = [
            ("base", f"{record.base_name} ({short_digest(record.base_digest)})"),
            ("rank", lora.rank),
            ("scale", f"{lora.scale:.4g} (alpha {lora.alpha:g}, {lora.alpha_rule})"),
            ("targets", lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)),
        ]
        head = next((r for r in revisions if r.number == record.head), None)
        if head is None:
            return Card(
                self.name, "adapter", [Facts(facts), Note("Not trained yet: it has no revision to answer with.")]
            )
        page_bytes = head.manifest.parameters * 4
        facts += [("parameters", f"{number_text(head.manifest.parameters)} ({bytes_text(page_bytes)} in fp32)")]
        facts += [("head", f"{head.reference} ({short_digest(head.digest)})")]
        names: dict[int, list[str]] = {}
        for alias, number in self._runtime.store.aliases(self.name).items():
            names.setdefault(number, []).append(alias)
        rows = [
            [
                r.reference,
                ", ".join(["head"] * (r.number == record.head) + names.get(r.number, [])),
                r.manifest.data_count,
                r.manifest.metrics.get("step"),
                r.manifest.metrics.get("loss"),
                r.manifest.receipt.get("update_norm"),
                r.created[:16].replace("T", " "),
            ]
            for r in revisions
        ]
        columns = ("revision", "is", "examples", "steps", "last loss", "‖ΔW‖", "made (UTC)")
        blocks: list[Block] = [Facts(facts), Table(columns=columns, rows=rows, caption="Revisions")]
        return Card(self.name, "adapter", blocks, badge=head.reference)

    def _side(self, other: Adapter | str | None) -> Revision | None:
        if other is None:
            return None
        return other.revision() if isinstance(other, Adapter) else self.revision(other)

    def __repr__(self) -> str:
        record = self.record
        state = f"{self.name}@{record.head}" if record.head is not None else "not trained"
        return f"<Adapter {self.name} · rank {record.lora.rank} · {record.base_name} · {state}>"
