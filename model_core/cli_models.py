"""`rbm models`: what is in a folder of models, and which versions cannot be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model_core.cli_support import AsJson, Checkpoints, CliError, say

if TYPE_CHECKING:
    from model_core.model_store import Model

_FILE_WIDTH = 1000  # columns where nobody looks: a line a version, for other programs


def models(
    name: Annotated[str | None, typer.Argument(help="Only this model, with its whole manifest.")] = None,
    as_json: AsJson = False,
    checkpoints: Checkpoints = None,
) -> None:
    """Lists models and their versions; each is read and verified.

    Examples: `rbm models`, `rbm models mnist --json`
    """
    from model_core import model_store

    folder = checkpoints or model_store.default_checkpoints()
    names = model_store.list_models(folder)
    if name is not None and name not in names:
        raise CliError(f"There is no model {name!r} in {folder}: it has {', '.join(names) or 'none'}.")
    rows = [row for one in ([name] if name else names) for row in _rows(folder, one)]
    if as_json:
        print(json.dumps({"checkpoints": str(folder), "models": rows}, indent=2))
    elif name is not None:
        print(json.dumps(rows[-1], indent=2))
    else:
        _print_table(rows)
        say(f"models in {folder}: {len(names) or 'none, train one with `rbm train`'}")


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """One row a version, the newest last."""
    from model_core import model_store

    rows = []
    for version in model_store.list_versions(folder / name):
        row: dict[str, Any] = {"name": name, "version": version}
        try:
            row |= _card(model_store.verify_version(model_store.version_folder(folder, name, version)))
        except model_store.ModelError as error:
            row["problem"] = str(error)
        rows.append(row)
    return rows


def _card(model: Model) -> dict[str, Any]:
    sizes = {"num_visible": model.params.num_visible, "num_hidden": model.params.num_hidden}
    fields = ("created_at", "dataset", "training", "metrics", "software", "licence")
    return {"image_shape": list(model.image_shape), **sizes} | {field: model.manifest.get(field) for field in fields}


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "version", "size", "image", "data", "made", "problem"):
        table.add_column(column, overflow="fold", no_wrap=column != "problem")
    for row in rows:
        known = "problem" not in row
        cells = (
            row["name"],
            f"{row['version']:06d}",
            f"{row['num_visible']}x{row['num_hidden']}" if known else "",
            "x".join(str(side) for side in row["image_shape"]) if known else "",
            str((row["dataset"] or {}).get("name", "")) if known else "",
            str(row["created_at"] or "") if known else "",
            row.get("problem", ""),
        )
        table.add_row(*map(escape, cells))
    width = None if sys.stdout.isatty() else _FILE_WIDTH
    Console(highlight=False, soft_wrap=True, width=width).print(table)
