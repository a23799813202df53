"""`streambank cards`: the keys of the card vault, and who asked for card numbers."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from api.card_keeper import CardKeeper


class RotatedKey(StrEnum):
    """Keys that can be rotated."""

    ENCRYPTION = "encryption"
    FINGERPRINT = "fingerprint"
    MASTER = "master"


def register(app: typer.Typer) -> None:
    cards = typer.Typer(help="The card vault: keys and audit trail.", no_args_is_help=True)
    app.add_typer(cards, name="cards")

    @cards.command("keys")
    def keys() -> None:
        """Show the vault's data keys and how many cards use each."""
        from rich.console import Console
        from rich.table import Table

        table = Table("data key", "purpose", "state", "master key", "made", "cards")
        for key in _keeper().data_keys():
            table.add_row(
                key.id, key.purpose, key.state, key.master_key_id, f"{key.created_at:%Y-%m-%d %H:%M}", f"{key.cards:,}"
            )
        Console().print(table)

    @cards.command("rotate-keys")
    def rotate_keys(
        key: Annotated[
            RotatedKey, typer.Option(help="Which key.", envvar="STREAMBANK_CARDS_ROTATE_KEY")
        ] = RotatedKey.ENCRYPTION,
    ) -> None:
        """Use a new key from now on; of a data key `re-encrypt` then moves the older cards."""
        from rich.console import Console

        console = Console()
        if key is RotatedKey.MASTER:
            made, wrapped = _keeper().rotate_master()
            console.print(f"master key {made} wraps {wrapped} data keys; the older master keys are gone")
            return
        made = _keeper().rotate(key.value)
        console.print(f"{key.value} key {made} is used for new cards; run `streambank cards re-encrypt` for the others")

    @cards.command("re-encrypt")
    def re_encrypt(
        batch: Annotated[
            int, typer.Option(help="Cards a transaction.", min=1, max=10_000, envvar="STREAMBANK_CARDS_BATCH")
        ] = 500,
    ) -> None:
        """Move all cards to the active keys and destroy keys that none needs; goes on where it was stopped."""
        from rich.console import Console
        from rich.progress import Progress

        console = Console()
        with Progress(console=console) as bar:
            task = bar.add_task("re-encrypting", total=None)
            moved = _keeper().re_encrypt(
                batch, lambda done, total: bar.update(task, completed=done, total=max(total, 1))
            )
        console.print(f"{moved:,} cards moved to the active keys")

    @cards.command("audit")
    def audit(
        token: Annotated[str | None, typer.Option(help="Only this card.", envvar="STREAMBANK_CARDS_TOKEN")] = None,
        since: Annotated[
            datetime | None,
            typer.Option(
                formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help="Not before (UTC).", envvar="STREAMBANK_CARDS_SINCE"
            ),
        ] = None,
        limit: Annotated[int, typer.Option(help="Entries, at most.", min=1, envvar="STREAMBANK_CARDS_LIMIT")] = 50,
    ) -> None:
        """Show who did what with cards, newest first."""
        from datetime import UTC

        from rich.console import Console
        from rich.table import Table

        table = Table("time (UTC)", "action", "outcome", "card", "who", "purpose", "request")
        after = since.replace(tzinfo=UTC) if since else None
        for entry in _keeper().audit(token=token, since=after, limit=limit):
            table.add_row(
                f"{entry.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}", entry.action, entry.outcome, entry.token or "",
                entry.client_id, entry.purpose, entry.trace_id,
            )  # fmt: skip
        Console().print(table)


def _keeper() -> CardKeeper:
    import getpass

    from api.card_keeper import CardKeeper
    from infra.settings import settings

    return CardKeeper(settings(), getpass.getuser())
