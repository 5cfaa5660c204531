"""The machine's serial console: collects output, recognises texts in it, types at prompts (docs/guide/boot.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from casemate.events import EventSink, Milestone
from casemate.machine.last_words import find_last_words

_KEPT = 1 << 20
_ESCAPE = b"\x1b"
_COUNTDOWN = b" seconds to skip "

_NEWLINE = 0x0A

_PHASES = (
    (b"BdsDxe: ", "BDS"),
    (b"UEFI Interactive Shell", "shell"),
    (b"Linux version ", "kernel"),
    (b"Run /init as init process", "init"),
)
_PANIC, _PANIC_END = b"Kernel panic - not syncing: ", b"---[ end Kernel panic"


class Console:
    """One guest's console.

    Each text of ``typed`` goes to the guest, with a carriage return, when ``prompt`` is printed; ``until`` counts only
    behind the last of them. With no ``until``, the prompt that follows the last typed text ends the run. While there is
    somebody to type for, countdowns are ended with ESC. A guest that says that it cannot go on is taken at its word,
    unless somebody is ``attending`` it who may type.
    """

    def __init__(
        self,
        sink: EventSink,
        *,
        until: str | None = None,
        typed: Sequence[str] = (),
        prompt: str = "Shell> ",
        output: Callable[[bytes], None] | None = None,
        debug_output: Callable[[bytes], None] | None = None,
        on_activity: Callable[[], None] = lambda: None,
        attending: bool = False,
        ends_at_prompt: bool = False,
    ) -> None:
        self.text = bytearray()
        """The last megabyte that the guest printed."""
        self._until_seen: Callable[[], None] = lambda: None
        self._on_panic: Callable[[str], None] = lambda reason: None
        self._on_last_words: Callable[[str], None] = lambda reason: None
        self._on_input_end: Callable[[], None] = lambda: None
        self.attending = attending
        self._ends_at_prompt = ends_at_prompt and not attending and until is None and not typed
        self._feed: Callable[[bytes], None] = lambda data: None
        self._debug = bytearray()
        self._sink = sink
        self._prompt = _bytes_of(prompt)
        self._typed = [_bytes_of(text) + b"\r" for text in typed]
        self._until_was_given = until is not None
        self._until = _bytes_of(until) if until is not None else (self._prompt if typed else None)
        self._skips_countdowns = self._until is not None
        self._output = output
        self._debug_output = debug_output
        self._on_activity = on_activity
        self._phases = list(_PHASES)
        self._endings = self._last_bytes()

    def connect(
        self,
        feed: Callable[[bytes], None],
        until_seen: Callable[[], None],
        on_panic: Callable[[str], None] = lambda reason: None,
        on_last_words: Callable[[str], None] = lambda reason: None,
        on_input_end: Callable[[], None] = lambda: None,
    ) -> None:
        """``feed`` takes bytes for the guest, from any thread; ``until_seen`` is called once.

        ``on_panic`` is told the reason when a kernel gave up and stays there, ``on_last_words`` when anything else did;
        ``on_input_end`` is called when the guest waits for input at a prompt, and none will come.
        """
        self._feed, self._until_seen, self._on_panic = feed, until_seen, on_panic
        self._on_last_words, self._on_input_end = on_last_words, on_input_end

    def type(self, data: bytes) -> None:
        """Input from somebody at the console; from any thread."""
        self._feed(data)

    @property
    def is_waiting(self) -> bool:
        """Whether the guest still owes a text that was asked for, or a prompt to type at."""
        return bool(self._typed) or (self._until_was_given and self._until is not None)

    @property
    def panic_reason(self) -> str | None:
        """Why the guest's kernel gave up, if it said that it did."""
        _, panic, rest = self.text.rpartition(_PANIC)
        return rest.partition(b"\n")[0].decode(errors="replace").strip() if panic else None

    def put(self, byte: int) -> None:
        """One byte that the guest printed."""
        text = self.text
        text.append(byte)
        self._on_activity()
        if self._output is not None:
            self._output(bytes((byte,)))
        if byte in self._endings:
            self._recognise(text)
        if len(text) > 2 * _KEPT:
            del text[:_KEPT]

    def debug(self, byte: int) -> None:
        """One byte of debug output; ``until`` and last words are looked for in it."""
        self._debug.append(byte)
        if self._debug_output is not None:
            self._debug_output(bytes((byte,)))
        if len(self._debug) > 2 * _KEPT:
            del self._debug[:_KEPT]
        if self._until is not None and not self._typed and self._debug.endswith(self._until):
            self._seen()
        elif byte == _NEWLINE:
            self._heed(self._debug)

    @property
    def debug_text(self) -> bytes:
        """What the guest wrote to the debug port, the last megabyte of it."""
        return bytes(self._debug)

    def _last_bytes(self) -> frozenset[int]:
        texts = [
            self._until,
            self._prompt if self._typed or self._ends_at_prompt else None,
            *(text for text, _ in self._phases),
        ]
        texts += [_PANIC_END, b"\n", b"> ", _COUNTDOWN if self._skips_countdowns else None]
        return frozenset(text[-1] for text in texts if text)

    def _recognise(self, text: bytearray) -> None:
        for marker, phase in self._phases:
            if text.endswith(marker):
                self._sink.report(Milestone(phase))
                self._phases.remove((marker, phase))
                break
        if self._skips_countdowns and text.endswith(_COUNTDOWN):
            self._feed(_ESCAPE)
        if self._typed and text.endswith(self._prompt):
            self._feed(self._typed.pop(0))
        elif self._until is not None and not self._typed and text.endswith(self._until):
            self._seen()
        elif text.endswith(_PANIC_END) and (reason := self.panic_reason):
            self._on_panic(reason)
        elif self._ends_at_prompt and text.endswith(self._prompt):
            self._on_input_end()
        else:
            self._heed(text)

    def _heed(self, text: bytearray) -> None:
        if self.attending:
            return
        line = bytes(text[text.rfind(b"\n", 0, -1) + 1 :])
        is_prompt = bool(self._typed) and self._prompt in line
        if not is_prompt and (found := find_last_words(line)) is not None:
            self._on_last_words(found.explain(line))

    def _seen(self) -> None:
        self._until = None
        self._until_seen()


def _bytes_of(text: str) -> bytes:
    """Text from a command line, whose bytes need not be UTF-8."""
    return text.encode(errors="surrogateescape")
