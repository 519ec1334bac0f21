"""How the lake's clients find an S3 server and prove who they are: as botocore, and so s3fs, does.

Covered: AWS_ACCESS_KEY_ID and its kin in the environment, profiles (`AWS_PROFILE`, credentials and config files, which
are read again each time), assumed roles, web identity (EKS, GitHub), SSO, `credential_process`, ECS containers and EC2
instances. Credentials are asked for anew every few minutes, and at once when the server calls them expired, so that a
job may outlive them. Google's and Azure's are found and renewed by obstore itself.
"""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import LakeError

if TYPE_CHECKING:
    from obstore.store import S3Credential

_KEEP = timedelta(minutes=5)  # botocore renews credentials 15 minutes before they expire
_KNOWN = ("key", "secret", "token", "anon", "profile", "endpoint_url", "client_kwargs", "use_ssl")


class Credentials:
    """A credential provider for obstore: asks botocore, which looks where a person would expect it to.

    Botocore renews what expires by itself. What stands in the environment or in a file is read again at every call.
    """

    def __init__(self, profile: str | None = None) -> None:
        self.profile = profile
        self._lock = threading.Lock()
        self._renewable: Any = None

    def __call__(self) -> "S3Credential":
        """The credentials of now. Raises LakeError where there are none."""
        from botocore.credentials import RefreshableCredentials

        with self._lock:
            found = self._renewable or aws_session(self.profile).get_credentials()
            if found is None:
                raise LakeError(
                    "No credentials for S3 were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
                )
            self._renewable = found if isinstance(found, RefreshableCredentials) else None
            frozen = found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _KEEP,
        }

    def forget(self) -> None:
        """Look everywhere anew at the next call: the server refused what was found."""
        with self._lock:
            self._renewable = None


def aws_session(profile: str | None = None) -> Any:
    """A botocore session, which reads the environment and the configuration files of now."""
    from botocore.session import Session

    return Session(profile=profile)


def s3_settings(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Credentials | None]:
    """(obstore's configuration, its client's options, credential provider) for `options`, named as s3fs names them.

    Raises LakeError for an option that isn't known.
    """
    from botocore.configprovider import ConfiguredEndpointProvider

    if unknown := set(options) - set(_KNOWN):
        raise LakeError(f"Unknown options for S3: {', '.join(sorted(unknown))}. Known: {', '.join(_KNOWN)}.")
    session = aws_session(options.get("profile"))
    client = dict(options.get("client_kwargs") or {})
    configured = ConfiguredEndpointProvider(session.full_config, session.get_scoped_config(), "s3")
    endpoint = options.get("endpoint_url") or client.get("endpoint_url") or configured.provide()
    region = client.get("region_name") or session.get_config_variable("region")
    config: dict[str, Any] = {"region": region or "us-east-1"}
    if endpoint:
        config["endpoint"] = endpoint.rstrip("/")
    http: dict[str, Any] = {"allow_http": bool(endpoint) and endpoint.startswith("http://")}
    verify = client.get("verify", session.get_config_variable("ca_bundle"))
    if verify is False:
        http["allow_invalid_certificates"] = True
    elif isinstance(verify, str):
        http["root_certificate"] = Path(verify).read_bytes()
    if options.get("anon"):
        return {**config, "skip_signature": True}, http, None
    if "key" in options:
        named = {"access_key_id": options["key"], "secret_access_key": options["secret"]}
        token = {"session_token": options["token"]} if options.get("token") else {}
        return {**config, **named, **token}, http, None
    return config, http, Credentials(options.get("profile"))
