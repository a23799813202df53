"""Serves the registered fraud models over HTTP: TensorFlow Serving's REST shape, Open Inference Protocol v2, MLflow's
``/invocations``.

The registry's aliases are the labels; requests that name no version get the champion. Aliases are read again every few
seconds: a version new to the server is loaded beside the others, tried on a fixed sample, and only then one pointer is
switched. Requests under way finish on the version they began with, and a version that cannot serve changes nothing but
a metric and a log line.

Errors are ``{"error": "..."}``: 400 for inputs the model cannot score, 404 for a model, version or label that is not
there, 413 for too many rows, 503 before the first champion. A prediction is the calibrated probability of fraud.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version as installed
from typing import Any, Final

import msgspec
import numpy as np
import structlog
from aiohttp import web
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from models.fraud_registry import CHAMPION, Registry
from models.scoring import BadInputsError, OnnxModel

__all__ = ["Served", "make_app"]

MAX_ROWS: Final = 10_000
MAX_BODY_BYTES: Final = 16 << 20
ROWS_ON_THE_LOOP: Final = 64
"""Up to here scoring takes less time than handing it to a thread."""
OUTPUT: Final = "fraud_probability"

BINARY_HEADER: Final = "Inference-Header-Content-Length"
"""Bytes of the JSON at the front of an Open Inference body; the tensors that are not in it lie behind."""

_DATATYPES: Final = {
    "FP32": "<f4", "FP64": "<f8", "BOOL": "?",
    "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
}  # fmt: skip

log = structlog.get_logger(__name__)


class _Refused(Exception):  # noqa: N818 - becomes an answer
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True, slots=True)
class Served:
    """What is served now; replaced as a whole, never changed."""

    models: Mapping[int, OnnxModel] = field(default_factory=dict)
    aliases: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    """Versions with an alias that cannot serve, and why."""


class _Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "model_requests", "Requests by protocol and status.", ["protocol", "status"], registry=self.registry
        )
        self.rows = Counter("model_rows", "Rows scored, by version.", ["version"], registry=self.registry)
        self.seconds = Histogram(
            "model_request_seconds", "Time of a prediction request.", ["protocol"], registry=self.registry,
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
        )  # fmt: skip
        self.version = Gauge("model_alias_version", "Version by alias.", ["alias"], registry=self.registry)
        self.swaps = Counter("model_swaps", "Changes of what is served.", registry=self.registry)
        self.failures = Counter("model_load_failures", "Versions that could not be served.", registry=self.registry)


def make_app(registry: Registry, poll_seconds: float = 2.0) -> web.Application:
    """The server of one registered model; `ModelServer.follow` is run once before it accepts requests."""
    return ModelServer(registry, poll_seconds).app()


class ModelServer:
    """State and handlers of the server. `follow` reads the aliases once; the app does so every ``poll_seconds``."""

    def __init__(self, registry: Registry, poll_seconds: float = 2.0) -> None:
        self.served = Served()
        self._registry = registry
        self._name = registry.name
        self._poll_seconds = poll_seconds
        self._metrics = _Metrics()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._answer_errors])
        one = "/v1/models/{name:[^/:]+}"
        for at in ("", "/versions/{version:[^/:]+}", "/labels/{label:[^/:]+}"):
            app.router.add_post(one + at + ":predict", self._counted("tensorflow", self._predict))
            app.router.add_get(one + at, self._status)
            app.router.add_get(one + at + "/metadata", self._tensorflow_metadata)
        app.router.add_get("/v2", self._server_metadata)
        app.router.add_get("/v2/health/live", self._live)
        app.router.add_get("/v2/health/ready", self._ready)
        for at in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            app.router.add_get(at, self._model_metadata)
            app.router.add_get(at + "/ready", self._model_ready)
            app.router.add_post(at + "/infer", self._counted("open-inference", self._infer))
        app.router.add_post("/invocations", self._counted("mlflow", self._invocations))
        app.router.add_get("/version", self._mlflow_version)
        app.router.add_get("/metrics", self._metrics_page)
        for path in ("/ping", "/health", "/healthz"):
            app.router.add_get(path, self._ready)
        app.cleanup_ctx.append(self._following)
        return app

    async def follow(self) -> None:
        """Read the aliases; load what is new, try it, and switch."""
        aliases = await asyncio.to_thread(self._registry.aliases)
        now = self.served
        if aliases == now.aliases:
            return
        wanted = set(aliases.values())
        models = {number: model for number, model in now.models.items() if number in wanted}
        failed: dict[int, str] = {}
        for number in sorted(wanted - set(models)):
            try:
                models[number] = await asyncio.to_thread(self._load, number)
            except Exception as error:  # whatever is wrong with it, the others go on serving
                failed[number] = str(error)
                self._metrics.failures.inc()
                log.error("model version cannot serve", model=self._name, version=number, error=str(error))
        kept = dict(aliases)
        for alias, number in aliases.items():
            if number in failed:
                previous = now.aliases.get(alias)
                if previous is not None and previous in now.models:
                    kept[alias] = previous
                    models[previous] = now.models[previous]
                else:
                    del kept[alias]
        if (kept, set(models)) != (dict(now.aliases), set(now.models)):
            self._metrics.swaps.inc()
            log.info("models served", model=self._name, aliases=kept)
        for alias in set(now.aliases) - set(kept):
            self._metrics.version.remove(alias)
        for alias, number in kept.items():
            self._metrics.version.labels(alias).set(number)
        self.served = Served(models, kept, failed)

    def _load(self, number: int) -> OnnxModel:
        version = self._registry.version(number)
        self._registry.check_serves(version)
        return OnnxModel(self._registry.exported(version))

    async def _following(self, app: web.Application) -> AsyncIterator[None]:
        await self.follow()

        async def forever() -> None:
            while True:
                await asyncio.sleep(self._poll_seconds)
                try:
                    await self.follow()
                except Exception as error:  # the registry is away: what is served goes on
                    log.warning("registry cannot be read", model=self._name, error=str(error))

        task = asyncio.create_task(forever())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    # --- which model

    def _chosen(self, request: web.Request) -> tuple[int, OnnxModel]:
        """The version a request is about, by number, label, or the champion."""
        found = request.match_info
        name = found.get("name", self._name)
        if name != self._name:
            raise _Refused(404, f"Servable not found for request: no model {name!r}; this server has {self._name!r}")
        served = self.served
        if "version" in found:
            number = int(found["version"]) if found["version"].isdecimal() else -1
            if number not in served.models:
                raise _Refused(404, f"no version {found['version']}; loaded are {sorted(served.models)}")
        else:
            label = found.get("label", CHAMPION)
            if label not in served.aliases:
                status = 503 if "label" not in found else 404
                raise _Refused(status, f"no version has the label {label!r}; there are {sorted(served.aliases)}")
            number = served.aliases[label]
        return number, served.models[number]

    async def _score(self, number: int, model: OnnxModel, inputs: NDArray[np.float64]) -> list[float]:
        if len(inputs) > MAX_ROWS:
            raise _Refused(413, f"{len(inputs)} rows in one request; at most {MAX_ROWS}")
        if len(inputs) <= ROWS_ON_THE_LOOP:
            scores = model.score(inputs)
        else:
            scores = await asyncio.to_thread(model.score, inputs)
        self._metrics.rows.labels(str(number)).inc(len(inputs))
        found: list[float] = scores.tolist()
        return found

    # --- TensorFlow Serving

    async def _predict(self, request: web.Request) -> web.Response:
        number, model = self._chosen(request)
        body = await _object(request)
        if ("instances" in body) == ("inputs" in body):
            raise _Refused(400, "exactly one of 'instances' (rows) and 'inputs' (columns) is expected")
        if "instances" in body:
            return _json({"predictions": await self._score(number, model, _rows(body["instances"], model))})
        return _json({"outputs": await self._score(number, model, _columns(body["inputs"], model))})

    async def _status(self, request: web.Request) -> web.Response:
        named = {"version", "label"} & set(request.match_info)
        numbers = [self._chosen(request)[0]] if named else None
        if numbers is None:
            if request.match_info["name"] != self._name:
                self._chosen(request)
            numbers = sorted({*self.served.models, *self.served.failed}, reverse=True)
        failed = self.served.failed
        return _json(
            {
                "model_version_status": [
                    {
                        "version": str(number),
                        "state": "AVAILABLE" if number in self.served.models else "END",
                        "status": {
                            "error_code": "UNKNOWN" if number in failed else "OK",
                            "error_message": failed.get(number, ""),
                        },
                    }
                    for number in numbers
                ]
            }
        )

    async def _tensorflow_metadata(self, request: web.Request) -> web.Response:
        number, model = self._chosen(request)
        return _json(
            {
                "model_spec": {"name": self._name, "signature_name": "", "version": str(number)},
                "metadata": {"inputs": list(model.inputs), "output": OUTPUT, **model.metadata},
            }
        )

    # --- Open Inference Protocol v2

    async def _server_metadata(self, request: web.Request) -> web.Response:
        return _json(
            {"name": "streambank-models", "version": installed("streambank"), "extensions": ["binary_tensor_data"]}
        )

    async def _live(self, request: web.Request) -> web.Response:
        return _json({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        ready = CHAMPION in self.served.aliases
        return _json({"ready": ready}, 200 if ready else 503)

    async def _model_ready(self, request: web.Request) -> web.Response:
        self._chosen(request)
        return _json({"name": self._name, "ready": True})

    async def _model_metadata(self, request: web.Request) -> web.Response:
        number, model = self._chosen(request)
        del number
        return _json(
            {
                "name": self._name,
                "versions": [str(found) for found in sorted(self.served.models)],
                "platform": "onnx_onnxruntime",
                "inputs": [{"name": "inputs", "datatype": "FP64", "shape": [-1, len(model.inputs)]}],
                "outputs": [{"name": OUTPUT, "datatype": "FP64", "shape": [-1]}],
                "parameters": {"columns": list(model.inputs)},
            }
        )

    async def _infer(self, request: web.Request) -> web.Response:
        number, model = self._chosen(request)
        body, behind = _split(await request.read(), request.headers.get(BINARY_HEADER))
        tensors = {}
        found = body.get("inputs")
        if not isinstance(found, list) or not found:
            raise _Refused(400, "'inputs' must be a list of tensors")
        for tensor in found:
            name, values, behind = _tensor(tensor, behind)
            tensors[name] = values
        if behind:
            raise _Refused(400, f"{len(behind)} bytes behind the tensors belong to none")
        wants_binary = _wants_binary(body)
        if set(tensors) == {"inputs"}:
            inputs = tensors["inputs"]
        else:
            inputs = _columns({name: values.reshape(-1).tolist() for name, values in tensors.items()}, model)
        scores = await self._score(number, model, inputs)
        output = {"name": OUTPUT, "datatype": "FP64", "shape": [len(scores)]}
        answer = {"model_name": self._name, "model_version": str(number)} | ({"id": body["id"]} if "id" in body else {})
        if not wants_binary:
            return _json({**answer, "outputs": [{**output, "data": scores}]})
        data = np.array(scores, "<f8").tobytes()
        head = msgspec.json.encode({**answer, "outputs": [{**output, "parameters": {"binary_data_size": len(data)}}]})
        return web.Response(
            body=head + data, content_type="application/octet-stream", headers={BINARY_HEADER: str(len(head))}
        )

    # --- MLflow

    async def _invocations(self, request: web.Request) -> web.Response:
        number, model = self._chosen(request)
        if request.content_type == "text/csv":
            records = list(csv.DictReader(io.StringIO(await request.text())))
            try:
                rows: Any = [{name: float(value) for name, value in record.items()} for record in records]
            except (TypeError, ValueError) as error:
                raise _Refused(400, f"the CSV has a field that is no number: {error}") from error
            return _json({"predictions": await self._score(number, model, _rows(rows, model))})
        body = await _object(request)
        given = {"dataframe_split", "dataframe_records", "instances", "inputs"} & set(body)
        if len(given) != 1:
            raise _Refused(400, "exactly one of dataframe_split, dataframe_records, instances and inputs is expected")
        kind = given.pop()
        value = body[kind]
        if kind == "dataframe_split":
            if not isinstance(value, dict) or "data" not in value:
                raise _Refused(400, "dataframe_split must have columns and data")
            if "columns" in value:
                value = [dict(zip(value["columns"], row, strict=False)) for row in value["data"]]
            else:
                value = value["data"]
        inputs = _columns(value, model) if kind == "inputs" else _rows(value, model)
        return _json({"predictions": await self._score(number, model, inputs)})

    async def _mlflow_version(self, request: web.Request) -> web.Response:
        return web.Response(text=installed("mlflow"))

    # --- around all

    async def _metrics_page(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _counted(
        self, protocol: str, handler: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def counted(request: web.Request) -> web.Response:
            began = time.perf_counter()
            status = 500
            try:
                response = await handler(request)
                status = response.status
                return response
            except BadInputsError:
                status = 400
                raise
            except _Refused as error:
                status = error.status
                raise
            finally:
                self._metrics.requests.labels(protocol, str(status)).inc()
                self._metrics.seconds.labels(protocol).observe(time.perf_counter() - began)

        return counted

    @web.middleware
    async def _answer_errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except _Refused as error:
            return _json({"error": str(error)}, error.status)
        except BadInputsError as error:
            return _json({"error": str(error)}, 400)
        except web.HTTPException as error:
            return _json({"error": error.reason}, error.status)
        except Exception:
            log.exception("request failed", path=request.path)
            return _json({"error": "internal error; the server's log has it"}, 500)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def _object(request: web.Request) -> dict[str, Any]:
    return _object_in(await request.read())


def _object_in(text: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(text)  # several times faster, and stricter: NaN is no JSON
    except (msgspec.DecodeError, RecursionError):
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _Refused(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise _Refused(400, "the body must be a JSON object")
    return body


def _matrix(values: Any, what: str) -> NDArray[np.float64]:
    try:
        with np.errstate(all="ignore"):
            return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise _Refused(400, f"{what} must be numbers, as many in each row: {error}") from error


def _rows(value: Any, model: OnnxModel) -> NDArray[np.float64]:
    """Row format: a list of rows, each a list in the order of the model's inputs, an object by their names, or an
    object with ``inputs``."""
    if not isinstance(value, list):
        raise _Refused(400, "rows must be a list")
    if not value:
        return np.empty((0, len(model.inputs)))
    if isinstance(value[0], dict):
        rows = []
        for number, row in enumerate(value):
            if not isinstance(row, dict):
                raise _Refused(400, f"row {number} is not an object like the first one")
            if set(row) == {"inputs"}:
                rows.append(row["inputs"])
                continue
            missing = [name for name in model.inputs if name not in row]
            unknown = [name for name in row if name not in model.inputs]
            if missing or unknown:
                raise _Refused(400, f"row {number}: {_difference(missing, unknown)}")
            rows.append([row[name] for name in model.inputs])
        return _matrix(rows, "rows")
    return _matrix(value, "rows")


def _columns(value: Any, model: OnnxModel) -> NDArray[np.float64]:
    """Columnar format: a matrix, an object with the matrix as ``inputs``, or an object of one list per input."""
    if isinstance(value, dict) and set(value) == {"inputs"}:
        value = value["inputs"]
    if not isinstance(value, dict):
        return _matrix(value, "inputs")
    missing = [name for name in model.inputs if name not in value]
    unknown = [name for name in value if name not in model.inputs]
    if missing or unknown:
        raise _Refused(400, _difference(missing, unknown))
    columns = [_matrix(value[name], name).reshape(-1) for name in model.inputs]
    if len({len(column) for column in columns}) != 1:
        raise _Refused(400, "the columns have different lengths")
    return np.stack(columns, axis=1)


def _difference(missing: list[str], unknown: list[str]) -> str:
    parts = [f"missing {', '.join(missing)}"] if missing else []
    return "; ".join([*parts, *([f"unknown {', '.join(unknown)}"] if unknown else [])])


def _split(body: bytes, length: str | None) -> tuple[dict[str, Any], bytes]:
    """The JSON of an Open Inference body, and what lies behind it; ``length`` is the header that says where."""
    if length is None:
        return _object_in(body), b""
    if not (length.isascii() and length.isdecimal()) or len(length) > 9 or int(length) > len(body):
        raise _Refused(400, f"{BINARY_HEADER}: must be at most the body's {len(body)} bytes, found {length[:20]!r}")
    return _object_in(body[: int(length)]), body[int(length) :]


def _wants_binary(body: dict[str, Any]) -> bool:
    """Whether the output is asked for as bytes behind the JSON."""
    outputs, parameters = body.get("outputs"), body.get("parameters")
    if isinstance(outputs, list) and outputs:
        for output in outputs:
            if not isinstance(output, dict) or output.get("name") != OUTPUT:
                raise _Refused(400, f"'outputs' must name {OUTPUT!r}, the only one")
        parameters = outputs[0].get("parameters")
        return isinstance(parameters, dict) and parameters.get("binary_data") is True
    return isinstance(parameters, dict) and parameters.get("binary_data_output") is True


def _tensor(tensor: Any, behind: bytes) -> tuple[str, NDArray[np.float64], bytes]:
    """Name and values of a tensor of Open Inference Protocol v2, and what lies ``behind`` the JSON after it."""
    parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    needed = {"name", "shape", "datatype"} | ({"data"} if size is None else set())
    if not isinstance(tensor, dict) or not needed <= set(tensor):
        raise _Refused(400, "a tensor has name, shape, datatype and data")
    name, shape = str(tensor["name"]), tensor["shape"]
    if not isinstance(tensor["datatype"], str) or tensor["datatype"] not in _DATATYPES:
        raise _Refused(400, f"{name}: datatype {tensor['datatype']!r} is not one of {', '.join(sorted(_DATATYPES))}")
    if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise _Refused(400, f"{name}: shape must be a list of sizes")
    if size is None:
        values = _matrix(tensor["data"], name)
    else:
        kind = np.dtype(_DATATYPES[tensor["datatype"]])
        if type(size) is not int or not 0 <= size <= len(behind) or size % kind.itemsize:
            raise _Refused(400, f"{name}: binary_data_size {size!r} of the {len(behind)} bytes behind the JSON")
        values = np.frombuffer(behind[:size], kind).astype(np.float64)
        behind = behind[size:]
    if values.size != int(np.prod(shape)):
        raise _Refused(400, f"{name}: {values.size} values do not fill the shape {shape}")
    return name, values.reshape(shape), behind
