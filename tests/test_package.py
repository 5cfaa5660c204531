"""The house rules of the source tree, as tests (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import ctypes
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from casemate.abi.layout import Struct

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "casemate"
MODULES = sorted(SRC.rglob("*.py"))
CODE = [
    *MODULES,
    *(
        path
        for top in ("tests", "benches", "examples", "fuzz", "tools")
        for path in ROOT.glob(f"{top}/**/*.py")
    ),
]
TEXTS = [
    *CODE,
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("*.md"),
    *(ROOT / name for name in ("dev", ".ci/run", "pyproject.toml")),
]

LAYERS = (
    {"abi", "address", "errors", "events", "files", "native", "submodules", "version"},
    {"firmware", "host", "linux", "qemu"},
    {"memory", "digest", "guests"},
    {"devices", "owner"},
    {"evidence"},
    {"machine", "userkvm"},
    {"advise", "confidential", "prove"},
    {"qmp", "power_cuts"},
    {"api"},
    {"matrix"},
    {"cli"},
    {"pytest_plugin"},
)
"""Packages of ``casemate``, lowest first."""
LEVELS = {package: level for level, packages in enumerate(LAYERS) for package in packages}
PURE = ("abi", "firmware", "linux", "qemu", "digest", "advise")
HOST_MODULES = {"mmap", "fcntl", "socket", "subprocess", "time", "threading", "signal", "select", "unicorn"}
BANNED_NAMES = {"util", "utils", "common", "helpers", "misc", "base", "core", "types", "manager", "handler"}

MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 80
MAX_FUNCTION_IMPORTS = 59
"""They hide what a module needs, so they are for what few runs need and takes a while to load."""

FOREIGN_WORDS = re.compile(
    r"\bissue #?\d+|\b(sub)?agents?\b|\b(this|previous|next) session\b|\bclaude\b|\bLLM\b", re.IGNORECASE
)
MACHINE_PATHS = re.compile(r"(?<![\w.~}])/(work|home|root|tmp)/\w")
REGISTRY_HOSTS = re.compile(
    r"debian\.org/debian|(deb|ftp|snapshot)\.debian\.org|\w\.ubuntu\.com|pypi\.org|pythonhosted\.org|crates\.io"
)


def short(path: Path) -> str:
    """Name of a file in messages and test identifiers."""
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(path.read_text("utf-8"), str(path))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of the modules that ``path`` imports."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(dotted: str) -> str | None:
    """``abi`` of ``casemate.abi.layout``; None outside of casemate and for its own face."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "casemate" and len(parts) > 1 and not parts[1].startswith("__") else None


def own_package(path: Path) -> str:
    """``abi`` of ``src/casemate/abi/layout.py``."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def definitions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a module."""
    for node in ast.walk(parse(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def breaches(pattern: re.Pattern[str]) -> list[str]:
    """Where a text that must not be in the tree is; this file names it and is left out."""
    return [
        f"{short(path)}:{number}: {line.strip()}"
        for path in TEXTS
        if path != Path(__file__)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def test_imports_go_to_lower_layers_or_the_own_package_only() -> None:
    found = [
        f"{short(path)} imports {target}"
        for path in MODULES
        if (package := own_package(path)) in LEVELS
        for name in imported(path)
        if (target := package_of(name)) is not None
        and target != package
        and not LEVELS.get(target, len(LAYERS)) < LEVELS[package]
        and not LEVELS[package] == LEVELS.get(target) == 0
    ]
    assert not found


def module_name(path: Path) -> str:
    """``casemate.abi.layout`` of ``src/casemate/abi/layout.py``; of a package's ``__init__`` the package."""
    return ".".join(path.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__")


def import_graph(paths: Sequence[Path]) -> dict[str, set[str]]:
    """Which modules of casemate each module imports, for annotations, too."""
    names = {module_name(path) for path in paths}
    graph: dict[str, set[str]] = {}
    for path in paths:
        found = set()
        for dotted in imported(path):
            while dotted not in names and "." in dotted:
                dotted = dotted.rpartition(".")[0]
            found.add(dotted)
        # The face of the package names everything, and nothing in the package may need it.
        graph[module_name(path)] = (found & names) - {module_name(path), "casemate"}
    return graph


def cycles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The groups of modules that import each other, directly or by way of others."""
    remaining = {name: set(targets) for name, targets in graph.items()}
    while leaves := {name for name, targets in remaining.items() if not targets & remaining.keys()}:
        remaining = {name: targets for name, targets in remaining.items() if name not in leaves}
    reaches: dict[str, set[str]] = {}
    for name in remaining:
        seen: set[str] = set()
        todo = [name]
        while todo:
            new = (remaining[todo.pop()] & remaining.keys()) - seen
            seen |= new
            todo += new
        reaches[name] = seen
    groups = {
        frozenset(other for other in seen if name in reaches[other])
        for name, seen in reaches.items()
        if name in seen
    }
    return [set(group) for group in groups]


def test_no_modules_import_each_other() -> None:
    assert not cycles(import_graph(MODULES))


OLD_CIRCLES = (
    {
        "casemate.advise.lint": {"casemate.advise.flash_rules"},
        "casemate.advise.flash_rules": {"casemate.advise.lint"},
    },
    {
        "casemate.machine.machine": {"casemate.machine.vcpus"},
        "casemate.machine.vcpus": {"casemate.machine.machine"},
    },
    {
        "casemate.qmp.commands": {"casemate.qmp.monitor", "casemate.qmp.sev_commands"},
        "casemate.qmp.sev_commands": {"casemate.qmp.monitor"},
        "casemate.qmp.monitor": {"casemate.qmp.commands"},
    },
    {
        "casemate.host.model.intercepts": {"casemate.host.model.store_judge"},
        "casemate.host.model.store_judge": {"casemate.host.model.memory"},
        "casemate.host.model.memory": {"casemate.host.model.intercepts"},
    },
)


@pytest.mark.parametrize("circle", OLD_CIRCLES, ids=min)
def test_a_circle_that_was_there_once_would_be_found(circle: dict[str, set[str]]) -> None:
    graph = import_graph(MODULES)
    for name, targets in circle.items():
        graph[name] = graph.get(name, set()) | targets
    assert any(circle.keys() <= group for group in cycles(graph))


def test_every_package_has_a_layer() -> None:
    known = {*LEVELS, "testing", "__init__", "__main__"}
    assert {own_package(path) for path in MODULES} <= known


def test_nothing_in_the_package_needs_its_testing_module() -> None:
    found = [
        short(path)
        for path in MODULES
        if own_package(path) != "testing" and any(package_of(name) == "testing" for name in imported(path))
    ]
    assert not found


def test_hosts_do_not_know_each_other() -> None:
    for one, other in (("kvm", "model"), ("model", "kvm")):
        for path in SRC.glob(f"host/{one}/**/*.py"):
            assert not any(name.startswith(f"casemate.host.{other}") for name in imported(path)), short(path)


@pytest.mark.parametrize("package", PURE)
def test_pure_packages_touch_neither_clock_nor_host(package: str) -> None:
    for path in SRC.glob(f"{package}/**/*.py"):
        names = set(imported(path))
        assert not {name.split(".")[0] for name in names} & HOST_MODULES, short(path)
        assert "CDLL" not in path.read_text("utf-8"), short(path)


def test_mprotect_of_guest_memory_is_called_in_one_module() -> None:
    callers = {
        short(path)
        for path in MODULES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr in ("mprotect", "pkey_mprotect")
    }
    assert callers == {"src/casemate/memory/flash_memory.py"}


def test_files_and_functions_stay_short() -> None:
    long_files = [short(path) for path in CODE if len(path.read_text("utf-8").splitlines()) > MAX_FILE_LINES]
    long_functions = [
        f"{short(path)}:{node.name}"
        for path in CODE
        for node in definitions(path)
        if node.end_lineno is not None and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not long_files + long_functions


def test_few_functions_import_modules() -> None:
    found = {
        f"{short(path)}:{node.lineno}"
        for path in MODULES
        for function in definitions(path)
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert len(found) <= MAX_FUNCTION_IMPORTS, sorted(found)


def test_no_module_is_named_for_nothing() -> None:
    assert not [short(path) for path in CODE if {path.stem, path.parent.name} & BANNED_NAMES]


def test_modules_say_in_one_sentence_what_they_are_and_by_which_source() -> None:
    found = []
    for path in MODULES:
        text = ast.get_docstring(parse(path)) or ""
        first = text.partition("\n\n")[0]
        named = "(" in text or "Source" in text or path.stem == "__init__" or own_package(path) == "testing"
        if not first.endswith((".", ")")) or not named:
            found.append(short(path))
    assert not found


def test_public_things_have_docstrings() -> None:
    found: list[str] = []

    def visit(path: Path, node: ast.Module | ast.ClassDef, prefix: str) -> None:
        for child in node.body:
            if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            setter = any(
                isinstance(mark, ast.Attribute) and mark.attr == "setter" for mark in child.decorator_list
            )
            if child.name.startswith("_") or setter:
                continue
            if ast.get_docstring(child) is None:
                found.append(f"{short(path)}: {prefix}{child.name}")
            if isinstance(child, ast.ClassDef):
                visit(path, child, f"{child.name}.")

    for path in MODULES:
        visit(path, parse(path), "")
    assert not found


def _structs() -> list[type[Struct]]:
    for path in SRC.glob("abi/**/*.py"):
        importlib.import_module(".".join(path.relative_to(SRC.parent).with_suffix("").parts))
    found: list[type[Struct]] = []
    todo = [Struct]
    while todo:
        found += (new := todo.pop().__subclasses__())
        todo += new
    return found


@pytest.mark.parametrize("struct", _structs(), ids=lambda struct: struct.__name__)
def test_structs_have_the_size_their_source_states(struct: type[Struct]) -> None:
    assert ctypes.sizeof(struct) == struct.SIZE
    assert struct.SOURCE


def test_pages_that_are_pointed_to_exist() -> None:
    missing = {
        f"{short(path)}: {page}"
        for path in TEXTS
        if path != Path(__file__)
        for page in re.findall(r"(?<![\w/])docs/[\w/-]+\.md", path.read_text("utf-8"))
        if not (ROOT / page).is_file()
    }
    for path in ROOT.glob("**/*.md"):
        if {".venv", "build"} & set(path.relative_to(ROOT).parts):
            continue
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text("utf-8"))
        missing |= {f"{short(path)}: {link}" for link in links if not (path.parent / link).exists()}
    assert not missing


def test_the_picture_of_the_layers_has_every_package() -> None:
    picture = (ROOT / "docs" / "design" / "architecture.md").read_text("utf-8").split("```")[1]
    assert set(LEVELS) <= set(re.findall(r"\w+", picture))


def test_promises_name_tests_that_exist() -> None:
    named = re.findall(
        r"`((?:\w+/)*\w+(?:\.py|/))(?:::(test_\w+))?`", (ROOT / "SPECIFICATION.md").read_text("utf-8")
    )
    assert named
    for file, test in named:
        path = ROOT / "tests" / file
        assert path.exists(), file
        assert not test or f"def {test}(" in path.read_text("utf-8"), f"{file}::{test}"


def test_the_readme_shows_the_example_that_the_tests_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert blocks == [(ROOT / "examples" / "sev_es_debug_swap.py").read_text("utf-8")]


@pytest.mark.parametrize(
    "pattern", [FOREIGN_WORDS, MACHINE_PATHS, REGISTRY_HOSTS], ids=["words", "paths", "hosts"]
)
def test_the_tree_speaks_of_the_project_alone(pattern: re.Pattern[str]) -> None:
    assert not breaches(pattern)
