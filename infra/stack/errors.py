"""Errors of the local stack; each says what was found and what to do.

StackError
├── PrerequisiteError     a tool that set-up or a server needs is missing; the message holds the installing command
├── PortTakenError        another process listens on a server's port
└── ServerFailedError     a server died, or did not become healthy in time; the message ends with its log's last lines
"""

from __future__ import annotations

from pipelines.errors import StreambankError

__all__ = ["PortTakenError", "PrerequisiteError", "ServerFailedError", "StackError"]


class StackError(StreambankError):
    """The local stack cannot do what was asked."""


class PrerequisiteError(StackError):
    """Something that must be installed on the machine is not."""


class PortTakenError(StackError):
    """A server's port is in use by a process that is not that server."""


class ServerFailedError(StackError):
    """A server is not running or not healthy."""
