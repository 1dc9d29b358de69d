"""Settings of the service: environment variables `RBM_*`, each with a default that works."""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MEGABYTE = 1024 * 1024
Duration = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]  # seconds
_ORIGIN = re.compile(r"https?://[^/*\s]+")
# Variables that other parts read.
_OTHERS = {"RBM_DATA_DIR", "RBM_ENGINE", "RBM_TRACEBACK"}


class Settings(BaseSettings):
    """Everything that an operator may change. Secrets come from the environment or a file, never from flags."""

    model_config = SettingsConfigDict(env_prefix="RBM_", extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    insecure: bool = Field(False, description="Allow a public address without an API key.")
    checkpoints: Path | None = Field(None, description="Folder of models; None is the one that ships with the package.")
    default_model: str = Field("mnist", description="The model that answers when a request names none.")

    api_keys: SecretStr | None = Field(None, description="Keys, separated by commas.")
    api_keys_file: Path | None = Field(None, description="File of keys, one a line; # begins a comment.")
    cors_origins: Annotated[list[str], NoDecode] = Field([], description="Exact origins, separated by commas.")

    max_image_bytes: int = Field(MEGABYTE, ge=1, description="Largest image file.")
    max_array_bytes: int = Field(64 * MEGABYTE, ge=1, description="Largest body of arrays.")
    max_header_bytes: int = Field(32 * 1024, ge=1024, description="Largest request head: line and headers.")
    max_steps: int = Field(10_000, ge=1, le=10_000, description="Most steps of a chain; the contract's limit.")
    budget_seconds: Duration = Field(30.0, description="Longest time that a job may wait and run.")
    default_timeout: Duration = Field(60.0, description="Seconds that a request may take when it does not say.")
    heartbeat_seconds: Duration = Field(10.0, description="A comment in a silent event stream every so many.")
    reload_seconds: Duration = Field(1.0, description="The store is looked at every so many seconds.")
    threads: int | None = Field(None, ge=1, description="Threads of the engine; None is one a core.")

    header_seconds: Duration = Field(10.0, description="A request head must arrive within.")
    body_seconds: Duration = Field(30.0, description="A body must arrive within, plus its bytes / min_body_rate.")
    min_body_rate: int = Field(64 * 1024, ge=1, description="Bytes a second that a large body must come or be read at.")
    idle_seconds: Duration = Field(15.0, description="A kept-alive connection waits for its next request.")
    write_seconds: Duration = Field(30.0, description="An answer must be read in, plus its bytes / min_body_rate.")
    linger_seconds: Duration = Field(5.0, description="Who is still sending when answered may go on for so long.")
    max_requests: int = Field(64, ge=1, description="Requests under way; above, plain ones are refused at the door.")
    max_idle_connections: int = Field(512, ge=1, description="Above this the oldest silent connection is closed.")
    drain_delay: float = Field(0.5, ge=0, le=86_400, description="After SIGTERM, go on accepting for so long.")
    drain_seconds: Duration = Field(45.0, description="After that, finish what was accepted within.")

    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        if isinstance(value, str):
            value = [origin.strip().rstrip("/") for origin in value.split(",") if origin.strip()]
        if isinstance(value, list) and not all(_ORIGIN.fullmatch(str(origin)) for origin in value):
            raise ValueError("name exact origins, such as https://example.org; * is not allowed")
        return value

    @field_validator("checkpoints", mode="before")
    @classmethod
    def _nothing_is_none(cls, value: object) -> object:
        return None if value == "" else value

    def key_digests(self) -> list[bytes]:
        """SHA-256 of each API key; an empty list means that no key is asked for.

        Raises:
          ValueError: if a key file is named and cannot be read, or holds no key: never an open door by accident.
        """
        keys = []
        if self.api_keys is not None:
            keys += self.api_keys.get_secret_value().split(",")
        if self.api_keys_file is not None:
            try:
                lines = self.api_keys_file.read_text("utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"RBM_API_KEYS_FILE cannot be read: {error}") from error
            keys += [line.split("#")[0] for line in lines]
        keys = [key.strip() for key in keys if key.strip()]
        if not keys and (self.api_keys is not None or self.api_keys_file is not None):
            raise ValueError("RBM_API_KEYS or RBM_API_KEYS_FILE is set but holds no key.")
        return [hashlib.sha256(key.encode()).digest() for key in keys]

    def check_exposure(self) -> None:
        """Refuses a public address without a key.

        Raises:
          ValueError: saying what to set.
        """
        if self.key_digests() or self.insecure or is_loopback(self.host):
            return
        raise ValueError(
            f"Refusing to listen on {self.host} without an API key: anybody who reaches this address could use the "
            "service. Set RBM_API_KEYS or RBM_API_KEYS_FILE, listen on 127.0.0.1, or pass --insecure (RBM_INSECURE=1)."
        )


def unknown_variables() -> list[str]:
    """Variables of the environment that look like settings and are none, each with the nearest that is."""
    known = {f"RBM_{name.upper()}" for name in Settings.model_fields} | _OTHERS
    unknown = sorted(name for name in os.environ if name.startswith("RBM_") and name not in known)
    nearest = [difflib.get_close_matches(name, known, 1, 0.8) for name in unknown]
    return [f"{name} (did you mean {near[0]}?)" if near else name for name, near in zip(unknown, nearest, strict=True)]


def is_loopback(host: str) -> bool:
    """True for localhost, 127.0.0.0/8 and ::1; an unknown name counts as public."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
