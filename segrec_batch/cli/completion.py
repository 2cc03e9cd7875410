"""`segrec completion`: print the completion script of a shell."""

import argparse

from segrec_batch.cli.options import set_up
from segrec_batch.common import console

_EXAMPLES = """\
examples:
  segrec completion bash > ~/.local/share/bash-completion/completions/segrec
  segrec completion zsh > "${fpath[1]}/_segrec"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    set_up(
        parser,
        run,
        "Print a script that lets a shell complete commands, options and files.",
        _EXAMPLES,
    )


def run(a: argparse.Namespace) -> None:
    """Run the command."""
    import shtab

    from segrec_batch.cli.main import build_parser

    console.show(shtab.complete(build_parser(None), a.shell) + "\n")
