"""``python -m casemate`` is the ``casemate`` command (docs/guide)."""

from casemate.cli import start

start()
