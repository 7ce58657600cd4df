"""From examples to a revision: the run behind ``adapter.train``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mintbook.config import TrainConfig
from mintbook.errors import AdapterError, ConfigError, RunStopped, UnknownReference
from mintbook.model.inits import initial_page
from mintbook.model.sites import choose_sites
from mintbook.run import Run
from mintbook.runtime import Runtime
from mintbook.serve.receipt import effect_receipt
from mintbook.store.leases import Lease
from mintbook.store.manifest import Manifest
from mintbook.store.origin import code_version, current_cell, package_versions
from mintbook.store.page import LAYOUT, Page
from mintbook.store.records import Record
from mintbook.store.revisions import Revision
from mintbook.store.runs import RunRow
from mintbook.train.anchors import Anchor, load_anchors
from mintbook.train.checkpoint import TrainingState
from mintbook.train.examples import Examples, split
from mintbook.train.optimizer import AdamW
from mintbook.train.trainer import StepReport, Trainer, TrainingData

PROBE = "Hello! Who are you?"
EXAMPLES, CHECKPOINT, FINAL = "examples.jsonl", "checkpoint.safetensors", "state.safetensors"


def start_training(runtime: Runtime, name: str, examples: Examples, config: TrainConfig) -> Run[Revision]:
    """Open the record's one training session and begin; the run ends in a revision.

    Raises `RecordLeased` when the record is in training already, here or in another process, `BaseMismatch` when it
    belongs to another base, and `DataError` when a validation share leaves nothing.
    """
    store = runtime.store
    split(examples, config.validation, config.seed)
    lease = store.lease(name)
    try:
        record = store.record(name)  # read under the lease: nobody else moves its head now
        runtime.residency.check_base(record.base_digest, name)
        facts = {
            "train": config.to_dict(),
            "parent": _head_digest(runtime, record),
            "cell": current_cell(),
            "compute_dtype": runtime.base.dtype,
        }
        row = store.start_run("train", name, facts)
        try:
            examples.save(store.run_folder(row.id) / EXAMPLES)
        except BaseException as error:
            store.update_run(row.id, status="failed", error=str(error))
            raise
        return _begin(runtime, record, row.id, _work(runtime, record, examples, facts, lease))
    except BaseException:
        lease.release()
        raise


def resume_training(runtime: Runtime, name: str) -> Run[Revision]:
    """Continue the record's last run that was stopped or interrupted, from its last checkpoint.

    Raises `UnknownReference` when there is none, and `ConfigError` when the head has moved since, or the base computes
    in another precision: the run would not go on as it began.
    """
    store = runtime.store
    lease = store.lease(name)
    try:
        record = store.record(name)
        runtime.residency.check_base(record.base_digest, name)
        row = _resumable(runtime, record)
        made = [r for r in store.revisions(name) if r.manifest.metrics.get("run") == row.id]
        if made:  # it died between its commit and its last word
            lease.release()
            store.update_run(row.id, status="running")
            return _begin(runtime, record, row.id, lambda run: _finished(runtime, run, made[0]), resumed=True)
        _check_unchanged(runtime, record, row)
        examples = Examples.load(store.run_folder(row.id) / EXAMPLES)
        store.update_run(row.id, status="running")
        return _begin(runtime, record, row.id, _work(runtime, record, examples, row.config, lease), resumed=True)
    except BaseException:
        lease.release()
        raise


def _begin(
    runtime: Runtime, record: Record, run_id: str, work: Callable[[Run[Revision]], Revision], *, resumed: bool = False
) -> Run[Revision]:
    run: Run[Revision] = Run(runtime.store, run_id, f"Training {record.name}")
    runtime.runs.add(run)
    return run.start(work, resumed=resumed)


def _resumable(runtime: Runtime, record: Record) -> RunRow:
    """Return the newest run that has something to go on from, if nothing was finished after it."""
    found = "it has no runs"
    for row in runtime.store.runs(record=record.name):
        if row.status in ("done", "running"):
            found = f"its last run {row.id} is {row.status}"
            break
        if (runtime.store.run_folder(row.id) / EXAMPLES).is_file():
            return row
    raise UnknownReference(f"{record.name} has no training to resume: {found}. Start one with train().")


def _check_unchanged(runtime: Runtime, record: Record, row: RunRow) -> None:
    head, parent = _head_digest(runtime, record), row.config["parent"]
    if head != parent:
        before, now = (digest[:12] if digest else "nothing" for digest in (parent, head))
        raise ConfigError(
            f"Run {row.id} of {record.name} began from {before}, and the head is {now} now. Move the head back with "
            "rollback(), or start anew with train()."
        )
    if row.config["compute_dtype"] != runtime.base.dtype:
        raise ConfigError(
            f"Run {row.id} of {record.name} computed in {row.config['compute_dtype']}, and this session's base in "
            f"{runtime.base.dtype}. Resume it in a session with dtype={row.config['compute_dtype']!r}."
        )


def _head_digest(runtime: Runtime, record: Record) -> str | None:
    return runtime.store.resolve(record.name).digest if record.head is not None else None


def receipt_of(runtime: Runtime, page: Page, slot: int) -> dict[str, Any]:
    """Return the effect receipt of the page in ``slot``; raise `AdapterError` when it changes nothing."""
    receipt = effect_receipt(runtime.engine, page, slot, tuple(runtime.base.renderer.prompt(PROBE)))
    if not receipt["nonzero_b"]:
        raise AdapterError(
            f"Every B of this adapter is zero, so it would answer as {runtime.base.name} under another name. "
            "Train it first, or choose other targets."
        )
    return receipt


def commit_page(
    runtime: Runtime,
    record: Record,
    page: Page,
    slot: int,
    *,
    facts: dict[str, Any],
    state: Path | None = None,
    lease: Lease | None = None,
) -> Revision:
    """Make the page in ``slot`` the record's next revision and leave it loaded.

    ``facts`` fill the manifest's fields about how the page came to be, its receipt among them. When the store refuses,
    it is left as it was.
    """
    base = runtime.base
    manifest = Manifest(
        base_digest=base.digest,
        base_name=base.name,
        tokenizer_digest=base.digests.tokenizer,
        renderer_digest=base.renderer.digest,
        lora=record.lora.to_dict(),
        sites=len(page.sites),
        parameters=page.parameters,
        rank=page.rank,
        targets=tuple(site.name for site in page.sites),
        alpha=record.lora.alpha,
        alpha_rule=record.lora.alpha_rule,
        init=record.lora.init,
        dtype=str(page.tensor.dtype).removeprefix("torch."),
        layout_version=LAYOUT,
        weights_digest=page.weights_digest(base.digest),
        code_version=code_version(),
        packages=package_versions(),
        **facts,
    )
    revision = runtime.store.commit(record.name, page=page, manifest=manifest, state=state, lease=lease)
    runtime.residency.adopt(revision, slot)
    return revision


def _work(
    runtime: Runtime, record: Record, examples: Examples, facts: dict[str, Any], lease: Lease
) -> Callable[[Run[Revision]], Revision]:
    def work(run: Run[Revision]) -> Revision:
        with lease:
            return _train(runtime, record, examples, facts, lease, run)

    return work


def _train(
    runtime: Runtime, record: Record, examples: Examples, facts: dict[str, Any], lease: Lease, run: Run[Revision]
) -> Revision:
    config = TrainConfig(**facts["train"])
    checkpoint = runtime.store.run_folder(run.id) / CHECKPOINT
    state = _state(runtime, record, facts["parent"], checkpoint).to(runtime.engine.model.device)
    run.forget_after(state.step)
    data = _data(runtime, examples, config, run)
    slot = runtime.residency.place(state.page)
    try:
        trainer = Trainer(runtime.engine, slot, state, config, data)

        def report(step: StepReport) -> None:
            run.record("step", **step.to_dict())
            run.progress(f"loss {step.loss:.3f}, step", step.step, config.steps)

        kept_step = trainer.run(checkpoint, lambda: run.stopping, report)
        if kept_step is None:
            raise _stopped(run.title, f"at step {state.step} of {config.steps}")
        run.progress("committing")
        final = checkpoint.with_name(FINAL)
        state.save(final)
        last = next((entry for entry in run.metrics if entry["step"] == kept_step), {"step": kept_step})
        made_by = {
            "parent": facts["parent"],
            "cell": facts["cell"],
            "compute_dtype": facts["compute_dtype"],
            "train": config.to_dict(),
            "receipt": receipt_of(runtime, state.page, slot),
            "seed": config.seed,
            "data_digest": examples.digest,
            "data_count": len(examples.sequences),
            "metrics": {name: value for name, value in last.items() if name != "seconds"} | {"run": run.id},
        }
        revision = commit_page(runtime, record, state.page, slot, facts=made_by, state=final, lease=lease)
    except BaseException:
        runtime.residency.discard(slot)
        raise
    return _finished(runtime, run, revision)


def _finished(runtime: Runtime, run: Run[Revision], revision: Revision) -> Revision:
    """Say what the run made, and clear away what only an unfinished one needs."""
    for name in (CHECKPOINT, FINAL):
        (runtime.store.run_folder(run.id) / name).unlink(missing_ok=True)
    run.outcome = {"revision": revision.reference}
    run.record("revision", reference=revision.reference, digest=revision.digest)
    return revision


def _data(runtime: Runtime, examples: Examples, config: TrainConfig, run: Run[Revision]) -> TrainingData:
    """Split the examples, get the anchors ready, and say on the run's card what there is."""
    train, validation = split(examples, config.validation, config.seed)

    def say(note: str, done: float, total: float) -> None:
        run.progress(note, done, total)
        if run.stopping:
            raise _stopped(run.title, "before its first step")

    anchors: list[Anchor] = []
    if config.anchor:
        cache = runtime.store.path / "anchors" / f"{runtime.base.digest}.safetensors"
        anchors = load_anchors(runtime.engine, runtime.base.renderer, cache, say)
    counts = examples.report()
    cut = f"{counts['truncated']} cut at {config.max_length} tokens" if counts["truncated"] else "none cut"
    run.describe("examples", f"{len(train.sequences)} to learn, {len(validation.sequences)} held out; {cut}")
    run.record("data", **counts, anchors=len(anchors))
    return TrainingData(train.sequences, validation.sequences, anchors)


def _stopped(what: str, where: str) -> RunStopped:
    return RunStopped(f"{what} was stopped {where}; its state is saved. Continue it with resume().")


def _state(runtime: Runtime, record: Record, parent: str | None, checkpoint: Path) -> TrainingState:
    """Return where to go on: the run's checkpoint, or the parent with its moments, or a new adapter."""
    store = runtime.store
    if parent is None:
        page = initial_page(choose_sites(runtime.engine.model.sites, record.lora.targets), record.lora)
        if checkpoint.is_file():
            return TrainingState.load(checkpoint, page)
        return TrainingState(page, AdamW.fresh(page.tensor))
    revision = store.resolve(f"@{parent}")
    page = store.page(revision)
    if checkpoint.is_file():
        return TrainingState.load(checkpoint, page)
    kept = store.state_path(revision)
    before = TrainingState.load(kept, page).optimizer if kept is not None else AdamW.fresh(page.tensor)
    return TrainingState(page, before)
