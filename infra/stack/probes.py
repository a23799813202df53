"""Questions that health checks ask, without the clients' import time."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

__all__ = ["ask", "get_json"]

SECONDS = 3.0


def get_json(host: str, port: int, path: str) -> Any:
    """The JSON answer to a GET. Raises `ConnectionError` for another status than 200, OSError when nobody answers."""
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.status != 200:
            raise ConnectionError(f"status {answer.status} for {path}")
        return json.loads(answer.read())
    finally:
        connection.close()


def ask(host: str, port: int, question: bytes, answer_length: int) -> bytes:
    """The first bytes (at least one, at most ``answer_length``) that a TCP server answers to a question."""
    with socket.create_connection((host, port), timeout=SECONDS) as connection:
        connection.sendall(question)
        answer = connection.recv(answer_length)
    if not answer:
        raise ConnectionError("the connection was closed without an answer")
    return answer
