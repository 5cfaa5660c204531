"""AMD SEV: policy, save area and features as numbers and bytes (AMD 55766, AMD APM volume 2)."""
