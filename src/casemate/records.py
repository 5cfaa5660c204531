"""``NamedTuple``, ``Value``, ``Protocol`` and ``TYPE_CHECKING`` for modules that short commands load (Python's typing).

Loading ``typing`` or ``dataclasses``, and building a class by ``collections.namedtuple`` or ``@dataclass``, takes
longer than predicting a launch digest. Type checkers see the real ones; a test holds these to them.
"""

from __future__ import annotations

__all__ = ["TYPE_CHECKING", "NamedTuple", "Protocol", "Value"]

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import NamedTuple, Protocol, Self, dataclass_transform

    @dataclass_transform(frozen_default=True)
    class Value:
        """Base of classes that ``@dataclass(frozen=True, slots=True)`` could have made."""

        def _replace(self, **changes: object) -> Self: ...

        def _asdict(self) -> dict[str, object]: ...

else:
    from operator import itemgetter

    class Protocol:
        """Base of classes that say what others offer."""

        __slots__ = ()

    class _RecordType(type):
        def __new__(cls, name, bases, body):
            if bases == (tuple,):
                return super().__new__(cls, name, bases, body)
            if _Record in bases or Value in bases:
                fields = tuple(body.pop("__annotations__", ()))
                defaults = {field: body.pop(field) for field in fields if field in body}
                body |= {field: property(itemgetter(index)) for index, field in enumerate(fields)}
                body |= {"_fields": fields, "__match_args__": fields, "_field_defaults": defaults}
            body.setdefault("__slots__", ())
            return super().__new__(cls, name, bases, body)

    class _Record(tuple, metaclass=_RecordType):
        """Base of classes whose annotations are the fields of a tuple."""

        __slots__ = ()

        def __new__(cls, *values, **named):
            fields = cls._fields
            if named or len(values) != len(fields):
                values = cls._complete(values, named)
            return tuple.__new__(cls, values)

        @classmethod
        def _complete(cls, values, named):
            rest = cls._fields[len(values) :]
            found = cls._field_defaults | named
            if (
                len(values) > len(cls._fields)
                or not named.keys() <= set(rest)
                or not found.keys() >= set(rest)
            ):
                raise TypeError(
                    f"{cls.__name__} takes {', '.join(cls._fields)}; given are {values} and {named}"
                )
            return (*values, *(found[field] for field in rest))

        @classmethod
        def _make(cls, values):
            return cls(*values)

        def _replace(self, **changes):
            return type(self)(**(self._asdict() | changes))

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            fields = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
            return f"{type(self).__name__}({fields})"

    NamedTuple = _Record

    class Value(_Record):
        """A record that is no sequence to its users: it equals only its own kind, and is true."""

        def __eq__(self, other):
            if type(other) is type(self):
                return tuple.__eq__(self, other)
            return False if isinstance(other, tuple) else NotImplemented

        def __ne__(self, other):
            return not self == other

        __hash__ = tuple.__hash__

        def __bool__(self):
            return True
