"""Where casemate keeps what belongs to this user's guests (XDG base directory specification)."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path:
    """``$XDG_STATE_HOME/casemate``, by default below ``~/.local/state``; it need not exist."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "casemate"


def model_platform_folder() -> Path:
    """Where the modelled platform keeps its keys between a session and the launch that it is for."""
    return state_folder() / "model-platform"
