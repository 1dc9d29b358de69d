"""What the commands share: which model, where the output goes, and how failures are told. Light to import."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    from model_core.model_store import Model

BINARY_FORMATS = ("png", "gif", "webp", "apng", "npy")
# Expected failures, by the module that defines them. They are looked up when something fails: importing them here
# would make every command slow.
_EXPECTED = {
    "model_core.manifest": ("ModelError",),
    "model_core.data_files": ("DataError",),
    "model_core.training": ("TrainingError",),
    "service.images": ("ImageError",),
    "service.errors": ("Problem",),
    "service.jobs": ("UnknownModel", "UnknownVersion"),
}

Checkpoints = Annotated[
    Path | None,
    typer.Option(help="Folder of models. Default: RBM_CHECKPOINTS, ./checkpoints, or those of the package."),
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A name in the folder of models, or the path of a model. Default: mnist.")
]
Version = Annotated[int | None, typer.Option(help="Default: the newest version that verifies.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="File to write; - is stdout. Its ending chooses the format.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, for machines.")]


class CliError(Exception):
    """A failure that the user can do something about; the message says what, why and the next step."""


def expected_failure(error: BaseException) -> str | None:
    """The message for a person, or None if `error` is a defect of ours, which deserves its traceback."""
    if isinstance(error, CliError):
        return str(error)
    for module, names in _EXPECTED.items():
        kinds = tuple(getattr(sys.modules.get(module), name, CliError) for name in names)
        if isinstance(error, kinds):
            return str(error)
    if isinstance(error, MemoryError):
        return "Not enough memory. Ask for fewer or smaller things at a time, such as fewer chains."
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}." if error.filename and error.strerror else str(error)
    return None


def checked(schema: type[BaseModel], **given: Any) -> Any:
    """The parameters of a route, from flags: its defaults and its ranges.

    Raises:
      typer.BadParameter: naming the flag; exit status 2.
    """
    from pydantic import ValidationError

    try:
        return schema(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        bad_parameters(error)


def bad_parameters(error: ValidationError, flags: Collection[str] | None = None) -> NoReturn:
    """Tells which flags are wrong, and why; what is not among `flags` came as a variable of the environment."""

    def told(name: str) -> str:
        return f"--{name.replace('_', '-')}" if flags is None or name in flags else f"RBM_{name.upper()}"

    raise typer.BadParameter(
        "; ".join(f"{told(str(item['loc'][-1]))}: {item['msg']}" for item in error.errors())
    ) from None


def find_model(checkpoints: Path | None, model: str | None, version: int | None) -> Model:
    """Loads what `--model` and `--version` name.

    Raises:
      CliError, ModelError: if there is no such model, saying which there are.
    """
    from model_core import model_store

    folder = checkpoints or model_store.default_checkpoints()
    names = model_store.list_models(folder)
    if model is None:
        default = os.environ.get("RBM_DEFAULT_MODEL", "mnist")
        model = names[0] if len(names) == 1 and default not in names else default
    if model in names:
        if version is None:
            return model_store.newest_model(folder, model)[0]
        versions = model_store.list_versions(folder / model)
        if version not in versions:
            raise CliError(f"Model {model!r} in {folder} has no version {version}: {', '.join(map(str, versions))}.")
        return model_store.verify_version(model_store.version_folder(folder, model, version))
    if Path(model).exists():
        if version is not None:
            raise CliError(f"--version is for names; {model} is a path: add the version's folder to the path instead.")
        return model_store.load_model(model)
    known = f"it has {', '.join(names)}" if names else "it has none"
    raise CliError(
        f"There is no model {model!r} in {folder}: {known}. Train one with `rbm train`, or pass --checkpoints."
    )


def format_for(requested: str | None, as_json: bool, out: Path | None, offered: tuple[str, ...]) -> str:
    """`--format`, else `--json`, else the ending of `--out`, else the first of `offered`.

    Raises:
      typer.BadParameter: if the format is not offered.
    """
    ending = out.suffix.lstrip(".").lower() if out is not None else ""
    chosen = requested or ("json" if as_json else "") or ending or offered[0]
    if chosen not in offered:
        where = "" if requested else f", which the ending of {out} asks for"
        raise typer.BadParameter(f"no format {chosen!r}{where}. Choose --format among {', '.join(offered)}.")
    return chosen


def write_output(content: bytes, format_name: str, out: Path | None, default_name: str) -> str:
    """Writes to a file or to stdout; pictures meant for a terminal go into a file `default_name` in this folder.

    Returns:
      where it went, for the message on stderr.
    """
    if out is None and format_name in BINARY_FORMATS and sys.stdout.isatty():
        out = Path(f"{default_name}.{format_name}")
    if out is None or str(out) == "-":
        sys.stdout.buffer.write(content)
        if format_name == "json" and sys.stdout.isatty():
            sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()
        return "stdout"
    write_file(out, content)
    return str(out)


def write_file(path: Path, content: bytes) -> None:
    """Replaces a file as a whole: whoever reads it sees the old one or the new one.

    A link stays one, a file keeps its mode, and what is no file, such as a pipe, is written to.
    """
    path = Path(os.path.realpath(path))
    mode = path.stat().st_mode if path.exists() else stat.S_IFREG | 0o644
    if not stat.S_ISREG(mode):
        path.write_bytes(content)
        return
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None  # the name that the user knows
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(stat.S_IMODE(mode))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def say(message: str) -> None:
    """A line for people, on stderr."""
    print(message, file=sys.stderr)
