"""Where an S3 server and its credentials are looked for, with stand-ins of Amazon's own services on real sockets."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from storage.errors import LakeError
from storage.objects.credentials import Credentials, s3_settings


class Amazon(BaseHTTPRequestHandler):
    """The instance metadata service and STS: each answer holds new keys, which expire at once."""

    asked: list[str]

    def do_PUT(self) -> None:
        self._send("a token")

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.endswith("/security-credentials/"):
            return self._send("role")
        return self._send(json.dumps({"Code": "Success", "Type": "AWS-HMAC", "Token": "t"} | self._keys("instance")))

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.asked.append(asked)
        keys = self._keys("web") | {"SessionToken": "t"}
        inner = "".join(f"<{name}>{value}</{name}>" for name, value in keys.items())
        action = "AssumeRoleWithWebIdentity"
        self._send(
            f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result><Credentials>{inner}'
            f"</Credentials></{action}Result></{action}Response>"
        )

    def _keys(self, kind: str) -> dict[str, str]:
        soon = datetime.now(UTC) + timedelta(seconds=1)
        name = f"{kind}{len(self.asked)}"
        return {"AccessKeyId": name, "SecretAccessKey": "s", "Expiration": soon.strftime("%Y-%m-%dT%H:%M:%SZ")}

    def _send(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def amazon() -> Iterator[tuple[str, list[str]]]:
    """(address, what was asked)"""
    asked: list[str] = []
    handler = type("Handler", (Amazon,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def key_of(credentials: Credentials) -> str:
    found = credentials()
    assert found["expires_at"] is not None
    assert found["expires_at"] <= datetime.now(UTC) + timedelta(minutes=5)
    return found["access_key_id"]


def test_the_environment_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = Credentials()
    for key in ("first", "second"):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        monkeypatch.setenv("AWS_SESSION_TOKEN", f"token of {key}")
        assert key_of(credentials) == key
        assert credentials()["token"] == f"token of {key}"


def test_a_profile_is_read_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    credentials = Credentials("team")
    for key in ("first", "second"):
        text = f"[team]\naws_access_key_id = {key}\naws_secret_access_key = s\n"
        (tmp_path / "credentials").write_text(text)
        assert key_of(credentials) == key


def test_a_command_of_the_profile_is_run_again_when_its_keys_expire(tmp_path: Path) -> None:
    script = tmp_path / "keys.sh"
    script.write_text(
        'echo x >> "$(dirname "$0")/runs"; n=$(wc -l < "$(dirname "$0")/runs")\n'
        'echo "{\\"Version\\": 1, \\"AccessKeyId\\": \\"key$n\\", \\"SecretAccessKey\\": \\"s\\", '
        '\\"SessionToken\\": \\"t\\", \\"Expiration\\": \\"$(date -u -d +60sec +%FT%TZ)\\"}"\n'
    )
    (tmp_path / "config").write_text(f"[default]\ncredential_process = sh {script}\n")
    credentials = Credentials()
    assert key_of(credentials) != key_of(credentials)


def test_an_instance_renews_its_keys(amazon: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    address, _ = amazon
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
    credentials = Credentials()
    first = key_of(credentials)
    assert first.startswith("instance")
    credentials.forget()
    assert key_of(credentials) != first


def test_a_web_identity_is_shown_again_when_its_keys_expire(
    amazon: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address, asked = amazon
    token = tmp_path / "token"
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", address)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/test")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    credentials = Credentials()
    keys = []
    for name in ("first", "second"):
        token.write_text(name)
        keys.append(key_of(credentials))
        assert f"WebIdentityToken={name}" in asked[-1]
    assert keys[0] != keys[1]


def test_no_credentials_are_named() -> None:
    with pytest.raises(LakeError, match=r"No credentials for S3.*AWS_PROFILE"):
        Credentials()()


def test_the_server_is_found_as_s3fs_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert s3_settings({})[0] == {"region": "us-east-1"}
    (tmp_path / "config").write_text("[default]\nregion = eu-west-1\nendpoint_url = https://file.example\n")
    config, http, credentials = s3_settings({})
    assert config == {"region": "eu-west-1", "endpoint": "https://file.example"}
    assert http == {"allow_http": False}
    assert credentials is not None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://env.example:9000/")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    assert s3_settings({})[:2] == (
        {"region": "eu-north-1", "endpoint": "http://env.example:9000"},
        {"allow_http": True},
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example")
    assert s3_settings({})[0]["endpoint"] == "https://s3.example"


def test_options_come_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://env.example:9000")
    (tmp_path / "ca.pem").write_bytes(b"certificate")
    given = {"endpoint_url": "https://own.example", "region_name": "xx-1", "verify": str(tmp_path / "ca.pem")}
    config, http, credentials = s3_settings({"client_kwargs": given, "key": "k", "secret": "s", "token": "t"})
    assert config == {
        "region": "xx-1",
        "endpoint": "https://own.example",
        "access_key_id": "k",
        "secret_access_key": "s",
        "session_token": "t",
    }
    assert http == {"allow_http": False, "root_certificate": b"certificate"}
    assert credentials is None
    assert s3_settings({"anon": True})[0]["skip_signature"] is True
    assert s3_settings({"client_kwargs": {"verify": False}})[1]["allow_invalid_certificates"] is True
