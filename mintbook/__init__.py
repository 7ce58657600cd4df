"""mintbook: train, inspect, diff and serve many small adapters over one shared model, from a notebook.

Session makes, Fleet holds, Adapter acts::

    import mintbook as mb

    session = mb.Session()                                  # one resident base, one durable store
    alice = session.adapter("alice", rank=8)                # get or create the record
    alice.train([("What is my dog called?", "Your dog is called Biscuit.")])
    alice.generate("What is my dog called?").text           # answered by alice@1
    alice.diff()                                            # what changed, in weights and in behaviour
    session.fleet.generate([("alice", "Hi"), (None, "Hi")]) # one mixed batch; None is the plain base
"""

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {
    "Adapter": "adapter",
    "Answers": "answers",
    "Completion": "engine.request",
    "Diff": "diff.report",
    "EngineConfig": "config",
    "Evaluation": "evals.report",
    "Fleet": "fleet",
    "LoraConfig": "config",
    "MintbookError": "errors",
    "Probe": "diff.behaviour",
    "Question": "evals.recall",
    "Revision": "store.revisions",
    "Run": "run",
    "SampleConfig": "config",
    "Session": "session",
    "TrainConfig": "config",
}
__all__ = [
    "Adapter",
    "Answers",
    "Completion",
    "Diff",
    "EngineConfig",
    "Evaluation",
    "Fleet",
    "LoraConfig",
    "MintbookError",
    "Probe",
    "Question",
    "Revision",
    "Run",
    "SampleConfig",
    "Session",
    "TrainConfig",
    "__version__",
]

if TYPE_CHECKING:
    from mintbook.adapter import Adapter
    from mintbook.answers import Answers
    from mintbook.config import EngineConfig, LoraConfig, SampleConfig, TrainConfig
    from mintbook.diff.behaviour import Probe
    from mintbook.diff.report import Diff
    from mintbook.engine.request import Completion
    from mintbook.errors import MintbookError
    from mintbook.evals.recall import Question
    from mintbook.evals.report import Evaluation
    from mintbook.fleet import Fleet
    from mintbook.run import Run
    from mintbook.session import Session
    from mintbook.store.revisions import Revision

    __version__: str
else:  # hidden from type checkers, which would accept any misspelt name

    def __getattr__(name: str) -> object:
        if name == "__version__":
            return import_module("importlib.metadata").version("mintbook")
        if name not in _HOME:
            raise AttributeError(f"module 'mintbook' has no attribute {name!r}")
        return getattr(import_module(f"mintbook.{_HOME[name]}"), name)

    def __dir__() -> list[str]:
        return __all__
