"""The version of casemate (PEP 440); pyproject.toml reads it here."""

__version__ = "0.1.0"
