"""A command's options as a table, read at once where a line is plain, else by argparse (Python's argparse).

Loading argparse and building a parser takes longer than the shortest commands do; but what a line that is wrong,
abbreviated or asks for help means is argparse's to say.
"""

from __future__ import annotations

from casemate.records import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace, _ArgumentGroup
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path


def integer(text: str) -> int:
    """A number in any base that Python writes; argparse shows this function's name."""
    return int(text, 0)


def file_path(text: str) -> Path:
    """A file's name."""
    from pathlib import Path

    return Path(text)


def seconds(text: str) -> float:
    """A positive, finite number. Raises argparse.ArgumentTypeError."""
    from argparse import ArgumentTypeError

    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is no positive number of seconds")
    return value


def option_name(attribute: str) -> str:
    """``--tik-file`` of ``tik_file``, as people write it."""
    return f"--{attribute.replace('_', '-')}"


def hex_bytes(args: Namespace, attribute: str, size: int, remedy: str = "") -> bytes | None:
    """An option's value of ``size`` bytes in hex, None if it was not given. Raises SpecError if it is not that."""
    text = getattr(args, attribute)
    if text is None:
        return None
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != size:
        from casemate.errors import SpecError

        raise SpecError(
            f"{option_name(attribute)} {text!r} is not {2 * size} hex digits", remedy or f"give {size} bytes"
        )
    return value


class Option:
    """One option: ``--name VALUE``, or a flag where ``metavar`` is empty and there are no choices.

    A ``repeatable`` one makes a list. A flag may have a ``short`` name. A ``name`` without dashes stands for words that
    are no options.
    """

    __slots__ = ("choices", "default", "help", "metavar", "name", "repeatable", "required", "short", "type")

    def __init__(
        self,
        name: str,
        metavar: str = "",
        help: str | None = None,
        *,
        type: Callable[[str], object] = str,
        choices: tuple[str, ...] = (),
        default: object = None,
        required: bool = False,
        repeatable: bool = False,
        short: str = "",
    ) -> None:
        self.name, self.metavar, self.help, self.short = name, metavar, help, short
        self.type, self.choices, self.required, self.repeatable = type, choices, required, repeatable
        self.default = False if self.is_flag else [] if repeatable or self.is_rest else default

    @property
    def is_flag(self) -> bool:
        """Whether the option takes no value."""
        return not self.metavar and not self.choices

    @property
    def is_rest(self) -> bool:
        """Whether it stands for words that are no options."""
        return not self.name.startswith("-")

    @property
    def attribute(self) -> str:
        """Where its value goes, as argparse names it."""
        return self.name.removeprefix("--").replace("-", "_")

    def add_to(self, parser: ArgumentParser | _ArgumentGroup) -> None:
        """Declare it to argparse."""
        if self.is_rest:
            parser.add_argument(self.name, nargs="*", metavar=self.metavar, help=self.help)
            return
        if self.is_flag:
            names = [name for name in (self.short, self.name) if name]
            parser.add_argument(*names, action="store_true", help=self.help)
            return
        parser.add_argument(
            self.name,
            action="append" if self.repeatable else "store",
            metavar=self.metavar or None,
            type=self.type,
            choices=self.choices or None,
            default=self.default,
            required=self.required,
            help=self.help,
        )


def add_options(parser: ArgumentParser | _ArgumentGroup, options: Iterable[Option]) -> None:
    """Declare them to argparse."""
    for option in options:
        option.add_to(parser)


class Values:
    """What argparse's Namespace is to a command: attributes."""


def read_options(options: Iterable[Option], words: Sequence[str]) -> Namespace | None:
    """The values of a plain line, or None if argparse must read it: every word in full, every value in range."""
    options = tuple(options)
    values = {option.attribute: option.default for option in options}
    table = {option.name: option for option in options if not option.is_rest}
    table |= {option.short: option for option in options if option.short}
    missing = {name for name, option in table.items() if option.required}
    rest = iter(words)
    for word in rest:
        name, equals, text = word.partition("=")
        option = table.get(name)
        if option is None or (option.is_flag and equals):
            return None
        if option.is_flag:
            values[option.attribute] = True
            continue
        if not equals:
            text = next(rest, "-")
        value = _value(option, text)
        if value is None:
            return None
        before = values[option.attribute]
        values[option.attribute] = [*before, value] if isinstance(before, list) else value
        missing.discard(name)
    return None if missing else _namespace(values)


def _value(option: Option, text: str) -> object:
    if text.startswith("-") or (option.choices and text not in option.choices):
        return None
    try:
        return option.type(text)
    except ValueError:
        return None
    except Exception as error:
        from argparse import ArgumentTypeError

        if not isinstance(error, ArgumentTypeError):
            raise
        return None


def _namespace(values: dict[str, object]) -> Namespace:
    read: Namespace = Values()  # type: ignore[assignment]
    read.__dict__.update(values)
    return read
