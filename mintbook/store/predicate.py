"""A polars filter as an SQL condition, as far as SQL can say it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

_OPERATORS = {"Eq": "=", "NotEq": "<>", "Lt": "<", "LtEq": "<=", "Gt": ">", "GtEq": ">="}
_MIRRORED = {"Eq": "Eq", "NotEq": "NotEq", "Lt": "Gt", "LtEq": "GtEq", "Gt": "Lt", "GtEq": "LtEq"}

Condition = tuple[str, list[Any]]


def sql_of(predicate: pl.Expr, columns: Mapping[str, str]) -> Condition:
    """Return an SQL condition and its parameters that hold for at least the rows for which ``predicate`` holds.

    Comparisons of a column with a number or a text, ``starts_with``, null tests, ``&`` and ``|`` are said in SQL; of a
    conjunction the rest is left out, and what cannot be said at all becomes ``1``. The caller filters again.

    >>> sql_of((pl.col("rank") >= 8) & pl.col("name").str.contains("x"), {"rank": "r", "name": "n"})
    ('r >= ?', [8])
    """
    # polars may change this form between versions; an unknown one is not translated, which costs time and no row.
    return _condition(json.loads(predicate.meta.serialize(format="json")), columns) or ("1", [])


def _condition(node: Any, columns: Mapping[str, str]) -> Condition | None:
    kind, body = _tagged(node)
    if kind == "BinaryExpr":
        if body["op"] in ("And", "LogicalAnd"):
            return _both(body, columns)
        if body["op"] in ("Or", "LogicalOr"):
            return _either(body, columns)
        return _comparison(body["op"], body["left"], body["right"], columns)
    if kind == "Function":
        return _function(body["function"], body["input"], columns)
    return None


def _both(body: Any, columns: Mapping[str, str]) -> Condition | None:
    sides = [
        side for side in (_condition(body["left"], columns), _condition(body["right"], columns)) if side is not None
    ]
    if len(sides) < 2:
        return sides[0] if sides else None
    (left, first), (right, second) = sides
    return f"({left} AND {right})", first + second


def _either(body: Any, columns: Mapping[str, str]) -> Condition | None:
    left, right = _condition(body["left"], columns), _condition(body["right"], columns)
    if left is None or right is None:
        return None
    return f"({left[0]} OR {right[0]})", left[1] + right[1]


def _comparison(operator: str, left: Any, right: Any, columns: Mapping[str, str]) -> Condition | None:
    if operator not in _OPERATORS:
        return None
    if _column(left, columns) is None:
        left, right, operator = right, left, _MIRRORED[operator]
    column, value = _column(left, columns), _literal(right)
    return None if column is None or value is None else (f"{column} {_OPERATORS[operator]} ?", [value])


def _function(function: Any, inputs: list[Any], columns: Mapping[str, str]) -> Condition | None:
    column = _column(inputs[0], columns)
    if column is None:
        return None
    if function == {"Boolean": "IsNull"}:
        return f"{column} IS NULL", []
    if function == {"Boolean": "IsNotNull"}:
        return f"{column} IS NOT NULL", []
    if function == {"StringExpr": "StartsWith"}:
        prefix = _literal(inputs[1])
        # A range instead of LIKE, so that the index on names serves it; U+10FFFF sorts after every name.
        return (
            (f"({column} >= ? AND {column} < ?)", [prefix, f"{prefix}\U0010ffff"]) if isinstance(prefix, str) else None
        )
    return None


def _column(node: Any, columns: Mapping[str, str]) -> str | None:
    kind, body = _tagged(node)
    return columns.get(body) if kind == "Column" else None


def _literal(node: Any) -> str | int | float | None:
    kind, body = _tagged(node)
    if kind != "Literal":
        return None
    _, value = _tagged(body)
    kind, plain = _tagged(value)
    # Dates and durations are integers in this form too, but not of the meaning that a column of integers has.
    if not kind.startswith(("Int", "UInt", "Float", "Str")):
        return None
    return plain if isinstance(plain, str | float) or (isinstance(plain, int) and abs(plain) < 2**63) else None


def _tagged(node: Any) -> tuple[str, Any]:
    return next(iter(node.items())) if isinstance(node, dict) and len(node) == 1 else ("", None)
