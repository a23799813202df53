"""Scores for frames of feature vectors: from the model server over HTTP, or from a model in this process.

Both are asked the same way and give the same numbers for the same champion. A scorer never raises and never takes
longer than it was allowed to: what it cannot score comes back without scores and with the reason.

`ServedScorer` and `EmbeddedScorer` live in an event loop; `following_scorer` gives an embedded one to those that have
none, say a Flink job.

`ServedScorer` asks for the version that it knows to be the champion, with that version's own inputs, and follows the
server's labels. Time-outs, connections that fail, 5xx and answers that are none count against the server; after
``failures_to_open`` in a row it is not asked for ``open_seconds``, and then by one request alone until it answers.
A 4xx says that the request is wrong, not the server, and never opens the circuit.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import CLOSED, OpenedState

from models.fraud_dataset import UnknownInputError, model_inputs
from models.fraud_registry import CHALLENGER, CHAMPION, MODEL_NAME, Registry
from models.model_server import ROWS_ON_THE_LOOP, ModelServer
from models.scoring import BadInputsError
from pipelines.errors import StreambankError
from pipelines.fraud.decisions import Scores, UnknownReason

__all__ = ["EmbeddedScorer", "ServedScorer", "following_scorer"]

POLL_SECONDS: Final = 2.0
POLL_SECONDS_WITHOUT_MODEL: Final = 0.25
METADATA_SECONDS: Final = 1.0
SHADOW_SHARE: Final = 0.1
"""Share of the allowed time that a decision waits for the challenger after the champion has answered."""
RETRY_SHARE: Final = 0.3
"""A failed request is repeated once, if this share of the time is left."""
CIRCUIT: Final = "model"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Version:
    number: int
    inputs: tuple[str, ...]


class _Fault(Exception):  # noqa: N818 - becomes a reason
    """The server did not give scores."""

    def __init__(self, reason: UnknownReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _RefusedFault(_Fault):
    """A 4xx, or a model that asks for what vectors do not have: not the server's failure."""

    def __init__(self, detail: str) -> None:
        super().__init__(UnknownReason.refused, detail)


class ServedScorer:
    """See the module. Use from one event loop."""

    def __init__(
        self, url: str, *, name: str = MODEL_NAME, failures_to_open: int = 5, open_seconds: float = 2.0
    ) -> None:
        self.model = name
        self._url = url.rstrip("/")
        self._breakers = AsyncCircuitBreakerFactory(
            default_threshold=failures_to_open, default_ttl=open_seconds, exclude=[_RefusedFault]
        )
        self._circuit_state = CLOSED
        self._is_probing = False
        self._champion: _Version | None = None
        self._challenger: _Version | None = None
        self._missing = UnknownReason.unreachable
        self._session: aiohttp.ClientSession | None = None
        self._following: asyncio.Task[None] | None = None

    @property
    def circuit_is_open(self) -> bool:
        """Whether the server is not asked, or by one request at a time."""
        return self._circuit_state != CLOSED

    async def open(self) -> None:
        """Start to follow the server's labels. A server that is away is no error."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=64), timeout=aiohttp.ClientTimeout(total=None)
        )
        await self._follow()
        self._following = asyncio.create_task(self._follow_forever())

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def score(self, vectors: NDArray[np.void], seconds: float) -> Scores:
        """Scores of feature vectors, within ``seconds``."""
        end = asyncio.get_running_loop().time() + seconds
        champion, challenger = self._champion, self._challenger
        if champion is None:
            return Scores(None, reason=self._missing)
        shadow = None
        if challenger is not None and challenger.number != champion.number and not self.circuit_is_open:
            shadow = asyncio.create_task(self._ask(challenger, vectors, end))
        try:
            version, found = await self._champion_scores(champion, vectors, end)
        except _Fault as fault:
            if shadow is not None:
                shadow.cancel()
                await asyncio.gather(shadow, return_exceptions=True)
            log.debug("no scores", reason=fault.reason.name, detail=str(fault))
            return Scores(None, reason=fault.reason)
        return Scores(
            found,
            version,
            UnknownReason.none,
            *await self._shadow_scores(shadow, challenger, SHADOW_SHARE * seconds, end),
        )

    async def _shadow_scores(
        self, shadow: asyncio.Task[NDArray[np.float64]] | None, challenger: _Version | None, grace: float, end: float
    ) -> tuple[NDArray[np.float64] | None, int]:
        if shadow is None or challenger is None:
            return None, 0
        left = end - asyncio.get_running_loop().time()
        await asyncio.wait([shadow], timeout=max(0.0, min(grace, left)))
        if not shadow.done():
            shadow.cancel()
        (found,) = await asyncio.gather(shadow, return_exceptions=True)
        return (None, 0) if isinstance(found, BaseException) else (found, challenger.number)

    async def _champion_scores(
        self, champion: _Version, vectors: NDArray[np.void], end: float
    ) -> tuple[int, NDArray[np.float64]]:
        loop = asyncio.get_running_loop()
        seconds = end - loop.time()
        try:
            return champion.number, await self._guarded(champion, vectors, end)
        except _Fault as fault:
            first = fault
        left = end - loop.time()
        if first.reason in (UnknownReason.timeout, UnknownReason.circuit_open) or left < RETRY_SHARE * seconds:
            raise first
        if isinstance(first, _RefusedFault):  # perhaps it serves another champion by now
            await self._follow(left / 2)
            if self._champion is None or self._champion == champion:
                raise first
            champion = self._champion
        try:
            return champion.number, await self._guarded(champion, vectors, end)
        except _Fault as fault:
            # what was wrong is what the server did, not that it is not asked a second time
            raise first if fault.reason is UnknownReason.circuit_open else fault from None

    async def _guarded(self, version: _Version, vectors: NDArray[np.void], end: float) -> NDArray[np.float64]:
        """One request, if the circuit allows it."""
        breaker = await self._breakers.get_breaker(CIRCUIT)
        probes = breaker.context.state != CLOSED
        if probes and self._is_probing:
            raise _Fault(UnknownReason.circuit_open, "another request is trying whether the server answers again")
        self._is_probing = self._is_probing or probes
        try:
            async with breaker:
                return await self._ask(version, vectors, end)
        except OpenedState as error:
            raise _Fault(UnknownReason.circuit_open, str(error)) from error
        finally:
            if probes:
                self._is_probing = False
            if breaker.context.state != self._circuit_state:
                self._circuit_state = breaker.context.state
                log.warning("circuit", state=self._circuit_state, server=self._url)

    async def _ask(self, version: _Version, vectors: NDArray[np.void], end: float) -> NDArray[np.float64]:
        assert self._session is not None, "open() comes first"
        try:
            inputs = model_inputs(vectors, version.inputs)
        except UnknownInputError as error:
            raise _RefusedFault(str(error)) from error
        tensor = {"name": "inputs", "shape": inputs.shape, "datatype": "FP64", "data": inputs.ravel().tolist()}
        path = f"{self._url}/v2/models/{self.model}/versions/{version.number}/infer"
        try:
            async with (
                asyncio.timeout_at(end),
                self._session.post(
                    path, data=msgspec.json.encode({"inputs": [tensor]}), headers={"Content-Type": "application/json"}
                ) as response,
            ):
                status, body = response.status, await response.read()
        except TimeoutError as error:
            raise _Fault(UnknownReason.timeout, "no answer within the deadline") from error
        except aiohttp.ClientConnectionError as error:
            raise _Fault(UnknownReason.unreachable, str(error)) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise _Fault(UnknownReason.bad_answer, str(error)) from error
        if 400 <= status < 500:
            raise _RefusedFault(f"{status}: {body[:200]!r}")
        if status >= 500:
            raise _Fault(UnknownReason.server_error, f"{status}: {body[:200]!r}")
        return _scores_in(status, body, version, len(vectors))

    async def _follow_forever(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS if self._champion else POLL_SECONDS_WITHOUT_MODEL)
            await self._follow()

    async def _follow(self, seconds: float = METADATA_SECONDS) -> None:
        """Read which versions are champion and challenger. What was known stays while the server is away."""
        try:
            async with asyncio.timeout(seconds):
                champion = await self._labelled(CHAMPION)
                challenger = await self._labelled(CHALLENGER)
        except (_Fault, TimeoutError) as fault:
            self._missing = fault.reason if isinstance(fault, _Fault) else UnknownReason.timeout
            return
        if champion is None:
            self._missing = UnknownReason.no_model
        if champion != self._champion:
            log.info("champion", version=champion.number if champion else None)
        self._champion, self._challenger = champion, challenger

    async def _labelled(self, label: str) -> _Version | None:
        assert self._session is not None, "open() comes first"
        try:
            async with self._session.get(f"{self._url}/v1/models/{self.model}/labels/{label}/metadata") as response:
                status, body = response.status, await response.read()
        except aiohttp.ClientError as error:
            raise _Fault(UnknownReason.unreachable, str(error)) from error
        if 400 <= status < 500:
            return None
        if status >= 500:
            raise _Fault(UnknownReason.server_error, str(status))
        try:
            found = msgspec.json.decode(body)
            return _Version(int(found["model_spec"]["version"]), tuple(map(str, found["metadata"]["inputs"])))
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise _Fault(UnknownReason.bad_answer, f"the metadata of {label}: {error!r}") from error


def _scores_in(status: int, body: bytes, version: _Version, count: int) -> NDArray[np.float64]:
    try:
        found: Any = msgspec.json.decode(body)
        (output,) = found["outputs"]
        answered, scores = str(found["model_version"]), np.array(output["data"], np.float64)
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise _Fault(UnknownReason.bad_answer, f"{status} {body[:200]!r}: {error!r}") from error
    if answered != str(version.number):
        raise _Fault(UnknownReason.bad_answer, f"version {answered} answered instead of {version.number}")
    if scores.shape != (count,) or not ((scores >= 0) & (scores <= 1)).all():
        raise _Fault(UnknownReason.bad_answer, f"not {count} probabilities")
    return scores


class EmbeddedScorer:
    """Champion and challenger of the registry in this process, swapped as the model server swaps them."""

    circuit_is_open: Final = False

    def __init__(self, registry: Registry) -> None:
        self.model = registry.name
        self._server = ModelServer(registry)
        self._following: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Load what the registry's aliases name. Raises what the registry raises."""
        await self._server.follow()

    async def open(self) -> None:
        """`load`, and follow the aliases from then on."""
        await self.load()
        self._following = asyncio.create_task(self._follow_forever())

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following

    async def score(self, vectors: NDArray[np.void], seconds: float) -> Scores:
        """Scores of feature vectors; ``seconds`` do not matter, nothing is waited for."""
        if len(vectors) <= ROWS_ON_THE_LOOP:
            return self.score_now(vectors)
        return await asyncio.to_thread(self.score_now, vectors)

    def score_now(self, vectors: NDArray[np.void]) -> Scores:
        """The same without an event loop, from any thread."""
        served = self._server.served
        number = served.aliases.get(CHAMPION)
        if number is None:
            return Scores(None, reason=UnknownReason.no_model)
        try:
            champion = served.models[number].score_vectors(vectors)
        except (BadInputsError, UnknownInputError):
            return Scores(None, reason=UnknownReason.refused)
        second = served.aliases.get(CHALLENGER, number)
        if second == number:
            return Scores(champion, number)
        try:
            challenger = served.models[second].score_vectors(vectors)
        except (BadInputsError, UnknownInputError):
            return Scores(champion, number)
        return Scores(champion, number, UnknownReason.none, challenger, second)

    async def follow(self) -> None:
        """Read the registry's aliases once more; one that cannot be read changes nothing."""
        try:
            await self._server.follow()
        except (StreambankError, OSError) as error:
            log.warning("registry cannot be read", error=str(error))
        except Exception as error:  # MLflow's stores raise what their drivers raise
            log.warning("registry cannot be read", error=repr(error))

    async def _follow_forever(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.follow()


def following_scorer(tracking_uri: str) -> EmbeddedScorer:
    """An embedded scorer that is ready for `EmbeddedScorer.score_now` and follows the registry in a thread, as long as
    the process lives. Raises what the registry raises."""
    scorer = EmbeddedScorer(Registry(tracking_uri))
    asyncio.run(scorer.load())

    def forever() -> None:
        while True:
            time.sleep(POLL_SECONDS)
            asyncio.run(scorer.follow())

    threading.Thread(target=forever, name="fraud-models", daemon=True).start()
    return scorer
