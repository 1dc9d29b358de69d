"""`rbm bench`: measures chains, training or the service on this computer."""

from __future__ import annotations

from typing import Annotated

import typer

from model_core.cli_support import AsJson, CliError


def bench(
    what: Annotated[str, typer.Argument(help="chains, train or service.")] = "chains",
    as_json: AsJson = False,
) -> None:
    """Measures chains, training or the service on this computer."""
    raise CliError("`rbm bench` is not built yet.")
