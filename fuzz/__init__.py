"""Hostile input for every part of casemate that reads some: targets, engines, findings (docs/design/fuzzing.md)."""
