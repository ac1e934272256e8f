"""Tab completion of programs, flags and names of configs, for bash and zsh."""

from __future__ import annotations

import importlib
from typing import Any

from mimjax.programs import cli, usage

BASH = """\
_mimjax() {
  local i=$COMP_CWORD cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}" words=""
  if [[ $cur == "=" ]]; then cur=""; elif [[ $prev == "=" ]]; then prev="${COMP_WORDS[i-2]}"; fi
  if [[ $i == 1 ]]; then
    words="PROGRAMS"
  elif [[ $prev == --config || ($i == 2 && ${COMP_WORDS[1]} == config && $cur != -*) ]]; then
    words="CONFIGS"
  elif [[ $cur == -* ]]; then
    case "${COMP_WORDS[1]}" in
CASES
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  if [[ ${COMPREPLY[0]} == *= ]] && type compopt > /dev/null 2>&1; then compopt -o nospace; fi
}
complete -o default -F _mimjax mimjax
"""
ZSH = "autoload -Uz compinit bashcompinit\ncompinit\nbashcompinit\n"


def script(shell: str) -> str:
    """Return the script of a shell, "bash" or "zsh"; zsh reads bash's."""
    from mimjax.run import config_files

    cases = []
    for name in usage.PROGRAMS:
        program: Any = importlib.import_module(f"mimjax.programs.{name}")
        with cli.defined(program) as names:
            flags = [f"--{flag}" if cli.FLAGS[flag].boolean else f"--{flag}=" for flag in names]
        cases.append(f'      {name}) words="{" ".join(flags)}" ;;')
    text = BASH.replace("PROGRAMS", " ".join(usage.PROGRAMS))
    text = text.replace("CONFIGS", " ".join(config_files.shipped())).replace(
        "CASES", "\n".join(cases)
    )
    return (ZSH if shell == "zsh" else "") + text
