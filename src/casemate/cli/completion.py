"""``casemate completion``: completion for bash and zsh, made from the parsers (docs/guide/shell.md)."""

from __future__ import annotations

import argparse

from casemate.cli.parser import make_parser
from casemate.cli.parser_tree import CommandPage, walk_commands

EPILOG = """\
examples:
  eval "$(casemate completion bash)"                                        in this shell
  casemate completion bash > ~/.local/share/bash-completion/completions/casemate
"""

_FUNCTION = """\
_casemate() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} path=casemate choices= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$path ${{COMP_WORDS[i]}}" in
            {paths}) path="$path ${{COMP_WORDS[i]}}" ;;
        esac
    done
    case "$path $before" in
{values}
    esac
    if [[ -z $choices ]]; then
        case $path in
{words}
        esac
        [[ $word == -* || $path == casemate || $path == "casemate vars" ]] || choices=
    fi
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
    [[ -n $choices ]] || COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -F _casemate casemate
"""
_ZSH = "autoload -Uz bashcompinit && bashcompinit\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which shell."""
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(args: argparse.Namespace) -> int:
    """Print the script; 0."""
    pages = list(walk_commands(make_parser()))
    print((_ZSH if args.shell == "zsh" else "") + script(pages), end="")
    return 0


def script(pages: list[CommandPage]) -> str:
    """A function for bash that knows each command's options, the words they take, and files for the rest."""
    paths = "|".join(f'"{" ".join(page.words)}"' for page in pages[1:])
    words, values = [], []
    for page in pages:
        path = " ".join(page.words)
        options = [option for action in page.options for option in action.option_strings]
        words.append(f'            "{path}") choices="{" ".join((*options, *page.below))}" ;;')
        for action in page.options:
            if action.choices:
                names = "|".join(f'"{path} {option}"' for option in action.option_strings)
                values.append(f'        {names}) choices="{" ".join(map(str, action.choices))}" ;;')
    return _FUNCTION.format(paths=paths, words="\n".join(words), values="\n".join(values))
