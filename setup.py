"""Makes README's links absolute for the package index; all else is in setup.cfg."""

import configparser
import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def long_description() -> str:
    """README with links into the repository, or with file names where its address is not known."""
    config = configparser.ConfigParser()
    config.read(HERE / "setup.cfg", encoding="utf-8")
    lines = (line.partition(" = ") for line in config["metadata"]["project_urls"].splitlines())
    source = {name.strip(): address.strip() for name, _, address in lines}.get("Source")

    def absolute(link: re.Match) -> str:
        picture, text, target = link.groups()
        if "://" in target:
            return link[0]
        if source is None:
            return f"{text} (`{target}`)"
        return f"{picture}[{text}]({source}/{'raw' if picture else 'blob'}/HEAD/{target})"

    return re.sub(r"(!?)\[([^]]+)\]\(([^)]+)\)", absolute, (HERE / "README.md").read_text("utf-8"))


setup(long_description=long_description(), long_description_content_type="text/markdown")
