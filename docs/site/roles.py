"""A Markdown extension for the roles of docstrings: formulas become MathML, names become code."""

import re

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

ROLE = re.compile(r":(\w+):`~?([^`]+)`", re.DOTALL)


class Roles(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return ROLE.sub(self._written, "\n".join(lines)).split("\n")

    def _written(self, role: re.Match[str]) -> str:
        if role[1] != "math":
            return f"`{role[2].removesuffix('()')}`"
        return self.md.htmlStash.store(convert(" ".join(role[2].split()).replace("operatorname", "mathrm")))


class RolesExtension(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(Roles(md), "roles", 22)  # after code blocks are taken out, before HTML is


def makeExtension(**options: object) -> RolesExtension:
    return RolesExtension(**options)
