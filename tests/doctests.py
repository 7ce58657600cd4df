"""The names that the examples in docstrings may use; a plugin, because doctests lie outside this folder."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _names_of_examples(
    request: pytest.FixtureRequest, doctest_namespace: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not isinstance(request.node, pytest.DoctestItem) or request.node.dtest is None:
        return
    source = "".join(example.source for example in request.node.dtest.examples)
    if "tiny_base_folder" in source:
        from mintbook.model.tiny_base import write_tiny_base

        # A folder of its own: an example's session is not closed, and stays the resident of this base.
        doctest_namespace["tiny_base_folder"] = write_tiny_base(tmp_path_factory.mktemp("doctest") / "tiny")
    if "store_folder" in source:
        doctest_namespace["store_folder"] = tmp_path_factory.mktemp("doctest_store")
