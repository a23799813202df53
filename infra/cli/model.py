"""`streambank model`: train, evaluate, compare, promote, roll back and serve fraud models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from models.fraud_registry import Registry

TrackingUri = Annotated[
    str | None,
    typer.Option(
        envvar="STREAMBANK_MLFLOW_TRACKING_URI",
        help="MLflow's database, say postgresql://... [default: a SQLite file in the home].",
    ),
]
Version = Annotated[str, typer.Argument(help="A version's number or alias.")]
Customers = Annotated[
    int | None,
    typer.Option(envvar="STREAMBANK_MODEL_CUSTOMERS", help="Use a small world of that many customers instead."),
]


def register(app: typer.Typer) -> None:
    model = typer.Typer(help="Fraud models: train, evaluate, compare, promote, roll back, serve.", no_args_is_help=True)
    for command in (train, evaluate, compare, promote, rollback, serve, explain, report):
        model.command()(command)
    app.add_typer(model, name="model")


def train(
    algorithm: Annotated[str, typer.Option(envvar="STREAMBANK_MODEL_ALGORITHM", help="Which one.")] = "xgboost",
    train_days: Annotated[int, typer.Option(envvar="STREAMBANK_MODEL_TRAIN_DAYS", min=7, help="Days.")] = 98,
    fraud_weight: Annotated[
        float, typer.Option(envvar="STREAMBANK_MODEL_FRAUD_WEIGHT", min=0.01, help="Weight of a fraud in training.")
    ] = 1.0,
    trials: Annotated[
        int, typer.Option(envvar="STREAMBANK_MODEL_TRIALS", min=0, help="Settings to try with Optuna; 0: the defaults.")
    ] = 0,
    review_cost: Annotated[
        float, typer.Option(envvar="STREAMBANK_MODEL_REVIEW_COST", min=0, help="What one review costs, in currency.")
    ] = 5.0,
    customers: Customers = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Evaluate a model on the four folds, train it on the newest one, and register it as the challenger."""
    from rich.console import Console
    from rich.progress import Progress

    from models.fraud_dataset import load_dataset
    from models.fraud_training import ALGORITHMS, Recipe
    from models.fraud_workflow import search_and_log, train_and_register

    if algorithm not in ALGORITHMS:
        raise typer.BadParameter(f"{algorithm!r} is not an algorithm; there are {', '.join(ALGORITHMS)}")
    console = Console()
    recipe = Recipe(algorithm, train_days=train_days, fraud_weight=fraud_weight)
    registry = _registry(tracking_uri)
    data_name = "published world" if customers is None else f"world of {customers} customers"
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("features", total=1)
        data = load_dataset(customers, lambda done, total: progress.update(task, completed=done, total=total))
        if trials:
            task = progress.add_task("search", total=trials)
            recipe, best = search_and_log(
                recipe, data, registry, trials, data_name=data_name,
                progress=lambda trial: progress.update(
                    task, completed=trial.number, description=f"search: AP {trial.best:.4f}"
                ),
            )  # fmt: skip
            console.print(f"best of {trials} trials: average precision {best:.4f} with {dict(recipe.settings)}")
        task = progress.add_task("folds", total=4)
        version = train_and_register(
            recipe, data, registry, review_cost=review_cost, data_name=data_name,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
    _print([version], console)


def evaluate(version: Version = "challenger", customers: Customers = None, tracking_uri: TrackingUri = None) -> None:
    """Score a registered model's own bytes on the newest test week."""
    from rich.console import Console

    from models.fraud_dataset import load_dataset
    from models.fraud_workflow import evaluate_version

    found = evaluate_version(_registry(tracking_uri), version, load_dataset(customers))
    for name, value in found.items():
        Console().print(f"{name}: {value:.4f}")


def compare(tracking_uri: TrackingUri = None) -> None:
    """All versions with their aliases and figures."""
    from rich.console import Console

    _print(_registry(tracking_uri).versions(), Console())


def promote(version: Version = "challenger", tracking_uri: TrackingUri = None) -> None:
    """Make a version the champion, if it may be one; servers follow within seconds."""
    _change(_registry(tracking_uri), lambda registry: registry.promote(version))


def rollback(tracking_uri: TrackingUri = None) -> None:
    """Make the previous champion the champion again."""
    _change(_registry(tracking_uri), lambda registry: registry.rollback())


def serve(
    host: Annotated[str, typer.Option(envvar="STREAMBANK_MODEL_SERVER_HOST", help="Address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="STREAMBANK_MODEL_SERVER_PORT", help="Port.")] = 8501,
    tracking_uri: TrackingUri = None,
) -> None:
    """Serve all aliased versions over HTTP; follows the registry's aliases without a restart."""
    from aiohttp import web

    from models.model_server import make_app

    web.run_app(make_app(_registry(tracking_uri)), host=host, port=port, print=None)


def explain(
    case: Annotated[
        str | None, typer.Argument(help="Show this case's reasons; without it, explain those that have none.")
    ] = None,
    limit: Annotated[
        int, typer.Option(envvar="STREAMBANK_MODEL_EXPLAIN_LIMIT", min=1, help="Cases to explain, newest first.")
    ] = 100,
    tracking_uri: TrackingUri = None,
) -> None:
    """Give fraud cases the reasons of their scores (SHAP), from the feature vectors in Cassandra."""
    from rich.console import Console
    from rich.table import Table

    from infra.settings import settings
    from models.fraud_reasons import explain_cases, reasons_of_case

    console = Console()
    if case is not None and not case.isdecimal():
        raise typer.BadParameter(f"{case!r} is not a case's id, which is a decimal number")
    explained = explain_cases(settings(), _registry(tracking_uri), limit, int(case) if case else None)
    if case is None:
        console.print(f"{len(explained)} cases explained")
        return
    found = reasons_of_case(settings(), int(case))
    if found is None:
        console.print(
            f"case {case} has no reasons: there is no such case, its score is unknown, its model is gone, or its "
            "features are not in Cassandra",
            style="red",
        )
        raise typer.Exit(1)
    table = Table("input", "value", "moves the score by")
    for one in found["inputs"]:
        table.add_row(one["input"], f"{one['value']:,.6g}", f"{one['contribution'] / 1e6:+.6f}")
    console.print(table)
    total = found["average"] + sum(one["contribution"] for one in found["inputs"])
    console.print(f"from {found['average'] / 1e6:.6f}, an average of the day's transactions, to {total / 1e6:.6f}")


def report(
    day: Annotated[
        str | None, typer.Option(envvar="STREAMBANK_MODEL_REPORT_DAY", help="UTC day, YYYY-MM-DD [default: yesterday].")
    ] = None,
    reference_days: Annotated[
        int,
        typer.Option(envvar="STREAMBANK_MODEL_REPORT_REFERENCE_DAYS", min=1, help="Days before it to compare with."),
    ] = 28,
    folder: Annotated[
        Path | None,
        typer.Option(envvar="STREAMBANK_MODEL_REPORT_FOLDER", help="Where to store it [default: reports in the home]."),
    ] = None,
) -> None:
    """Drift, UNKNOWN rate, alert precision and calibration of a day, from Cassandra; stored with plots and metrics."""
    from datetime import UTC, date, datetime, timedelta

    from rich.console import Console

    from infra.settings import settings
    from models.fraud_report import make_report, write_report

    try:
        chosen = date.fromisoformat(day) if day else datetime.now(UTC).date() - timedelta(days=1)
    except ValueError:
        raise typer.BadParameter(f"{day!r} is not a day as YYYY-MM-DD") from None
    made = make_report(settings(), (chosen - date(1970, 1, 1)).days, reference_days)
    for path in write_report(made, folder or settings().home / "reports" / "fraud"):
        Console().print(str(path))


def _registry(tracking_uri: str | None) -> Registry:
    from models.fraud_registry import Registry

    return Registry(tracking_uri)


def _change(registry: Registry, change: Any) -> None:
    from rich.console import Console

    from models.fraud_registry import NotPromotedError

    console = Console(stderr=True)
    try:
        version = change(registry)
    except NotPromotedError as error:
        console.print(f"[red]not promoted:[/] {error}")
        raise typer.Exit(1) from None
    console.print(f"champion is version {version.version}")


def _print(versions: list[Any], console: Any) -> None:
    from rich.table import Table

    table = Table("version", "aliases", "AP", "CP@100", "AUC", "Brier")
    for version in versions:
        figures = [
            f"{version.metrics[name]:.4f}" if name in version.metrics else ""
            for name in ("average_precision", "card_precision_100", "auc_roc", "brier")
        ]
        table.add_row(str(version.version), ", ".join(version.aliases), *figures)
    console.print(table)
