"""casemate: a virtual machine monitor for guest firmware (docs/design/architecture.md).

Layers, lowest first: ``abi`` (other people's numbers), ``firmware`` and ``host``, ``memory`` and ``measure``,
``devices``, ``machine``, ``advise``, ``cli``. A module imports only from lower layers or its own package.
"""

__version__ = "0.1.0"
