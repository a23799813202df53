"""Ensembles of small trees, applied to many rows at once: ONNX Runtime's sums in half the time.

ONNX Runtime takes one row through all trees, then the next: every row reads the whole ensemble again, and every
comparison is a branch that the processor guesses wrong half the time. Here one tree takes a block of rows, which
stays in the first cache, and a comparison is an addition: trees are filled up to complete ones, whose children lie at
``2 * node + 1`` and ``+ 2``.

`ensemble_of` takes the graph that `models.fraud_training.export` makes of boosted trees; whatever else a model may be,
it is none and ONNX Runtime computes it. Numbers are those of ONNX Runtime: single precision, trees in their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.compiled import compiled

__all__ = ["Ensemble", "ensemble_of"]

MAX_DEPTH: Final = 8
"""Of trees that are filled up: deeper ones take more memory than they save time."""
BLOCK_ROWS: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """``trees`` complete binary trees of one depth: ``features`` int32 and ``thresholds`` float32 (trees, 2^depth - 1),
    ``leaves`` float32 (trees, 2^depth). A row goes to the second child unless its feature is below the threshold."""

    features: NDArray[np.int32]
    thresholds: NDArray[np.float32]
    leaves: NDArray[np.float32]
    offset: float

    def probabilities(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Shape (n,), from finite inputs of shape (n, k)."""
        rows = np.ascontiguousarray(inputs).view()
        rows.flags.writeable = False  # one compilation serves all
        sums = np.zeros(len(rows), np.float32)
        depth = self.leaves.shape[1].bit_length() - 1
        _add_trees(rows, self.features, self.thresholds, self.leaves, sums, depth)
        return np.asarray(1.0 / (1.0 + np.exp(-(sums + np.float64(self.offset)))))

    def sample(self, count: int, columns: int) -> NDArray[np.float32]:
        """Rows whose numbers are thresholds of their column and their neighbours, shape (count, columns)."""
        rng = np.random.default_rng(0)
        rows = np.zeros((count, columns), np.float32)
        for column in range(columns):
            used = self.thresholds[(self.features == column) & np.isfinite(self.thresholds)]
            if len(used):
                near = (np.nextafter(used, np.float32(-np.inf)), used, np.nextafter(used, np.float32(np.inf)))
                rows[:, column] = rng.choice(np.concatenate(near), count)
        return rows


@compiled
def _add_trees(rows: Any, features: Any, thresholds: Any, leaves: Any, sums: Any, depth: Any) -> None:
    """Add to each row's sum the leaf that it comes to in every tree. Four rows at a time: one alone would wait at each
    level for the number that says where to go."""
    inner = np.uint64(features.shape[1])
    start, two = np.uint64(0), np.uint64(2)
    for first in range(0, len(rows), BLOCK_ROWS):
        last = min(first + BLOCK_ROWS, len(rows))
        for tree in range(len(features)):
            feature, threshold, leaf = features[tree], thresholds[tree], leaves[tree]
            number = first
            while number + 4 <= last:
                a, b, c, d = rows[number], rows[number + 1], rows[number + 2], rows[number + 3]
                at_a = at_b = at_c = at_d = start
                for _ in range(depth):
                    at_a = at_a + at_a + two - np.uint64(a[np.uint64(feature[at_a])] < threshold[at_a])
                    at_b = at_b + at_b + two - np.uint64(b[np.uint64(feature[at_b])] < threshold[at_b])
                    at_c = at_c + at_c + two - np.uint64(c[np.uint64(feature[at_c])] < threshold[at_c])
                    at_d = at_d + at_d + two - np.uint64(d[np.uint64(feature[at_d])] < threshold[at_d])
                sums[number] += leaf[at_a - inner]
                sums[number + 1] += leaf[at_b - inner]
                sums[number + 2] += leaf[at_c - inner]
                sums[number + 3] += leaf[at_d - inner]
                number += 4
            while number < last:
                row, at = rows[number], start
                for _ in range(depth):
                    at = at + at + two - np.uint64(row[np.uint64(feature[at])] < threshold[at])
                sums[number] += leaf[at - inner]
                number += 1


def ensemble_of(exported: bytes) -> Ensemble | None:
    """The trees in an ONNX model, or None where it is anything else than one binary classifier of boosted trees."""
    import onnx

    nodes = onnx.load_from_string(exported).graph.node
    trees = [node for node in nodes if node.op_type == "TreeEnsembleClassifier"]
    others = {node.op_type for node in nodes} - {"TreeEnsembleClassifier", "Cast", "Identity"}
    if len(trees) != 1 or others or trees[0].input[0] != "inputs":
        return None
    given = {one.name: onnx.helper.get_attribute_value(one) for one in trees[0].attribute}
    modes = {mode.decode() for mode in given["nodes_modes"]}
    if (
        given.get("post_transform") != b"LOGISTIC"
        or list(given.get("classlabels_int64s", ())) != [0, 1]
        or len(set(given["class_ids"])) != 1
        or not modes <= {"BRANCH_LT", "BRANCH_LEQ", "LEAF"}
    ):
        return None
    offset = float(given["base_values"][0]) if len(given.get("base_values", ())) else 0.0
    return _filled(given, offset)


def _filled(given: dict[str, Any], offset: float) -> Ensemble | None:
    """The trees of ONNX's attributes, filled up; None where one is too deep."""
    places = {place: at for at, place in enumerate(zip(given["nodes_treeids"], given["nodes_nodeids"], strict=True))}
    leaf_places = zip(given["class_treeids"], given["class_nodeids"], strict=True)
    weights = dict(zip(leaf_places, given["class_weights"], strict=True))
    numbers = sorted(set(given["nodes_treeids"]))
    modes = [mode.decode() for mode in given["nodes_modes"]]

    def depth_of(tree: int, node: int) -> int:
        at = places[tree, node]
        if modes[at] == "LEAF":
            return 0
        return 1 + max(depth_of(tree, given[name][at]) for name in ("nodes_truenodeids", "nodes_falsenodeids"))

    depth = max(1, *(depth_of(tree, 0) for tree in numbers))
    if depth > MAX_DEPTH:
        return None
    inner = 2**depth - 1
    features = np.zeros((len(numbers), inner), np.int32)
    thresholds = np.full((len(numbers), inner), np.inf, np.float32)
    leaves = np.zeros((len(numbers), inner + 1), np.float32)

    def fill(row: int, tree: int, node: int, place: int) -> None:
        at = places[tree, node]
        if modes[at] == "LEAF":
            while place < inner:  # every finite number is below infinity
                place = 2 * place + 1
            leaves[row, place - inner] = weights[tree, node]
            return
        threshold = np.float32(given["nodes_values"][at])
        if modes[at] == "BRANCH_LEQ":  # at most it is below the next number
            threshold = np.nextafter(threshold, np.float32(np.inf))
        features[row, place], thresholds[row, place] = given["nodes_featureids"][at], threshold
        fill(row, tree, given["nodes_truenodeids"][at], 2 * place + 1)
        fill(row, tree, given["nodes_falsenodeids"][at], 2 * place + 2)

    for row, tree in enumerate(numbers):
        fill(row, tree, 0, 0)
    for array in (features, thresholds, leaves):
        array.flags.writeable = False
    return Ensemble(features, thresholds, leaves, offset)
