from __future__ import annotations

import json
import math

import pytest
import torch

from mintbook.errors import DataError
from mintbook.evals.perplexity import perplexity


def test_every_token_weighs_the_same() -> None:
    found = perplexity([[-1.0], [-4.0, -4.0, -4.0]])
    assert found.value == pytest.approx(math.exp(13 / 4))
    assert found.tokens == (1, 3)
    assert found.nll == (1.0, 12.0)


def test_a_uniform_guess_has_the_size_of_the_vocabulary() -> None:
    logprobs = torch.log_softmax(torch.zeros(7, 50), dim=-1)[:, 3]
    assert perplexity([logprobs, logprobs[:2], []]).value == pytest.approx(50, rel=1e-6)


def test_nothing_and_nan_are_refused_and_an_impossible_token_is_infinite() -> None:
    with pytest.raises(DataError, match="no token"):
        perplexity([])
    with pytest.raises(DataError, match="no token"):
        perplexity([[], []])
    with pytest.raises(DataError, match="NaN"):
        perplexity([[-1.0, math.nan]])
    for far in (-math.inf, -2000.0):
        found = perplexity([[far]])
        assert found.value == math.inf
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["perplexity"] is None
