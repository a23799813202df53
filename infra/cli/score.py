"""`streambank score`: decide card transactions from their features, in the foreground, until SIGTERM or Ctrl-C."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Unknown(StrEnum):
    """What becomes of transactions without a score."""

    APPROVE = "approve"
    REVIEW = "review"
    BLOCK = "block"


def register(app: typer.Typer) -> None:
    @app.command()
    def score(
        server: Annotated[
            str | None,
            typer.Option(
                envvar="STREAMBANK_MODEL_SERVER",
                help="The model server to ask, say http://localhost:8501. Without one the model is in this process.",
                show_default=False,
            ),
        ] = None,
        tracking_uri: Annotated[
            str | None,
            typer.Option(
                envvar="STREAMBANK_MLFLOW_TRACKING_URI",
                help="MLflow's database, for a model in this process [default: a SQLite file in the home].",
            ),
        ] = None,
        deadline_ms: Annotated[
            float,
            typer.Option(min=1, envvar="STREAMBANK_SCORE_DEADLINE_MS", help="Time for a frame's decisions."),
        ] = 250.0,
        unknown: Annotated[
            Unknown,
            typer.Option(envvar="STREAMBANK_SCORE_UNKNOWN", help="Decision of a large transaction without a score."),
        ] = Unknown.REVIEW,
        unknown_above: Annotated[
            int,
            typer.Option(
                min=0,
                envvar="STREAMBANK_SCORE_UNKNOWN_ABOVE",
                help="Cents above which it applies; smaller ones are approved.",
            ),
        ] = 10_000,
        failures_to_open: Annotated[
            int,
            typer.Option(
                min=1, envvar="STREAMBANK_SCORE_FAILURES_TO_OPEN", help="Failures in a row that open the circuit."
            ),
        ] = 5,
        open_seconds: Annotated[
            float,
            typer.Option(
                min=0.1, envvar="STREAMBANK_SCORE_OPEN_SECONDS", help="How long an open circuit asks nothing."
            ),
        ] = 2.0,
        max_batch_events: Annotated[
            int,
            typer.Option(min=1, envvar="STREAMBANK_SINK_MAX_BATCH_EVENTS", help="Transactions in hand, at most."),
        ] = 4_096,
        web_port: Annotated[
            int | None,
            typer.Option(
                envvar="STREAMBANK_SINK_WEB_PORT",
                help="Port of /health and /metrics; default: STREAMBANK_FAUST_WEB_PORT plus 20.",
            ),
        ] = None,
    ) -> None:
        """Turn fraud.features into fraud.decisions: score, rules, and a decision in time even without a score.

        Exit codes are those of `streambank sink`.
        """
        import asyncio

        from infra.logs import configure_logs
        from infra.settings import settings
        from jobs.sinks.fraud_scoring import FraudScoringSink, Scorer, ScoringOptions
        from jobs.sinks.worker import SinkOptions, SinkWorker
        from models.fraud_registry import Registry
        from models.fraud_scorers import EmbeddedScorer, ServedScorer
        from pipelines.fraud.decisions import Decision, UnknownPolicy

        configure_logs()
        scorer: Scorer
        if server:
            scorer = ServedScorer(server, failures_to_open=failures_to_open, open_seconds=open_seconds)
        else:
            scorer = EmbeddedScorer(Registry(tracking_uri))
        policy = UnknownPolicy(Decision[unknown.value], unknown_above)
        sink = FraudScoringSink(settings(), scorer, ScoringOptions(deadline_ms / 1000, policy))
        options = SinkOptions(max_batch_events=max_batch_events, web_port=web_port)
        raise typer.Exit(asyncio.run(SinkWorker(sink, settings(), options).run()))
