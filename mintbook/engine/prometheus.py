"""Counters in the text that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from mintbook.engine.counters import Counters, Histogram

Number = int | float


def prometheus_text(counters: Counters) -> str:
    """Return the counters in Prometheus' text exposition format, version 0.0.4."""
    c = counters
    finished = {f'reason="{reason}"': n for reason, n in sorted(c.finished.items())}
    lines = [
        *gauge("requests_waiting", "Requests that have not begun.", c.requests_waiting),
        *gauge("requests_loading", "Requests whose adapter is still loading.", c.requests_loading),
        *gauge("requests_running", "Requests that are being answered.", c.requests_running),
        *gauge("requests_preempted", "Requests that are set aside until there is room.", c.requests_preempted),
        *counter("requests_finished", "Requests that ended, by why.", finished),
        *counter("requests_refused", "Requests that were refused because too many waited.", c.refused),
        *counter("preemptions", "Times that a request was set aside.", c.preemptions),
        *counter("prompt_tokens_read", "Prompt tokens that went through the model.", c.tokens_read),
        *counter("prompt_tokens_known", "Prompt tokens served from the prefix cache.", c.tokens_from_prefixes),
        *counter("generated_tokens", "Tokens of answers.", c.tokens_generated),
        *counter("steps", "Steps of the engine.", c.steps),
        *gauge("adapters_in_step", "Distinct adapters in the last step.", c.adapters_in_step),
        *gauge("kv_tokens_used", "KV-cache tokens that are held.", c.kv_tokens_used),
        *gauge("kv_tokens_kept", "KV-cache tokens that only kept prefixes hold.", c.kv_tokens_kept),
        *gauge("kv_tokens_free", "KV-cache tokens that are free.", c.kv_tokens_free),
        *histogram("first_token_seconds", "Seconds from a request to its first token.", c.first_token_s),
        *histogram("next_token_seconds", "Seconds from a token to the next of its request.", c.next_token_s),
    ]
    return "\n".join(lines) + "\n"


def gauge(name: str, meaning: str, value: Number) -> Iterator[str]:
    """Yield the lines of a number that goes up and down."""
    yield from _head(name, meaning, "gauge")
    yield f"mintbook_{name} {value}"


def counter(name: str, meaning: str, value: Number | Mapping[str, Number]) -> Iterator[str]:
    """Yield the lines of a number that only grows, or of one number for each label text such as ``reason="end"``."""
    yield from _head(f"{name}_total", meaning, "counter")
    if isinstance(value, Mapping):
        yield from (f"mintbook_{name}_total{{{labels}}} {number}" for labels, number in value.items())
    else:
        yield f"mintbook_{name}_total {value}"


def histogram(name: str, meaning: str, values: Histogram) -> Iterator[str]:
    """Yield the lines of a histogram, whose buckets count all values up to their bound."""
    yield from _head(name, meaning, "histogram")
    upto = list(accumulate(values.counts))
    for bound, number in zip([*map(str, values.bounds), "+Inf"], upto, strict=True):
        yield f'mintbook_{name}_bucket{{le="{bound}"}} {number}'
    yield f"mintbook_{name}_sum {values.total}"
    yield f"mintbook_{name}_count {upto[-1]}"


def _head(name: str, meaning: str, kind: str) -> Iterator[str]:
    yield f"# HELP mintbook_{name} {meaning}"
    yield f"# TYPE mintbook_{name} {kind}"
