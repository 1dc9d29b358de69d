"""The project checks its own shape: who imports whom, how long files and functions are, what lies where."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model_core", "service")

# Who may import what inside `model_core`. A line names a module and what it may use; a module that splits keeps
# its line: `cli_train` counts as `cli`. Everybody may use the leaves.
LEAVES = {"arrays", "rbm", "randomness"}
MODEL_CORE: dict[str, set[str]] = {
    "arrays": set(),
    "rbm": set(),
    "randomness": set(),
    # Engines take chains in the form that `chains` defines; `chains` imports them inside a function, on first use.
    "kernels": set(),
    "quiet_tensorflow": set(),
    "engine_numba": {"chains", "kernels"},
    "engine_tensorflow": {"chains", "quiet_tensorflow"},
    "chains": {"engine_numba", "engine_tensorflow"},
    # What is known about a model.
    "exact": set(),
    "annealing": {"chains", "engine_numba"},
    "likelihood": {"annealing", "chains", "exact"},
    "tempering": {"annealing", "likelihood"},
    "equilibrium": {"chains", "engine_numba"},
    "evaluation": {"annealing", "exact", "likelihood", "tempering"},
    "quality": set(),
    "monitoring": set(),
    # Training.
    "data": set(),
    "presets": {"data"},
    "gradients": {"presets", "quiet_tensorflow"},
    "ladder": {"chains", "engine_numba", "likelihood"},
    "training": {"chains", "data", "engine_numba", "gradients", "ladder", "presets", "quiet_tensorflow"},
    # On disk and on paper.
    "manifest": set(),
    "model_files": {"manifest"},
    "publishing": {"manifest", "model_files"},
    "model_store": {"manifest", "model_files", "publishing"},
    "plots": set(),
    "report": {"plots"},
    "__init__": {"chains", "model_store"},
}
WIRING = {"cli", "bench"}  # may import everything, and nothing else may import them
SERVICE_MAY_IMPORT_MODEL_CORE: dict[str, set[str] | None] = {
    "scheduler": None,  # None: any module
    "registry": None,
    "served_model": None,
    "crew": {"chains"},  # what its threads call
    "deflate": {"kernels_draws"},  # for its compiler: pictures are packed by compiled code
    "starts": {"kernels_draws", "randomness"},  # a sample starts from the chain's own noise
}
TENSORFLOW_ALLOWED = "quiet_tensorflow"  # and MODEL_CORE says who may import that
TENSORFLOW = {"tensorflow", "keras"}
UNSAFE = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}

MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 40
# Ratchets: what is longer than the limit today, with its length. A line may shrink or go, never grow or come.
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}

TOP_LEVEL = {
    *("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "requirements.lock", "Dockerfile"),
    *("model_core", "service", "tests", "checkpoints"),
    *(".ci", ".dockerignore", ".gitignore"),
}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def ids(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def imported_names(path: Path) -> set[str]:
    """Absolute dotted names that a file imports, those inside functions and under TYPE_CHECKING included."""
    package = path.relative_to(ROOT).parent.parts
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *(node.module or "").split("."))).strip(".")
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def modules_of(package: str, names: set[str]) -> set[str]:
    """Which modules of `package` are among the imported names: `model_core.rbm.RBMParams` -> rbm."""
    known = {path.stem for path in (ROOT / package).glob("*.py")}
    found = set()
    for parts in (name.split(".") for name in names):
        if parts[0] == package:
            found.add(parts[1] if len(parts) > 1 and parts[1] in known else "__init__")
    return found


def owner(stem: str, table: Iterable[str]) -> str:
    """The line of the table that a module answers to: `cli_train` to `cli`, `training_steps` to `training`."""
    longest_first = sorted(table, key=len, reverse=True)
    return next((name for name in longest_first if stem == name or stem.startswith(name + "_")), stem)


def forbidden_model_core_imports(path: Path) -> set[str]:
    line = owner(path.stem, MODEL_CORE)
    if owner(path.stem, WIRING) in WIRING:
        return set()
    assert line in MODEL_CORE, f"{path.name}: a new module needs a line in MODEL_CORE, which says what it may import"
    allowed = MODEL_CORE[line] | LEAVES | {line}
    used = modules_of("model_core", imported_names(path)) - {"__init__"}
    outside = {name for name in imported_names(path) if name.split(".")[0] == "service"}
    return {module for module in used if owner(module, MODEL_CORE) not in allowed} | outside


def forbidden_service_imports(path: Path) -> set[str]:
    used = modules_of("model_core", imported_names(path))
    if path.parent.name != "service" or path.stem not in SERVICE_MAY_IMPORT_MODEL_CORE:
        return used
    allowed = SERVICE_MAY_IMPORT_MODEL_CORE[path.stem]
    return set() if allowed is None else used - allowed


@pytest.mark.parametrize("path", sources("model_core"), ids=ids(sources("model_core")))
def test_imports_of_model_core_point_down(path: Path) -> None:
    assert forbidden_model_core_imports(path) == set()


def test_the_table_itself_points_down() -> None:
    below = {
        name: allowed - {"engine_numba", "engine_tensorflow"} if name == "chains" else allowed
        for name, allowed in MODEL_CORE.items()
    }
    graphlib.TopologicalSorter(below).prepare()  # raises CycleError


@pytest.mark.parametrize("path", sources("service"), ids=ids(sources("service")))
def test_only_the_named_modules_of_service_import_model_core(path: Path) -> None:
    assert forbidden_service_imports(path) == set()


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=ids(sources(*PACKAGES)))
def test_tensorflow_comes_in_by_one_door_and_nothing_unpickles(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported_names(path)}
    assert not roots & UNSAFE
    if path.stem != TENSORFLOW_ALLOWED or path.parent.name != "model_core":
        assert not roots & TENSORFLOW


def functions(tree: ast.Module, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Name and length of each function; neither its docstring nor the functions inside it count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            inner = sum(length(child) for child in ast.walk(node) if child is not node and is_function(child))
            yield f"{prefix}{node.name}", body[-1].end_lineno - body[0].lineno + 1 - inner  # type: ignore[operator]


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", sources(*PACKAGES, "tests"), ids=ids(sources(*PACKAGES, "tests")))
def test_files_and_functions_stay_short(path: Path) -> None:
    name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    num_lines = len(text.splitlines())
    assert num_lines <= max(MAX_FILE_LINES, LONG_FILES.get(name, 0)), "split it by idea"
    long = {
        function: lines
        for function, lines in functions(ast.parse(text), f"{name}::")
        if lines > max(MAX_FUNCTION_LINES, LONG_FUNCTIONS.get(function, 0))
    }
    assert long == {}


def test_the_ratchets_hold_nothing_that_is_short_by_now() -> None:
    files = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in LONG_FILES}
    assert files == LONG_FILES and all(lines > MAX_FILE_LINES for lines in files.values())
    for name, lines in LONG_FUNCTIONS.items():
        path = ROOT / name.partition("::")[0]
        measured = dict(functions(ast.parse(path.read_text(encoding="utf-8")), f"{name.partition('::')[0]}::"))
        assert measured[name] == lines > MAX_FUNCTION_LINES


def test_the_top_level_holds_only_what_the_design_names() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    tracked = {name.partition("/")[0] for name in listed if name}
    assert tracked <= TOP_LEVEL, sorted(tracked - TOP_LEVEL)


def test_public_names_can_be_imported() -> None:
    package = importlib.import_module("model_core")
    assert sorted(package.__all__) == package.__all__
    for name in package.__all__:
        assert getattr(package, name) is not None
    for name in ("RBMParams", "load_model", "run_chains", "hidden_probs", "free_energy"):
        assert name in package.__all__, "the library in one breath (DESIGN section 8)"


@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        ("service.images", "import model_core", {"__init__"}),
        ("service.images", "def f():\n    from model_core.chains import run_chains", {"chains"}),
        ("service.registry", "from model_core import load_model", set()),
        ("model_core.rbm", "from model_core.chains import run_chains", {"chains"}),
        ("model_core.likelihood", "from . import training", {"training"}),
        ("model_core.data", "import service.images", {"service.images"}),
        ("model_core.cli_extra", "import service.images, model_core.training", set()),
    ],
)
def test_the_rules_have_teeth(
    module: str, line: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, stem = module.split(".")
    (tmp_path / package).mkdir()
    path = tmp_path / package / f"{stem}.py"
    path.write_text(line)
    for name in MODEL_CORE:
        (tmp_path / "model_core").mkdir(exist_ok=True)
        (tmp_path / "model_core" / f"{name}.py").touch()
    path.write_text(line)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    check = forbidden_service_imports if package == "service" else forbidden_model_core_imports
    assert check(path) == expected
