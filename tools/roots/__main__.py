"""``python -m tools.roots COMMAND``: makes roots of Debian's suites, and runs commands in them (./dev roots)."""

from __future__ import annotations

import argparse
import subprocess
import sys

from tools.roots.enter import enter
from tools.roots.make import RootsError, is_made, make, root_folder
from tools.roots.recipes import RECIPES

_EPILOG = """\
examples:
  ./dev roots make trixie-bare sid-bare
  ./dev roots run trixie-bare --user --checkout -- ./dev boot --timeout 60
  ./dev roots run sid-full -- qemu-system-x86_64 --version

What a command changes in a root is thrown away. Roots take 0.2 GB each, those with QEMU 1 GB; delete their folder to
make them anew. Nothing here names a mirror: packages come from where this machine has its own.
"""


def main() -> int:
    """0, the command's exit code, or 125 if there is no such root."""
    parser = argparse.ArgumentParser(
        prog="./dev roots",
        description="Root folders of other Debian suites, to try casemate in.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("list", help="name every root, and say whether it is made")
    maker = commands.add_parser("make", help="make roots that are not made yet (all, unless named)")
    maker.add_argument("names", nargs="*", metavar="NAME")
    runner = commands.add_parser("run", help="run a command in a root, made if need be")
    runner.add_argument("name", metavar="NAME")
    runner.add_argument("--user", action="store_true", help="as an ordinary user, not as root")
    runner.add_argument("--checkout", action="store_true", help="in a copy of this checkout, as git knows it")
    runner.add_argument(
        "--bind", action="append", default=[], metavar="FOLDER:PLACE", help="show a folder there"
    )
    runner.usage = "./dev roots run [--user] [--checkout] [--bind FOLDER:PLACE] NAME -- WORD ..."
    words, command = _split(sys.argv[1:])
    args = parser.parse_args(words)
    try:
        return _do(args, command)
    except RootsError as error:
        print(f"roots: error: {error}", file=sys.stderr)
        return 125


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """What is for us, and the command behind the dashes."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def _do(args: argparse.Namespace, command: list[str]) -> int:
    names = [args.name] if args.command == "run" else getattr(args, "names", []) or list(RECIPES)
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        raise RootsError(f"no root {unknown[0]!r}: there are {', '.join(RECIPES)}")
    recipes = [RECIPES[name] for name in names]
    if args.command == "list":
        for recipe in recipes:
            place = str(root_folder(recipe)) if is_made(recipe) else "-"
            print(f"{recipe.name:14} {place:50} {recipe.what}")
        return 0
    if args.command == "make":
        for recipe in recipes:
            print(make(recipe))
        return 0
    if not command or recipes[0].is_disk:
        cause = "a disk runs no command: boot it" if command else "no command: ./dev roots run NAME -- WORD"
        raise RootsError(cause)
    return enter(
        make(recipes[0]) / "tree", command, as_user=args.user, with_checkout=args.checkout, binds=args.bind
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        print(f"roots: error: {error}", file=sys.stderr)
        sys.exit(125)
