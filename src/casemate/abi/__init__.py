"""Numbers and structs of other people's documents, spelled as there; no I/O."""
