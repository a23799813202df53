"""Boosted trees say what ONNX Runtime says of them, on the thresholds too; what is no such model is left to it."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from models.fraud_dataset import FraudDataset, dataset_of
from models.fraud_training import Recipe, export, fit
from models.scoring import OnnxModel
from models.simulator import simulate
from models.trees import MAX_DEPTH, ensemble_of

pytestmark = pytest.mark.filterwarnings("ignore")
"""Of the export's libraries."""


@pytest.fixture(scope="module")
def data() -> FraudDataset:
    return dataset_of(simulate(customers=20, terminals=40))


def of_onnx_runtime(exported: bytes, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["probabilities"], {"inputs": rows})[0][:, 1], np.float64)


@pytest.mark.parametrize("depth", [1, 5, MAX_DEPTH])
def test_boosted_trees_score_as_onnx_runtime_does(data: FraudDataset, depth: int) -> None:
    recipe = Recipe(settings={"n_estimators": 40, "max_depth": depth, "learning_rate": 0.5, "min_child_weight": 1.0})
    exported = export(fit(recipe, data), recipe, data, {})
    trees = ensemble_of(exported)
    assert trees is not None
    assert trees.leaves.shape == (40, 2**depth)
    for rows in (trees.sample(2_000, len(recipe.inputs)), data.inputs(recipe.inputs)[:777].astype(np.float32)):
        expected = of_onnx_runtime(exported, rows)
        assert np.abs(trees.probabilities(rows) - expected).max() < 5e-7
        assert expected.std() > 0.01
        assert np.abs(OnnxModel(exported).score(rows) - expected).max() < 5e-7
    assert trees.probabilities(rows[:0]).shape == (0,)


def test_other_models_are_left_to_onnx_runtime(data: FraudDataset) -> None:
    for recipe in (
        Recipe("logistic-regression"),
        Recipe("random-forest", settings={"n_estimators": 5, "max_depth": 3}),
        Recipe(settings={"n_estimators": 3, "max_depth": MAX_DEPTH + 1, "min_child_weight": 0.0}),
    ):
        exported = export(fit(recipe, data), recipe, data, {})
        rows = data.inputs(recipe.inputs)[:100].astype(np.float32)
        assert ensemble_of(exported) is None
        # threads of ONNX Runtime add in another order
        assert np.abs(OnnxModel(exported).score(rows) - of_onnx_runtime(exported, rows)).max() < 5e-7


def test_at_most_a_threshold_is_below_the_next_number() -> None:
    """A tree of one side, by hand: x <= 2 ? (y < 1 ? 0.5 : -0.25) : -2, and an offset."""
    node = helper.make_node(
        "TreeEnsembleClassifier", ["inputs"], ["label", "probabilities"], domain="ai.onnx.ml",
        nodes_treeids=[0] * 5, nodes_nodeids=[0, 1, 2, 3, 4], nodes_featureids=[0, 1, 0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "BRANCH_LT", "LEAF", "LEAF", "LEAF"], nodes_values=[2.0, 1.0, 0.0, 0.0, 0.0],
        nodes_truenodeids=[1, 3, 0, 0, 0], nodes_falsenodeids=[2, 4, 0, 0, 0], class_treeids=[0, 0, 0],
        class_nodeids=[2, 3, 4], class_ids=[0, 0, 0], class_weights=[-2.0, 0.5, -0.25], classlabels_int64s=[0, 1],
        base_values=[0.125], post_transform="LOGISTIC",
    )  # fmt: skip
    rows, label, probabilities = (
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("inputs", TensorProto.FLOAT, [None, 2]), ("label", TensorProto.INT64, [None]),
            ("probabilities", TensorProto.FLOAT, [None, 2]),
        )
    )  # fmt: skip
    graph = helper.make_graph([node], "trees", [rows], [label, probabilities])
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    exported = helper.make_model(graph, opset_imports=sets, ir_version=8).SerializeToString()
    trees = ensemble_of(exported)
    assert trees is not None
    above = float(np.nextafter(np.float32(2), np.float32(3)))
    points = np.array([[2.0, 0.0], [2.0, 1.0], [above, 0.0], [-5.0, 0.5]], np.float32)
    expected = 1 / (1 + np.exp(-(np.array([0.5, -0.25, -2.0, 0.5]) + 0.125)))
    assert trees.probabilities(points) == pytest.approx(expected, abs=1e-7)
