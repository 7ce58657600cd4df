"""The options of mintbook: frozen, keyword-only, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from mintbook.errors import ConfigError, nearest

AlphaRule = Literal["constant", "ratio", "sqrt"]
Init = Literal["orthonormal", "peft"]
Schedule = Literal["cosine", "constant"]


def _check(holds: object, what: str) -> None:
    if not holds:
        raise ConfigError(what)


def _texts(given: Any) -> tuple[Any, ...]:
    """Return one text or several as a tuple: a user writes ``stop="END"`` as well as ``stop=["END", "##"]``."""
    return (given,) if isinstance(given, str) else tuple(given)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain data, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Make a config from keyword arguments; an unknown name raises `ConfigError` with the nearest known ones."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"{cls.__name__} has no option {name!r}.{nearest(name, known)} It takes: {', '.join(known)}."
                )
        return cls(**options)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig(_Config):
    """What an adapter is: its rank, its scale, where it sits and how it starts.

    The adapted layer computes ``y = W x + s · B (A x)`` with ``s`` from ``alpha_rule``: ``constant`` s = α,
    ``ratio`` s = α / r (Hu et al. 2021), ``sqrt`` s = α / √r (rsLoRA, Kalajdzievski 2023).
    """

    rank: int = 16
    """Rows of A, columns of B; 1 to 256."""
    alpha: float = 2.0
    alpha_rule: AlphaRule = "constant"
    targets: str | tuple[str, ...] = "upper-linear"
    """``"all-linear"`` (attention and MLP, not the unembedding), ``"upper-linear"`` (these in the upper 60% of the
    blocks: cheaper, and kinder to what the base knows), ``"attention"``, ``"mlp"``, or ends of module names."""
    init: Init = "orthonormal"
    """``orthonormal``: B = 0 and A with orthonormal rows; ``peft``: B = 0 and A Kaiming-uniform, as PEFT starts."""
    seed: int = 0
    """Seed of A's start."""

    def __post_init__(self) -> None:
        _check(
            isinstance(self.rank, int) and 1 <= self.rank <= 256,
            f"rank is {self.rank!r}; it must be an integer from 1 to 256.",
        )
        _check(self.alpha > 0, f"alpha is {self.alpha!r}; it must be positive.")
        _check(
            self.alpha_rule in ("constant", "ratio", "sqrt"),
            f"alpha_rule is {self.alpha_rule!r}; it must be 'constant', 'ratio' or 'sqrt'.",
        )
        _check(self.init in ("orthonormal", "peft"), f"init is {self.init!r}; it must be 'orthonormal' or 'peft'.")
        _check(bool(self.targets), "targets is empty; name at least one module, or say 'all-linear'.")
        object.__setattr__(self, "targets", self.targets if isinstance(self.targets, str) else tuple(self.targets))

    @property
    def scale(self) -> float:
        """The factor s of the update s · B A."""
        if self.alpha_rule == "constant":
            return self.alpha
        return self.alpha / (self.rank if self.alpha_rule == "ratio" else math.sqrt(self.rank))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(_Config):
    """How an adapter is trained on examples (supervised)."""

    steps: int = 40
    """Optimizer steps of this call."""
    batch_size: int = 8
    """Examples in one forward and backward."""
    accumulation: int = 1
    """Forward-backward passes whose gradients are summed into one optimizer step."""
    learning_rate: float = 2e-3
    warmup: float = 0.1
    """Share of the steps during which the learning rate rises from 0."""
    schedule: Schedule = "cosine"
    """``cosine`` falls to a tenth of the rate at the last step, ``constant`` stays."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    clip: float = 1.0
    """Largest gradient norm over the whole adapter; 0 disables."""
    max_length: int = 512
    """Tokens of one example; longer ones are cut at the end, and the cut is reported."""
    anchor: float = 5.0
    """Weight of the KL term KL(base ‖ adapter) on anchor answers, which keeps what the base can do; 0 disables."""
    anchor_batch_size: int = 8
    """Anchor answers in one forward and backward."""
    validation: float = 0.0
    """Share of the examples held out; 0 disables."""
    patience: int = 0
    """Stop after this many validations without a better loss; 0 disables."""
    validate_every: int = 10
    """Steps between validations."""
    checkpoint_every: int = 20
    """Steps between checkpoints of the training state; 0 disables."""
    seed: int = 0
    """Seed of the order of examples and of the validation split."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "max_length", "validate_every", "anchor_batch_size"):
            value = getattr(self, name)
            _check(isinstance(value, int) and value >= 1, f"{name} is {value!r}; it must be an integer of at least 1.")
        for name in ("patience", "checkpoint_every", "clip", "weight_decay", "anchor"):
            _check(getattr(self, name) >= 0, f"{name} is {getattr(self, name)!r}; it must not be negative.")
        _check(self.learning_rate > 0, f"learning_rate is {self.learning_rate!r}; it must be positive.")
        _check(0 <= self.warmup <= 1, f"warmup is {self.warmup!r}; it is a share of the steps, from 0 to 1.")
        _check(
            0 <= self.validation < 1,
            f"validation is {self.validation!r}; it is a share of the examples, from 0 to below 1.",
        )
        _check(
            self.schedule in ("cosine", "constant"),
            f"schedule is {self.schedule!r}; it must be 'cosine' or 'constant'.",
        )
        _check(self.patience == 0 or self.validation > 0, "patience needs a validation share above 0 to judge by.")
        _check(
            0 <= self.beta1 < 1 and 0 <= self.beta2 < 1,
            f"beta1 {self.beta1!r} and beta2 {self.beta2!r} must lie in [0, 1).",
        )
        _check(self.eps > 0, f"eps is {self.eps!r}; it must be positive.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig(_Config):
    """How the next token is chosen and when a generation ends."""

    max_tokens: int = 64
    temperature: float = 0.0
    """0 is greedy: always the most likely token."""
    top_k: int = 0
    """Choose among this many most likely tokens; 0 disables."""
    top_p: float = 1.0
    """Choose among the most likely tokens whose probabilities sum to this; 1 disables."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    seed: int = 0
    """Seed of this request's draws."""
    logprobs: bool = False
    """Return the log-probability of every token of the answer."""

    def __post_init__(self) -> None:
        _check(
            isinstance(self.max_tokens, int) and self.max_tokens >= 1,
            f"max_tokens is {self.max_tokens!r}; it must be an integer of at least 1.",
        )
        _check(self.temperature >= 0, f"temperature is {self.temperature!r}; it must not be negative.")
        _check(
            isinstance(self.top_k, int) and self.top_k >= 0,
            f"top_k is {self.top_k!r}; it must be an integer, 0 or more.",
        )
        _check(0 < self.top_p <= 1, f"top_p is {self.top_p!r}; it must lie in (0, 1].")
        object.__setattr__(self, "stop", _texts(self.stop))
        _check(
            all(isinstance(text, str) and text for text in self.stop),
            f"stop is {self.stop!r}; it must hold non-empty strings.",
        )
