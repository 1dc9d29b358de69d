"""The `rbm` command. It wires things together and is the only module that may import everything.

Data goes to stdout, progress and messages to stderr. Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
Everything heavy is imported inside the commands, so that `rbm --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from model_core import cli_bench, cli_chains, cli_evaluate, cli_models, cli_plot, cli_train
from model_core.cli_support import bad_parameters, expected_failure, say

app = typer.Typer(
    name="rbm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # failures are told by `main`
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from model_core import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def rbm(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Restricted Boltzmann Machines: train, judge, serve and play.

    Examples: `rbm serve`, `rbm sample -n 16 -o digits.png`, `rbm dream digit.png -o dream.png`, `rbm train`
    """


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [default: 8000]")] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder of models. Default: ./checkpoints, or what the package brings.")
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Allow a public address without an API key.")
    ] = None,
) -> None:
    """Serves the models over HTTP until it is stopped.

    Further settings are environment variables, such as RBM_API_KEYS; a flag wins over its variable.
    """
    # The first process of a container does not die of SIGTERM by itself, and the imports take a second.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from pydantic import ValidationError

    from service.settings import Settings

    flags = {"host": host, "port": port, "checkpoints": checkpoints, "insecure": insecure}
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        settings = Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        bad_parameters(error, given)
    from service.server import serve as run_server

    raise typer.Exit(run_server(settings))


app.command()(cli_train.train)
app.command()(cli_evaluate.evaluate)
app.command()(serve)
app.command()(cli_chains.sample)
app.command()(cli_chains.dream)
app.command()(cli_chains.features)
app.command()(cli_models.models)
app.command()(cli_bench.bench)
app.command()(cli_plot.plot)


def main() -> NoReturn:
    """Runs the command line and exits."""
    try:
        app(prog_name="rbm")
    except BrokenPipeError:
        # Whoever read stdout has gone (`rbm models | head`). Nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        message = expected_failure(error)
        if message is None or os.environ.get("RBM_TRACEBACK"):
            raise
        say(f"rbm: {message}")
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
