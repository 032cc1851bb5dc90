"""A Markdown extension. Of docstrings' roles, formulas become MathML and names code. Fences keep the language alone."""

import re

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

FENCE = re.compile(r"^(```\w+) .*$", re.MULTILINE)  # words after the language are for our tests
ROLE = re.compile(r":(\w+):`~?([^`]+)`", re.DOTALL)


class Fences(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return FENCE.sub(r"\1", "\n".join(lines)).split("\n")


class Roles(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return ROLE.sub(self._written, "\n".join(lines)).split("\n")

    def _written(self, role: re.Match[str]) -> str:
        if role[1] != "math":
            return f"`{role[2].removesuffix('()')}`"
        return self.md.htmlStash.store(convert(" ".join(role[2].split()).replace("operatorname", "mathrm")))


class RolesExtension(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(Fences(), "fences", 30)  # before code blocks are taken out
        md.preprocessors.register(Roles(md), "roles", 22)  # after code blocks are taken out, before HTML is


def makeExtension(**options: object) -> RolesExtension:
    return RolesExtension(**options)
