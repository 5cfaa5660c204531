from __future__ import annotations

import ast
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def _load() -> ModuleType:
    # The tools are no part of the package, and the tests may run from anywhere.
    found = importlib.util.spec_from_file_location("mutations", ROOT / "tools" / "mutations.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["mutations"] = module
    found.loader.exec_module(module)
    return module


mutations = _load()


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: mutation.name)
def test_every_mutation_still_fits_the_tree(mutation: object, tmp_path: Path) -> None:
    file, test = mutation.file, mutation.test  # type: ignore[attr-defined]
    copy = tmp_path / file
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / file, copy)
    assert mutations.apply(mutation, tmp_path) != copy.read_text("utf-8")
    ast.parse(copy.read_text("utf-8"))
    path, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text("utf-8")
