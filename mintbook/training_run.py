"""From examples to a revision: the run behind ``adapter.train``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mintbook.config import TrainConfig
from mintbook.errors import AdapterError, RunStopped, UnknownReference
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
from mintbook.train.anchors import Anchor, load_anchors
from mintbook.train.checkpoint import TrainingState
from mintbook.train.examples import Examples, split
from mintbook.train.optimizer import AdamW
from mintbook.train.trainer import StepReport, Trainer, TrainingData

PROBE = "Hello! Who are you?"


def start_training(runtime: Runtime, record: Record, examples: Examples, config: TrainConfig) -> Run[Revision]:
    """Open the record's one training session and begin; the run ends in a revision.

    Raises `RecordLeased` when the record is in training already, here or in another process.
    """
    lease = runtime.store.lease(record.name)
    try:
        head = runtime.store.resolve(record.name) if record.head is not None else None
        facts = {"train": config.to_dict(), "parent": head.digest if head else None, "cell": current_cell()}
        row = runtime.store.start_run("train", record.name, facts)
        examples.save(runtime.store.run_folder(row.id) / "examples.jsonl")
        run: Run[Revision] = Run(runtime.store, row.id, f"Training {record.name}")
        return run.start(_work(runtime, record, examples, facts, lease))
    except BaseException:
        lease.release()
        raise


def resume_training(runtime: Runtime, record: Record) -> Run[Revision]:
    """Continue the record's last run that was stopped or interrupted, from its last checkpoint."""
    lease = runtime.store.lease(record.name)
    try:
        rows = runtime.store.runs(record=record.name, limit=1)
        if not rows or rows[0].status not in ("stopped", "interrupted", "failed"):
            last = f"its last run {rows[0].id} is {rows[0].status}" if rows else "it has no runs"
            raise UnknownReference(f"{record.name} has no training to resume: {last}. Start one with train().")
        row = rows[0]
        runtime.store.update_run(row.id, status="running")
        run: Run[Revision] = Run(runtime.store, row.id, f"Training {record.name}")
        made = [r for r in runtime.store.revisions(record.name) if r.manifest.metrics.get("run") == row.id]
        if made:  # it died between its commit and its last word
            lease.release()
            return run.start(lambda _: made[0], resumed=True)
        examples = Examples.load(runtime.store.run_folder(row.id) / "examples.jsonl")
        return run.start(_work(runtime, record, examples, row.config, lease), resumed=True)
    except BaseException:
        lease.release()
        raise


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
    checkpoint = runtime.store.run_folder(run.id) / "checkpoint.safetensors"
    state = _state(runtime, record, facts["parent"], checkpoint)
    run.forget_after(state.step)
    train, validation = split(examples, config.validation, config.seed)
    anchors: list[Anchor] = []
    if config.anchor:
        cache = runtime.store.path / "anchors" / f"{runtime.base.digest}.safetensors"
        anchors = load_anchors(runtime.engine, runtime.base.renderer, cache, run.progress)
    data = TrainingData(train.sequences, validation.sequences, anchors)
    counts = examples.report()
    cut = f"{counts['truncated']} cut at {config.max_length} tokens" if counts["truncated"] else "none cut"
    run.describe("examples", f"{len(train.sequences)} to learn, {len(validation.sequences)} held out; {cut}")
    run.record("data", **counts, anchors=len(anchors), from_step=state.step)
    slot = runtime.residency.place(state.page)
    kept = False
    try:
        trainer = Trainer(runtime.engine, slot, state, config, data)

        def report(step: StepReport) -> None:
            run.record("step", **step.to_dict())
            run.progress(f"loss {step.loss:.3f}, step", step.step, config.steps)

        if not trainer.run(checkpoint, lambda: run.stopping, report):
            raise RunStopped(
                f"Training of {record.name} was stopped at step {state.step} of {config.steps}; its state is saved. "
                "Continue it with resume()."
            )
        run.progress("committing")
        revision = commit_page(
            runtime,
            record,
            state.page,
            slot,
            facts={
                "parent": facts["parent"],
                "cell": facts["cell"],
                "train": config.to_dict(),
                "receipt": receipt_of(runtime, state.page, slot),
                "seed": config.seed,
                "data_digest": examples.digest,
                "data_count": len(examples.sequences),
                "metrics": {k: v for k, v in run.metrics[-1].items() if k != "seconds"} | {"run": run.id},
            },
            state=checkpoint,
            lease=lease,
        )
        kept = True
        run.record("revision", reference=revision.reference, digest=revision.digest)
        return revision
    finally:
        if not kept:
            runtime.residency.discard(slot)


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
