"""The main jobs as calls: boot, measure, explain, inspect, lint, verify, and variables (docs/guide/python.md).

Paths may be ``str`` or ``Path``; where an enum is meant, its value as text will do (``kind="sev-es"``). Errors are
``CasemateError`` with a cause and a remedy; what a guest does is never an exception but part of the ``Outcome``.
"""
