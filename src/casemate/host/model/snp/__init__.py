"""Modelled SEV-SNP: secure processor, RMP, page states, guest messages (AMD 56860)."""
