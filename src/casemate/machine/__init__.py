"""A machine built from a specification, run to an outcome."""
