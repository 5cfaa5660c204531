"""Predict the launch digest of a SEV-ES guest, and find out why a host reports another one."""

from casemate import explain, find_firmware, measure

firmware = find_firmware("sev-es")
expected = measure(firmware.code, "sev-es", vcpus=4, vcpu_type="EPYC-v4")
print("expected", expected.digest.hex(), "in", len(expected.plan.steps), "steps")

observed = measure(firmware.code, "sev-es", vcpus=3, vcpu_type="EPYC-Milan").digest
explanation = explain(observed, firmware.code, "sev-es", vcpus=4, vcpu_type="EPYC-v4")
causes = {deviation.id for match in explanation.matches for deviation in match.deviations}
print("observed", observed.hex(), "because of", ", ".join(sorted(causes)))
assert "vcpus" in " ".join(causes)
