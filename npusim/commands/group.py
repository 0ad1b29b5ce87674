"""How ``npusim --help`` lists the commands."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperGroup


class Commands(TyperGroup):
    """Shows what each command does in whole words; typer would cut the lines at a width."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_sentence(command.help or "")) for name, command in self.commands.items()])


def _first_sentence(text: str) -> str:
    """Of a command's help, without the library call in parentheses."""
    first = re.sub(r"\s+", " ", text.split("\n\n")[0])
    return re.sub(r" \((npusim|compiler|models)[\w.]*\).*$", "", first).removesuffix(".")
