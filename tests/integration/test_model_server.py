"""Models from training to serving, without a stub: registered in an MLflow of its own, served over HTTP, swapped."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

from infra.cli.model import register
from models.fraud_dataset import BASE_INPUTS, INPUTS, FraudDataset, UnknownInputError, dataset_of, model_inputs
from models.fraud_evaluation import fold
from models.fraud_reasons import reasons
from models.fraud_registry import ModelVersion, NotPromotedError, Registry
from models.fraud_training import ParityError, Recipe, check_parity, export, fit
from models.fraud_workflow import evaluate_version, train_and_register
from models.model_server import MAX_ROWS, ModelServer
from models.scoring import BadModelError, OnnxModel
from models.simulator import simulate

pytestmark = [
    # MLflow and what it imports use functions that their libraries have deprecated
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WIDTH = len(INPUTS)
TREES = Recipe(train_days=28, settings={"n_estimators": 20, "max_depth": 3})
LINEAR = Recipe("logistic-regression", BASE_INPUTS, 14)


@pytest.fixture(scope="module")
def data() -> FraudDataset:
    """The first 150 customers at 300 terminals."""
    return dataset_of(simulate(customers=150, terminals=300))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("mlflow")
    return Registry(f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts")


@pytest.fixture(scope="module")
def versions(registry: Registry, data: FraudDataset) -> list[ModelVersion]:
    """Version 1, the champion, and version 2, the challenger with other inputs."""
    first = train_and_register(TREES, data, registry, data_name="small world", starts=(129, 136))
    assert first.aliases == ("challenger",)
    assert registry.promote().aliases == ("challenger", "champion")
    second = train_and_register(LINEAR, data, registry, data_name="small world", starts=(129, 136))
    return [registry.version(first.version), registry.version(second.version)]


@pytest.fixture
async def server(registry: Registry, versions: list[ModelVersion]) -> AsyncIterator[tuple[ModelServer, ClientSession]]:
    served = ModelServer(registry, poll_seconds=0.05)
    async with TestServer(served.app()) as at, ClientSession(at.make_url("/")) as client:
        yield served, client


async def post(client: ClientSession, path: str, body: Any) -> tuple[int, Any]:
    async with client.post(path, json=body) as response:
        return response.status, await response.json()


async def get(client: ClientSession, path: str) -> tuple[int, Any]:
    async with client.get(path) as response:
        return response.status, await response.json()


def rows_and_scores(registry: Registry, version: ModelVersion, data: FraudDataset) -> tuple[Any, Any]:
    model = OnnxModel(registry.exported(version))
    sample = data.vectors[-200:]
    return model_inputs(sample, model.inputs).tolist(), model.score_vectors(sample)


def test_registered_model_tells_where_it_comes_from(registry: Registry, versions: list[ModelVersion]) -> None:
    model = OnnxModel(registry.exported(versions[0]))
    stored = model.metadata
    assert stored["recipe"]["algorithm"] == "xgboost"
    assert (stored["data"], stored["train_window"]) == ("small world", [115, 142])
    assert set(stored["thresholds"]) >= {"100_cards_a_day", "least_cost"}
    assert set(stored["libraries"]) >= {"python", "xgboost", "onnxruntime"}
    assert set(versions[0].metrics) == {
        "auc_roc", "average_precision", "card_precision_100", "brier", "onnx_largest_difference",
    }  # fmt: skip


def test_evaluation_of_the_exported_bytes(registry: Registry, versions: list[ModelVersion], data: FraudDataset) -> None:
    found = evaluate_version(registry, "champion", data)
    assert 0.7 < found["auc_roc"] <= 1
    assert found["brier"] < 0.05


def test_reasons_add_up_to_the_score(registry: Registry, versions: list[ModelVersion], data: FraudDataset) -> None:
    model = OnnxModel(registry.exported(versions[0]))
    scores = model.score_vectors(data.vectors)
    highest = data.vectors[np.argsort(-scores)[:3]]
    found = reasons(model, highest, data.vectors[-50:])
    for one, score in zip(found, np.sort(scores)[::-1], strict=False):
        contributions = [part["contribution"] for part in one["inputs"]]
        assert one["average"] + sum(contributions) == pytest.approx(score * 1_000_000, abs=20)
        assert contributions == sorted(contributions, key=abs, reverse=True)
        assert {part["input"] for part in one["inputs"]} == set(model.inputs)
    assert reasons(model, highest, data.vectors[-50:]) == found


def test_export_that_scores_otherwise_is_refused(data: FraudDataset) -> None:
    train = fold(data, 129, 14).train
    test = fold(data, 129).test
    model, other = fit(LINEAR, train), fit(replace(LINEAR, fraud_weight=30), train)
    exported = export(model, LINEAR, test, {})
    with pytest.raises(ParityError, match="differ by more than"):
        check_parity(exported, other, LINEAR, test)


def test_bad_models_are_not_promoted(registry: Registry, versions: list[ModelVersion], data: FraudDataset) -> None:
    champion = registry.aliases()["champion"]
    good = registry.exported(versions[1])
    parity = {"onnx_largest_difference": 1e-6}
    for exported, metrics, why in (
        (b"not onnx", {"average_precision": 1.0}, "cannot serve"),
        (good, {"average_precision": 1.0}, "never compared with the trained one"),
        (good, {"average_precision": 1.0, "onnx_largest_difference": 0.02}, "differs by 0.02 from the trained one"),
        (good, parity, "never evaluated"),
        (good, {"average_precision": 0.0} | parity, "more than 0.005 less"),
        (good.replace(b'"risk30"', b'"risk31"'), {"average_precision": 1.0}, "cannot serve.*risk31"),
    ):
        bad = registry.add(exported, metrics, {}, "")
        with pytest.raises(NotPromotedError, match=why):
            registry.promote(bad.version)
    assert registry.aliases()["champion"] == champion
    with pytest.raises(NotPromotedError, match="no version or alias 'nobody'"):
        registry.promote("nobody")
    registry._client.set_registered_model_alias(registry.name, "challenger", str(versions[1].version))


def test_unknown_inputs_are_named(data: FraudDataset) -> None:
    with pytest.raises(UnknownInputError, match="risk31"):
        model_inputs(data.vectors[:1], ("amount", "risk31"))
    with pytest.raises(BadModelError, match="can load"):
        OnnxModel(b"nothing")


async def test_tensorflow_shape(
    server: Any, registry: Registry, versions: list[ModelVersion], data: FraudDataset
) -> None:
    _, client = server
    rows, scores = rows_and_scores(registry, versions[0], data)
    for path in ("", "/versions/1", "/labels/champion"):
        status, found = await post(client, f"/v1/models/fraud{path}:predict", {"instances": rows})
        assert (status, found["predictions"]) == (200, pytest.approx(scores))
    names = OnnxModel(registry.exported(versions[0])).inputs
    named = [dict(zip(names, row, strict=True)) for row in rows]
    assert (await post(client, "/v1/models/fraud:predict", {"instances": named}))[1]["predictions"] == pytest.approx(
        scores
    )
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    assert (await post(client, "/v1/models/fraud:predict", {"inputs": columns}))[1]["outputs"] == pytest.approx(scores)
    assert (await post(client, "/v1/models/fraud:predict", {"instances": []}))[1] == {"predictions": []}

    status, found = await get(client, "/v1/models/fraud")
    assert [(one["version"], one["state"]) for one in found["model_version_status"]] == [
        ("2", "AVAILABLE"), ("1", "AVAILABLE"),
    ]  # fmt: skip
    assert (await get(client, "/v1/models/fraud/labels/challenger"))[1]["model_version_status"][0]["version"] == "2"
    assert (await get(client, "/v1/models/fraud/metadata"))[1]["model_spec"]["version"] == "1"


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/models/other:predict", {"instances": []}, 404, "no model 'other'"),
        ("/v1/models/fraud/versions/99:predict", {"instances": []}, 404, "no version 99"),
        ("/v1/models/fraud/labels/stable:predict", {"instances": []}, 404, "no version has the label"),
        ("/v1/models/fraud:predict", {}, 400, "exactly one of"),
        ("/v1/models/fraud:predict", [], 400, "must be a JSON object"),
        ("/v1/models/fraud:predict", {"instances": [[1, 2]]}, 400, f"expected (rows, {WIDTH})"),
        ("/v1/models/fraud:predict", {"instances": [["a"] * WIDTH]}, 400, "must be numbers"),
        ("/v1/models/fraud:predict", {"instances": [[1] * WIDTH, [1]]}, 400, "must be numbers"),
        ("/v1/models/fraud:predict", {"instances": [[float("nan")] * WIDTH]}, 400, "not a finite number"),
        ("/v1/models/fraud:predict", {"instances": [{"amount": 1}]}, 400, "row 0: missing weekend"),
        ("/v1/models/fraud:predict", {"instances": [[0] * WIDTH] * (MAX_ROWS + 1)}, 413, "at most"),
        ("/v2/models/fraud/infer", {"inputs": []}, 400, "list of tensors"),
        ("/v2/models/fraud/infer", {"inputs": [{"name": "inputs"}]}, 400, "name, shape, datatype and data"),
        (
            "/v2/models/fraud/infer",
            {"inputs": [{"name": "inputs", "shape": [1, WIDTH], "datatype": "FP64", "data": [1]}]}, 400, "do not fill",
        ),
        ("/invocations", {"rows": []}, 400, "exactly one of"),
    ],
)  # fmt: skip
async def test_errors_say_what_is_wrong(server: Any, path: str, body: Any, status: int, said: str) -> None:
    _, client = server
    found, answer = await post(client, path, body)
    assert found == status
    assert set(answer) == {"error"}
    assert said in answer["error"]


async def test_open_inference_protocol(
    server: Any, registry: Registry, versions: list[ModelVersion], data: FraudDataset
) -> None:
    _, client = server
    rows, scores = rows_and_scores(registry, versions[0], data)
    assert await get(client, "/v2/health/live") == (200, {"live": True})
    assert await get(client, "/v2/health/ready") == (200, {"ready": True})
    assert (await get(client, "/v2/models/fraud/ready"))[1]["ready"] is True
    described = (await get(client, "/v2/models/fraud"))[1]
    assert described["inputs"] == [{"name": "inputs", "datatype": "FP64", "shape": [-1, WIDTH]}]
    flat = [value for row in rows for value in row]
    tensor = {"name": "inputs", "shape": [len(rows), WIDTH], "datatype": "FP64", "data": flat}
    status, found = await post(client, "/v2/models/fraud/infer", {"id": "7", "inputs": [tensor]})
    assert (status, found["id"], found["model_version"]) == (200, "7", "1")
    assert found["outputs"][0]["shape"] == [len(rows)]
    assert found["outputs"][0]["data"] == pytest.approx(scores)
    by_name = [
        {"name": name, "shape": [len(rows), 1], "datatype": "FP64", "data": [row[place] for row in rows]}
        for place, name in enumerate(described["parameters"]["columns"])
    ]
    found = (await post(client, "/v2/models/fraud/versions/1/infer", {"inputs": by_name}))[1]
    assert found["outputs"][0]["data"] == pytest.approx(scores)


async def test_tritons_client(registry: Registry, versions: list[ModelVersion], data: FraudDataset) -> None:
    """A client of the Open Inference Protocol that knows nothing of us: tensors as bytes, which is its default, and as
    JSON."""
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
    from tritonclient.utils import InferenceServerException

    rows, scores = rows_and_scores(registry, versions[0], data)
    challenger_rows, challenger_scores = rows_and_scores(registry, versions[1], data)

    def ask(port: int) -> None:
        with InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("fraud")
            assert client.is_model_ready("fraud", "2")
            assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
            described = client.get_model_metadata("fraud")
            assert described["versions"] == ["1", "2"]
            [tensor], [output] = described["inputs"], described["outputs"]

            def infer(values: Any, kind: str, binary: bool, version: str = "", **options: Any) -> Any:
                sent = np.array(values, {"FP64": np.float64, "FP32": np.float32}[kind])
                given = InferInput(tensor["name"], sent.shape, kind)
                given.set_data_from_numpy(sent, binary_data=binary)
                return client.infer("fraud", [given], model_version=version, request_id="7", **options)

            for kind, binary in (("FP64", True), ("FP64", False), ("FP32", True)):
                for outputs in (None, [InferRequestedOutput(output["name"], binary_data=not binary)]):
                    found = infer(rows, kind, binary, outputs=outputs)
                    assert found.as_numpy(output["name"]) == pytest.approx(scores, abs=1e-5)
                    answer = found.get_response()
                    assert (answer["id"], answer["model_version"]) == ("7", "1")
                    assert ("data" in answer["outputs"][0]) == (outputs is not None and binary)
            found = infer(challenger_rows, "FP64", True, "2")
            assert found.as_numpy(output["name"]) == pytest.approx(challenger_scores)

            with pytest.raises(InferenceServerException, match=rf"expected \(rows, {WIDTH}\)"):
                infer([[1.0]], "FP64", True)
            with pytest.raises(InferenceServerException, match="no version 99"):
                infer(rows, "FP64", True, "99")
            with pytest.raises(InferenceServerException, match="must name 'fraud_probability'"):
                infer(rows, "FP64", True, outputs=[InferRequestedOutput("labels")])

    async with TestServer(ModelServer(registry).app()) as at:
        assert at.port
        await asyncio.to_thread(ask, at.port)
        async with ClientSession(at.make_url("/")) as session:
            tensor = {
                "name": "inputs",
                "shape": [1, WIDTH],
                "datatype": "FP64",
                "parameters": {"binary_data_size": 8 * WIDTH},
            }
            good = json.dumps({"inputs": [tensor]}).encode()
            for body, length, said in (
                (good + b"\0" * 8 * (WIDTH - 1), len(good), f"of the {8 * (WIDTH - 1)} bytes behind"),
                (good + b"\0" * 8 * (WIDTH + 1), len(good), "8 bytes behind the tensors belong to none"),
                (good + b"\0" * 8 * WIDTH, len(good) + 8 * WIDTH + 1, "at most the body's"),
                (good + b"\0" * 8 * WIDTH, "x", "at most the body's"),
            ):
                headers = {"Inference-Header-Content-Length": str(length)}
                async with session.post("/v2/models/fraud/infer", data=body, headers=headers) as response:
                    assert (response.status, said in (await response.json())["error"]) == (400, True)


async def test_mlflows_own_client(registry: Registry, versions: list[ModelVersion], data: FraudDataset) -> None:
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    rows, scores = rows_and_scores(registry, versions[0], data)
    names = OnnxModel(registry.exported(versions[0])).inputs
    async with TestServer(ModelServer(registry).app()) as at:
        client = ScoringServerClient("127.0.0.1", at.port)
        await asyncio.to_thread(client.wait_server_ready, 10)
        answer = await asyncio.to_thread(client.invoke, pd.DataFrame(rows, columns=list(names)))
        assert answer.get_predictions()[0].to_numpy() == pytest.approx(scores)
        async with ClientSession(at.make_url("/")) as session:
            text = pd.DataFrame(rows, columns=list(names)).to_csv(index=False)
            async with session.post("/invocations", data=text, headers={"Content-Type": "text/csv"}) as response:
                assert (await response.json())["predictions"] == pytest.approx(scores, abs=1e-5)


async def test_alias_moves_without_a_restart(
    server: Any, registry: Registry, versions: list[ModelVersion], data: FraudDataset
) -> None:
    """Requests run all the time: each is answered by one version or the other, none fails."""
    served, client = server
    first, second = (rows_and_scores(registry, version, data) for version in versions)
    names = {version.version: OnnxModel(registry.exported(version)).inputs for version in versions}
    everything = dict(zip(names[1], first[0][0], strict=True))
    champions: list[int] = []

    async def ask() -> None:
        number = served.served.aliases["champion"]
        row = [everything[name] for name in names[number]]
        status, found = await post(client, f"/v2/models/fraud/versions/{number}/infer", {
            "inputs": [{"name": "inputs", "shape": [1, len(row)], "datatype": "FP64", "data": row}]
        })  # fmt: skip
        assert status == 200
        champions.append(int(found["model_version"]))

    async def until(number: int) -> None:
        async with asyncio.timeout(20):
            while not champions or champions[-1] != number:
                await ask()

    await until(1)
    registry._client.set_registered_model_alias(registry.name, "previous", "1")
    registry._client.set_registered_model_alias(registry.name, "champion", "2")
    await until(2)
    assert (await post(client, "/v1/models/fraud:predict", {"instances": second[0]}))[1][
        "predictions"
    ] == pytest.approx(second[1])
    assert registry.rollback().version == 1
    await until(1)
    async with client.get("/metrics") as response:
        text = await response.text()
    assert 'model_alias_version{alias="champion"} 1.0' in text
    assert 'model_requests_total{protocol="open-inference",status="200"}' in text


async def test_a_champion_that_cannot_serve_changes_nothing(
    server: Any, registry: Registry, versions: list[ModelVersion], data: FraudDataset
) -> None:
    served, client = server
    bad = registry.add(b"garbage", {"average_precision": 1.0}, {}, "")
    registry._client.set_registered_model_alias(registry.name, "champion", str(bad.version))
    await served.follow()
    assert served.served.aliases["champion"] == 1
    rows, scores = rows_and_scores(registry, versions[0], data)
    assert (await post(client, "/v1/models/fraud:predict", {"instances": rows}))[1]["predictions"] == pytest.approx(
        scores
    )
    states = (await get(client, "/v1/models/fraud"))[1]["model_version_status"]
    assert {one["version"]: one["state"] for one in states}[str(bad.version)] == "END"
    registry._client.set_registered_model_alias(registry.name, "champion", "1")
    registry._client.set_registered_model_alias(registry.name, "challenger", "2")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Registry:
    """A model name without versions, in the same MLflow: to make a database takes longer than all the tests."""
    return Registry(registry.tracking_uri, tmp_path_factory.mktemp("empty"), "fraud-empty")


async def test_not_ready_before_the_first_champion(empty: Registry) -> None:
    async with TestServer(ModelServer(empty).app()) as at, ClientSession(at.make_url("/")) as client:
        assert (await get(client, "/v2/health/ready"))[0] == 503
        assert (await get(client, "/v2/health/live"))[0] == 200
        assert (await post(client, "/v1/models/fraud-empty:predict", {"instances": [[0.0] * WIDTH]}))[0] == 503


def test_calibration_keeps_order_and_fits(data: FraudDataset) -> None:
    from models.fraud_training import calibrate

    rng = np.random.default_rng(3)
    true = rng.uniform(0.01, 0.6, 20_000)
    fraud = rng.uniform(size=len(true)) < true
    skewed = true**3
    fitted = calibrate(skewed, fraud).apply(skewed)
    assert (np.diff(fitted[np.argsort(skewed)]) >= 0).all()
    assert abs(fitted.mean() - fraud.mean()) < 0.005
    assert np.abs(fitted - true).mean() < 0.5 * np.abs(skewed - true).mean()


def test_the_shell_searches_trains_evaluates_compares_promotes_and_rolls_back(
    registry: Registry, versions: list[ModelVersion]
) -> None:
    app = typer.Typer(callback=lambda: None)
    register(app)

    def shell(*arguments: str, fails: bool = False) -> str:
        uri = {"STREAMBANK_MLFLOW_TRACKING_URI": registry.tracking_uri, "COLUMNS": "160"}
        done = CliRunner().invoke(app, ["model", *arguments], env=uri)
        assert (done.exit_code != 0) == fails, done.output
        return done.output

    before = {version.version for version in registry.versions()}
    trained = shell(
        "train", "--algorithm", "logistic-regression", "--train-days", "14", "--trials", "2", "--customers", "60"
    )
    assert "best of 2 trials" in trained
    (added,) = {version.version for version in registry.versions()} - before
    assert registry.aliases()["challenger"] == added
    trials = registry._client.search_runs(
        [registry._client.get_experiment_by_name("fraud-search").experiment_id], order_by=["attributes.start_time ASC"]
    )
    assert [(run.data.tags["mlflow.runName"], run.info.status) for run in trials] == [
        ("trial 1", "FINISHED"), ("trial 2", "FINISHED"),
    ]  # fmt: skip
    best = max(run.data.metrics["average_precision"] for run in trials)
    assert f"average precision {best:.4f}" in " ".join(trained.split())
    assert set(trials[0].data.params) == {"algorithm", "train_days", "fraud_weight", "inputs", "data", "C"}

    assert "average_precision: 0." in shell("evaluate", str(added), "--customers", "60")
    assert re.search(rf"│ {added} +│ challenger +│ 0\.\d{{4}} ", shell("compare"))
    champion = registry.aliases()["champion"]
    poor = registry.add(
        registry.exported(versions[1]), {"average_precision": 0.0, "onnx_largest_difference": 0.0}, {}, ""
    )
    assert "more than 0.005 less" in " ".join(shell("promote", str(poor.version), fails=True).split())
    assert registry.aliases()["champion"] == champion
    better = registry.add(
        registry.exported(versions[1]), {"average_precision": 1.0, "onnx_largest_difference": 0.0}, {}, ""
    )
    assert f"champion is version {better.version}" in shell("promote")
    assert f"champion is version {champion}" in shell("rollback")
