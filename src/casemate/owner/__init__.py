"""What the owner of a SEV guest does: session, check of the platform, secret (AMD 55766 SEV API 0.24, chapter 2)."""
