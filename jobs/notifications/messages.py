"""The text of e-mails and short messages, from Jinja templates that see a notification's data and nothing else.

A template is ``<kind>.email.txt`` or ``<kind>.sms.txt``; where a kind has none, the kind without its last word is
tried, at last ``default``. An e-mail's first line is its subject. The environment is sandboxed and strict: a template
that names what is not there fails, and the delivery says so. Data are values, never templates.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import ChoiceLoader, FileSystemLoader, StrictUndefined, TemplateError, TemplateNotFound
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipelines.errors import StreambankError

__all__ = ["MessageError", "Messages"]

BUILT_IN: Final = Path(__file__).parent / "templates"
MAX_SMS: Final = 480
"""Characters of a short message, three parts; the rest is cut."""
MAX_SUBJECT: Final = 200


class MessageError(StreambankError):
    """A notification has no text: its template is missing or does not fit its data."""


class Messages:
    """Templates of ``directory`` (if given) before the built-in ones."""

    def __init__(self, directory: Path | None = None) -> None:
        places = [FileSystemLoader(place) for place in (directory, BUILT_IN) if place is not None]
        self._environment = ImmutableSandboxedEnvironment(
            loader=ChoiceLoader(places), undefined=StrictUndefined, keep_trailing_newline=False, autoescape=False
        )

    def email(self, kind: str, customer: str, occurred_at: datetime, data: dict[str, Any]) -> tuple[str, str]:
        """Subject and body; raises `MessageError`."""
        text = self._render(kind, "email", customer, occurred_at, data)
        subject, _, body = text.partition("\n")
        subject = " ".join(subject.split())[:MAX_SUBJECT]
        return "".join(character for character in subject if character.isprintable()), body.strip() + "\n"

    def sms(self, kind: str, customer: str, occurred_at: datetime, data: dict[str, Any]) -> str:
        """The message on one line; raises `MessageError`."""
        return " ".join(self._render(kind, "sms", customer, occurred_at, data).split())[:MAX_SMS]

    def _render(self, kind: str, channel: str, customer: str, occurred_at: datetime, data: dict[str, Any]) -> str:
        words = kind.split(".")
        names = [f"{'.'.join(words[:count])}.{channel}.txt" for count in range(len(words), 0, -1)]
        try:
            template = self._environment.select_template([*names, f"default.{channel}.txt"])
            return template.render(kind=kind, customer=customer, occurred_at=occurred_at, data=data)
        except TemplateNotFound as error:
            raise MessageError(f"no template of {', '.join(names)}") from error
        except (TemplateError, ArithmeticError, TypeError, ValueError, LookupError) as error:
            raise MessageError(f"the {channel} template of {kind} does not fit: {error}") from error
