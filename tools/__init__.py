"""Programs for those who work on casemate (CONTRIBUTING.md)."""
