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
ZSH = """\
autoload -Uz compinit
compinit
_mimjax() {
  local cur="${words[CURRENT]}" prev="${words[CURRENT-1]}"
  local -a flags
  if (( CURRENT == 2 )); then
    compadd -- PROGRAMS
  elif [[ $cur == --*=* ]]; then
    compset -P '*='
    if [[ $cur == --config=* ]]; then compadd -- CONFIGS; fi
    _files
  elif [[ $prev == --config || ( $CURRENT == 3 && ${words[2]} == config && $cur != -* ) ]]; then
    compadd -- CONFIGS
  elif [[ $cur == -* ]]; then
    case "${words[2]}" in
CASES
    esac
    compadd -S "" -- ${(M)flags:#*=}
    compadd -- ${flags:#*=}
  else
    _files
  fi
}
compdef _mimjax mimjax
"""
# the line of a program's flags, by shell
CASE = {"bash": '      {}) words="{}" ;;', "zsh": "      {}) flags=({}) ;;"}


def script(shell: str) -> str:
    """Return the script of a shell, "bash" or "zsh"."""
    from mimjax.run import config_files

    cases = []
    for name in usage.PROGRAMS:
        program: Any = importlib.import_module(f"mimjax.programs.{name}")
        with cli.defined(program) as names:
            flags = [f"--{flag}" if cli.FLAGS[flag].boolean else f"--{flag}=" for flag in names]
        cases.append(CASE[shell].format(name, " ".join(flags)))
    text = (BASH if shell == "bash" else ZSH).replace("PROGRAMS", " ".join(usage.PROGRAMS))
    text = text.replace("CONFIGS", " ".join(config_files.shipped()))
    return text.replace("CASES", "\n".join(cases))
