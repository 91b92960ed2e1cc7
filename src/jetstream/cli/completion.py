"""Completion of commands and flags in a shell.

The command writes a script of cyclopts for bash, zsh or fish, and adds a line to the shell's startup
file.
"""

from __future__ import annotations

from cyclopts.completion.install import create_install_completion_command

from jetstream.cli import app

install = create_install_completion_command(app.install_completion, add_to_startup=True)
