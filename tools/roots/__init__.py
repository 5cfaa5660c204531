"""Root folders of other Debian suites, made from packages and cached, to try casemate in (./dev roots)."""
