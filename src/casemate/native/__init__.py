"""Machine code that ships with casemate, compiled when it is built (hatch_build.py).

``hooks/`` is the C library that the modelled CPU puts into its engine (docs/decisions/0002-engine-hooks.md), ``run/``
the loop around KVM_RUN (docs/design/kvm.md), ``kvm/`` what is preloaded into other monitors
(docs/design/user-space-kvm.md), and ``code.py`` has the code of guests, whose assembly is in the packages that use it.
"""

from __future__ import annotations

import os
from pathlib import Path

from casemate.submodules import package_folder

HOOKS = Path(__file__).with_name("_hooks.so")
"""The library of ``hooks/``; not there in a checkout or package that was built for another kind of computer."""

RUN = Path(__file__).with_name("_run.so")
"""The library of ``run/``; likewise."""

KVM = Path(__file__).with_name("_kvm.so")
"""The library of ``kvm/``, to be preloaded; likewise."""


def engine() -> Path:
    """Unicorn's library: what the package brought, or another build, where LIBUNICORN_PATH says as for its binding.

    Raises ModuleNotFoundError if the package is not installed; the file may not be there.
    """
    folder = os.environ.get("LIBUNICORN_PATH") or f"{package_folder('unicorn')}/lib"
    return Path(folder, "libunicorn.so.2")
