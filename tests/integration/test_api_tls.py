"""The API over mutual TLS with the certificates of `streambank certs make`; no other server is needed."""

from __future__ import annotations

import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from api.clients import ClientStore
from infra.settings import Settings
from tests.support.stack import PORT_FIELDS, free_ports, variables
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(200)]

STREAMBANK = Path(sys.executable).with_name("streambank")


def test_only_clients_with_a_certificate_are_served(tmp_path: Path) -> None:
    ports = dict(zip(PORT_FIELDS, free_ports(len(PORT_FIELDS)), strict=True))
    environment = Settings.model_validate({"data_dir": tmp_path, "api_tls": "mutual", **ports})
    assert environment.api_url.startswith("https://")
    run = variables(environment) | {"STREAMBANK_API_WORKERS": "1"}
    early = subprocess.run([STREAMBANK, "api"], env=run, capture_output=True, text=True, timeout=60, check=False)
    assert early.returncode == 1
    assert "certs make" in early.stderr
    made = subprocess.run(
        [STREAMBANK, "certs", "make"], env=run, capture_output=True, text=True, timeout=60, check=True
    )
    assert str(environment.tls_dir) in made.stdout

    context = ssl.create_default_context(cafile=str(environment.tls_dir / "ca.pem"))
    context.load_cert_chain(environment.tls_dir / "client.pem", environment.tls_dir / "client-key.pem")
    with (tmp_path / "api.log").open("wb") as log:
        process = subprocess.Popen([STREAMBANK, "api"], env=run, stdout=log, stderr=log, start_new_session=True)
    try:
        with httpx.Client(base_url=environment.api_url, verify=context, timeout=20) as client:
            live = wait_until(lambda: client.get("/health/live"), 90, f"the API answers; {tmp_path / 'api.log'}")
            assert live.headers["Strict-Transport-Security"].startswith("max-age=31536000")
            added, secret = ClientStore(environment.secrets_dir / "clients.json").add("tester", ["cards:read"])
            form = {"grant_type": "client_credentials"}
            token = client.post("/oauth/token", data=form, auth=(added.client_id, secret)).json()["access_token"]
            answer = client.get("/v1/cards/4111111111111111", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code in (400, 503)
            assert "4111111111111111" not in answer.text
        trusting = ssl.create_default_context(cafile=str(environment.tls_dir / "ca.pem"))
        for context in (trusting, ssl.create_default_context()):
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{environment.api_url}/health/live", verify=context, timeout=20)
        with pytest.raises(httpx.TransportError):
            httpx.get(environment.api_url.replace("https", "http") + "/health/live", timeout=20)
    finally:
        process.terminate()
        process.wait(60)
