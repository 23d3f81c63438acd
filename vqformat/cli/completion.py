"""``vqm completion``: scripts with which shells complete verbs and options."""

from __future__ import annotations

import argparse

from .arguments import build_parser, verbs_of

_BASH = """\
_vqm() {
  local word=${COMP_WORDS[COMP_CWORD]} words=""
  if [ "$COMP_CWORD" -eq 1 ]; then words="VERBS"
  else case ${COMP_WORDS[1]} in
CASES
    esac
    case ${COMP_WORDS[COMP_CWORD-1]} in
CHOICES
    *) case $word in -*) ;; *) words="" ;; esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _vqm vqm
"""


def run_completion(args: argparse.Namespace) -> int:
    """Run ``vqm completion``: print the script for a shell."""
    verbs = verbs_of(build_parser())
    if args.shell == "fish":
        print("\n".join(_fish(verbs)))
        return 0
    if args.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    cases = (f'    {verb}) words="{" ".join(_options(parser))}" ;;' for verb, parser in verbs.items())
    choices = {option: " ".join(map(str, action.choices)) for parser in verbs.values() for action in parser._actions
               if action.choices for option in action.option_strings}  # fmt: skip
    of_options = (f'    {option}) words="{words}" ;;' for option, words in choices.items())
    print(_BASH.replace("VERBS", " ".join([*verbs, "help"])).replace("CASES", "\n".join(cases))
          .replace("CHOICES", "\n".join(of_options)), end="")  # fmt: skip
    return 0


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]


def _fish(verbs: dict[str, argparse.ArgumentParser]) -> list[str]:
    lines = []
    for verb, parser in verbs.items():
        lines.append(f"complete -c vqm -n __fish_use_subcommand -f -a {verb} -d '{parser.description}'")
        for option in _options(parser):
            kind = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            lines.append(f"complete -c vqm -n '__fish_seen_subcommand_from {verb}' {kind}")
    return lines
