"""``NamedTuple`` and ``TYPE_CHECKING`` of Python's ``typing``, for modules that short commands load (collections).

Loading ``typing`` takes as long as predicting a launch digest does. Type checkers see the real ones.
"""

from __future__ import annotations

__all__ = ["TYPE_CHECKING", "NamedTuple"]

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from collections import namedtuple

    class _RecordType(type):
        def __new__(cls, name, bases, body):
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = tuple(body.pop("__annotations__", ()))
            defaults = [body.pop(field) for field in fields if field in body]
            record = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            for key, value in body.items():
                if key not in ("__module__", "__slots__", "__classcell__"):
                    setattr(record, key, value)
            return record

    class NamedTuple(metaclass=_RecordType):
        """Base of classes whose annotations are the fields of a tuple."""
