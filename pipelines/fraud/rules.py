"""Rules over feature vectors and scores, as data: published as an event, evaluated over whole columns.

A rule set is a JSON document with the two thresholds of the score and a list of rules:

    {"review_at": 300000, "block_at": 900000,
     "rules": [{"id": "burst", "when": "cn10m >= 6 and cs10m > 50000", "action": "block"},
               {"id": "new-place", "when": "new_country and amount > 20000", "action": "review", "mode": "shadow"}]}

Thresholds are parts per million. ``action`` is review or block; a rule in ``mode`` shadow is evaluated and recorded,
and decides nothing. An expression has numbers, fields of FeatureVector (integers as in the schema, amounts in cents),
``score`` (0 to 1), ``score_known``, ``+ - * / %``, comparisons, ``and or not``, ``in (1, 2)``, ``abs``, ``min``,
``max`` and ``ratio(a, b)``, which is 0 where b is 0. There are no attributes, subscripts, texts, powers or loops, and
an expression is bounded in length and nodes, so that evaluating one is a bounded number of operations per row.

A comparison with an unknown score is false. Numbers are 64-bit floats: integers up to 2^53 are exact. The same document
over the same rows gives the same answers.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import simpleeval  # type: ignore[import-untyped]
from numpy.typing import NDArray

from pipelines.codec import codec_of
from pipelines.errors import StreambankError

__all__ = ["DEFAULT_RULES", "MAX_RULES", "Rule", "RuleError", "RuleSet"]

MAX_RULES: Final = 40
MAX_EXPRESSION_CHARACTERS: Final = 1_000
MAX_EXPRESSION_NODES: Final = 200
MILLION: Final = 1_000_000

Columns = NDArray[Any]

_FEATURES: Final = codec_of("fraud.features").event_type("FeatureVector")
FIELDS: Final = tuple(field.name for field in _FEATURES.fields if field.storage == "long" and field.logical_type == "")
"""Fields of a feature vector that expressions may name."""
_COLUMN_NAMES: Final = frozenset((*FIELDS, "score", "score_known"))
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class RuleError(StreambankError):
    """A rule set that cannot be used; the message names the rule and what is wrong with it."""


def _ratio(over: Any, under: Any) -> Any:
    under = np.asarray(under, np.float64)
    return np.where(under == 0, 0.0, over / np.where(under == 0, 1.0, under))


def _not_equal(left: Any, right: Any) -> Any:
    """Unlike NumPy's, false where either is unknown (NaN), as every other comparison."""
    return (left < right) | (left > right)


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "abs": np.abs, "min": np.minimum, "max": np.maximum, "ratio": _ratio,
}  # fmt: skip
_ARGUMENTS: Final = {"abs": 1, "min": 2, "max": 2, "ratio": 2}
_OPERATORS: Final[dict[type[ast.AST], Callable[..., Any]]] = {
    ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.true_divide, ast.Mod: np.mod,
    ast.USub: np.negative, ast.UAdd: np.positive,
    ast.Eq: np.equal, ast.NotEq: _not_equal, ast.Gt: np.greater, ast.GtE: np.greater_equal,
    ast.Lt: np.less, ast.LtE: np.less_equal,
}  # fmt: skip
_NODES: Final = (
    ast.Expr, ast.Name, ast.Load, ast.Constant, ast.Tuple, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.Call,
    ast.And, ast.Or, ast.Not, ast.In, ast.NotIn, *_OPERATORS,
)  # fmt: skip


class _ColumnEvaluator(simpleeval.SimpleEval):  # type: ignore[misc]
    """simpleeval's walk over the tree, with columns for values: its short-circuits need one truth, columns have n."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        super().__init__(operators=_OPERATORS, functions=_FUNCTIONS, names=names)
        inherited: dict[type[ast.AST], Callable[..., Any]] = self.nodes  # type: ignore[has-type]
        kept = (ast.Expr, ast.Name, ast.BinOp, ast.Call, ast.Constant)
        self.nodes = {kind: inherited[kind] for kind in kept} | {
            ast.UnaryOp: self._unary, ast.BoolOp: self._bool, ast.Compare: self._compared, ast.Tuple: self._tuple,
        }  # fmt: skip

    def _unary(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            return np.logical_not(self._truth(node.operand))
        return _OPERATORS[type(node.op)](self._eval(node.operand))

    def _bool(self, node: ast.BoolOp) -> Any:
        combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        found = self._truth(node.values[0])
        for value in node.values[1:]:
            found = combine(found, self._truth(value))
        return found

    def _compared(self, node: ast.Compare) -> Any:
        left = self._eval(node.left)
        found: Any = True
        for operator, right_node in zip(node.ops, node.comparators, strict=True):
            right = self._eval(right_node)
            if isinstance(operator, ast.In | ast.NotIn):
                if not isinstance(right, tuple):
                    raise RuleError("'in' needs numbers in parentheses on its right")
                one = np.isin(left, right, invert=isinstance(operator, ast.NotIn))
            else:
                one = _OPERATORS[type(operator)](left, right)
            found = np.logical_and(found, one)
            left = right
        return found

    def _tuple(self, node: ast.Tuple) -> tuple[float, ...]:
        return tuple(self._eval(one) for one in node.elts)

    def _truth(self, node: ast.AST) -> Any:
        return _as_truth(self._eval(node), ast.unparse(node))


def _as_truth(value: Any, what: str) -> Any:
    """Yes or no: a comparison, or a number that is not 0 (and not unknown)."""
    if isinstance(value, tuple):
        raise RuleError(f"{what} is neither true nor false")
    found = np.asarray(value)
    return found if found.dtype == np.bool_ else _not_equal(found, 0)


class _Names(Mapping[str, Any]):
    """Columns by name, made 64-bit floats when first asked for."""

    def __init__(self, vectors: NDArray[np.void], score: NDArray[np.float64]) -> None:
        self._vectors = vectors
        self._made: dict[str, Any] = {"score": score, "score_known": ~np.isnan(score)}

    def __getitem__(self, name: str) -> Any:
        found = self._made.get(name)
        if found is None:
            if name not in FIELDS:
                raise KeyError(name)
            found = self._made[name] = self._vectors[name].astype(np.float64)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter((*self._made, *FIELDS))

    def __len__(self) -> int:
        return len(self._made) + len(FIELDS)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``blocks``: block, else review; ``shadow``: recorded only."""

    id: str
    when: str
    blocks: bool
    shadow: bool
    tree: ast.AST

    @classmethod
    def parse(cls, found: Any) -> Rule:
        """A rule of the document. Raises `RuleError`."""
        if not isinstance(found, dict) or not isinstance(name := found.get("id"), str) or not _NAME.fullmatch(name):
            raise RuleError(f"a rule needs an id of up to 40 small letters, digits, '-' and '_', found {found!r:.100}")
        unknown = set(found) - {"id", "when", "action", "mode"}
        if unknown:
            raise RuleError(f"rule {name}: unknown fields {sorted(unknown)}; there are id, when, action and mode")
        if found.get("action") not in ("review", "block"):
            raise RuleError(f"rule {name}: action is review or block, found {found.get('action')!r}")
        if found.get("mode", "enforce") not in ("enforce", "shadow"):
            raise RuleError(f"rule {name}: mode is enforce or shadow, found {found['mode']!r}")
        when = found.get("when")
        if not isinstance(when, str):
            raise RuleError(f"rule {name}: 'when' must be an expression")
        return cls(name, when, found["action"] == "block", found.get("mode") == "shadow", _parsed(name, when))


def _parsed(name: str, when: str) -> ast.AST:
    if len(when) > MAX_EXPRESSION_CHARACTERS:
        raise RuleError(f"rule {name}: {len(when)} characters; at most {MAX_EXPRESSION_CHARACTERS}")
    try:
        body = ast.parse(when.strip()).body
        if len(body) != 1 or not isinstance(tree := body[0], ast.Expr):
            raise RuleError(f"rule {name}: 'when' must be one expression")
        nodes = list(ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RuleError(f"rule {name}: {error}") from error
    if len(nodes) > MAX_EXPRESSION_NODES:
        raise RuleError(f"rule {name}: {len(nodes)} parts; at most {MAX_EXPRESSION_NODES}")
    functions = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        _check_node(name, node)
        if isinstance(node, ast.Name) and id(node) not in functions and node.id not in _COLUMN_NAMES:
            raise RuleError(f"rule {name}: there is no field {node.id!r}; there are {', '.join(sorted(_COLUMN_NAMES))}")
    try:
        empty = np.zeros(1, _FEATURES.dtype)
        _evaluate(tree, when, _Names(empty, np.full(1, np.nan)))
    except (simpleeval.InvalidExpression, RuleError, TypeError, ValueError) as error:
        raise RuleError(f"rule {name}: {error}") from error
    return tree


def _check_node(name: str, node: ast.AST) -> None:
    if not isinstance(node, _NODES):
        raise RuleError(f"rule {name}: {type(node).__name__} is not part of the rules' language")
    if isinstance(node, ast.Constant):
        if not isinstance(node.value, int | float):
            raise RuleError(f"rule {name}: constants are numbers, found {node.value!r}")
        if abs(node.value) > 2**53:
            raise RuleError(f"rule {name}: {node.value} is beyond 2^53")
    if isinstance(node, ast.Tuple) and not all(isinstance(one, ast.Constant | ast.UnaryOp) for one in node.elts):
        raise RuleError(f"rule {name}: 'in' takes a list of numbers")
    if isinstance(node, ast.Call):
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        if called not in _FUNCTIONS or node.keywords or len(node.args) != _ARGUMENTS[called]:
            wanted = ", ".join(f"{one} of {count}" for one, count in _ARGUMENTS.items())
            raise RuleError(f"rule {name}: functions are {wanted}, found {ast.unparse(node)}")


def _evaluate(tree: ast.AST, when: str, names: _Names) -> NDArray[np.bool_]:
    with np.errstate(all="ignore"):
        evaluator = _ColumnEvaluator(names)
        found = _as_truth(evaluator.eval(when, tree), when)
    return np.broadcast_to(found, names["score"].shape)


@dataclass(frozen=True, slots=True)
class RuleSet:
    """One version of the rules; ``review_at`` and ``block_at`` in parts per million of the score."""

    version: int
    review_at: int
    block_at: int
    rules: tuple[Rule, ...]

    @classmethod
    def parse(cls, document: str, version: int) -> RuleSet:
        """The rule set in a JSON document. Raises `RuleError`."""
        try:
            found = json.loads(document)
        except (ValueError, RecursionError) as error:
            raise RuleError(f"the rule set is not JSON: {error}") from error
        if not isinstance(found, dict) or (unknown := set(found) - {"review_at", "block_at", "rules"}):
            what = sorted(unknown) if isinstance(found, dict) else type(found).__name__
            raise RuleError(f"a rule set is an object with review_at, block_at and rules, found {what}")
        review_at, block_at = (_threshold(found, name) for name in ("review_at", "block_at"))
        if review_at > block_at:
            raise RuleError(f"review_at {review_at} is above block_at {block_at}")
        listed = found.get("rules", [])
        if not isinstance(listed, list) or len(listed) > MAX_RULES:
            raise RuleError(f"rules must be a list of at most {MAX_RULES}")
        rules = tuple(Rule.parse(one) for one in listed)
        if len({rule.id for rule in rules}) != len(rules):
            raise RuleError("two rules have the same id")
        return cls(version, review_at, block_at, rules)

    def hits(self, vectors: NDArray[np.void], score: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which rules hit which rows, shape (rules, n). ``score`` is 0 to 1, NaN where unknown."""
        names = _Names(vectors, score)
        found = np.empty((len(self.rules), len(vectors)), np.bool_)
        for row, rule in enumerate(self.rules):
            found[row] = _evaluate(rule.tree, rule.when, names)
        return found


def _threshold(document: dict[str, Any], name: str) -> int:
    value = document.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MILLION + 1:
        raise RuleError(f"{name} is 1 to 1,000,001 parts per million (the last one: never), found {value!r}")
    return value


DEFAULT_RULES: Final = RuleSet(0, 300_000, 900_000, ())
"""In force until a rule set is published: thresholds of the score alone."""
