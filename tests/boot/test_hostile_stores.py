"""No variable appears in a hostile store that OVMF on the model does not see (Debian images)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.firmware_images import require_image

from casemate.machine.boot import boot
from casemate.machine.spec import MachineSpec
from tools.hostile_stores import hostile_stores, judge

pytestmark = pytest.mark.boot

BOOTS = 30
"""Every kind three times; ``python -m tools.hostile_stores`` does 200."""
PATIENCE = 20
"""Seconds; a boot takes two or three, and some stores stop firmware."""
TIMEOUT = 1800
"""Seconds; some writes have firmware rewrite them all, byte by byte."""


@pytest.mark.timeout(TIMEOUT)
def test_no_variable_appears_that_firmware_does_not_see(tmp_path: Path) -> None:
    code, template = (require_image(name, "bookworm") for name in ("OVMF_CODE.fd", "OVMF_VARS.fd"))
    store = tmp_path / "VARS.fd"
    store.write_bytes(template.read_bytes())
    boot(MachineSpec(code=code, variables=store), until="Shell> ", timeout=100)
    shown = seen = 0
    for hostile in hostile_stores(store.read_bytes(), seed=22, count=BOOTS):
        judgement = judge(hostile.data, code, tmp_path, PATIENCE)
        assert judgement.seen is not None or not judgement.is_healthy, hostile.how
        assert not judgement.invented or judgement.seen is None, (hostile.number, hostile.how)
        shown += len(judgement.shown)
        seen += len(judgement.seen or ())
    assert shown > BOOTS, "the planted variables that are sound are shown"
    assert shown > 0.9 * seen
