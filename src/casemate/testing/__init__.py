"""Public builders and fakes for tests; nothing in casemate imports them."""
