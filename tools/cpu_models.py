"""Makes the table of QEMU's CPU models and of CPUID's features anew, from the newest QEMU in the roots (tools/roots).

    python -m tools.cpu_models            print the table
    python -m tools.cpu_models --write    write src/casemate/abi/x86/cpu_models.json

QEMU is asked for the bit of each feature by starting it with that feature alone, which takes a minute. Entering a root
needs to be root.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.qemu_releases import NoRootError, commands, make_table

TABLE = Path(__file__).parents[1] / "src" / "casemate" / "abi" / "x86" / "cpu_models.json"
SHOWN = ("vendor", "family", "model", "stepping", "model-id", "level", "xlevel")
WORDS = {
    "1.ecx", "1.edx", "6.eax", "7.ebx", "7.ecx", "7.edx", "7.1.eax", "d.1.eax", "80000001.ecx", "80000001.edx",
    "80000007.edx", "80000008.ebx", "8000000a.edx",
}  # fmt: skip


class Qemu:
    """One that waits for commands on its standard streams."""

    def __init__(self, command: list[str], *options: str) -> None:
        line = [*command, "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio", *options]
        self._process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        """What it returns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"execute": command, "arguments": arguments}), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            message = json.loads(line)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise RuntimeError(message["error"])
        raise RuntimeError(f"QEMU ended at {command}")

    def close(self) -> None:
        """End it."""
        self.ask("quit")
        self._process.communicate()


def feature_words(command: list[str], cpu: str) -> dict[str, int]:
    """The words of CPUID of one processor, with what this accelerator leaves out."""
    qemu = Qemu(command, "-M", "pc", "-m", "16", "-cpu", cpu)
    path = qemu.ask("query-cpus-fast")[0]["qom-path"]
    words: dict[str, int] = {}
    for name in ("feature-words", "filtered-features"):
        for word in qemu.ask("qom-get", path=path, property=name):
            index = word.get("cpuid-input-ecx", 0)
            key = f"{word['cpuid-input-eax']:x}{f'.{index:x}' if index else ''}.{word['cpuid-register'].lower()}"
            words[key] = words.get(key, 0) | word["features"]
    qemu.close()
    return words


def find_features(command: list[str]) -> dict[str, list[Any]]:
    """Word and bit of each feature that QEMU names, of the words that are kept."""
    text = subprocess.run([*command, "-cpu", "help"], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[Any]] = {}
    for name in text.partition("Recognized CPUID flags:")[2].split():
        for word, bits in feature_words(command, f"base,+{name}").items():
            if word in WORDS and bits:
                found[name] = [word, bits.bit_length() - 1]
    return found


def find_models(command: list[str], features: dict[str, list[Any]]) -> dict[str, Any]:
    """Every 64-bit model; of those with another name, that name."""
    qemu = Qemu(command, "-M", "none")
    version = qemu.ask("query-version")["qemu"]
    models, aliases = {}, {}
    for definition in qemu.ask("query-cpu-definitions"):
        name = definition["name"]
        if definition.get("alias-of"):
            aliases[name] = definition["alias-of"]
            continue
        expanded = qemu.ask("query-cpu-model-expansion", type="full", model={"name": name})
        properties = expanded["model"]["props"]
        if name in ("max", "host", "base") or not properties["lm"]:
            continue
        words: dict[str, int] = {}
        for feature, (word, bit) in features.items():
            if properties[feature]:
                words[word] = words.get(word, 0) | 1 << bit
        models[name] = {key: properties[key] for key in SHOWN} | {
            "features": {word: hex(bits) for word, bits in sorted(words.items())}
        }
    qemu.close()
    return {
        "qemu": "{major}.{minor}.{micro}".format(**version),
        "features": features,
        "models": models,
        "aliases": {name: model for name, model in aliases.items() if model in models},
    }


def _make() -> str:
    roots = dict(commands())
    if "sid" not in roots:
        raise NoRootError("there is no root of sid with QEMU")
    table = find_models(roots["sid"], find_features(roots["sid"]))
    lines = [f'"qemu": {json.dumps(table["qemu"])}']
    for part in ("features", "models", "aliases"):
        rows = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in table[part].items())
        lines.append(f'"{part}": {{\n{rows}\n}}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    sys.exit(make_table(__doc__, TABLE, _make))
