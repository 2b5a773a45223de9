"""Files that are drawn from the code: lakehouse.toml, deploy/wiring.md, deploy/slot.md and the picture in the
README. `make docs` writes them; tests/unit/test_deploy.py keeps them equal to the code.
"""

import re
from pathlib import Path

from actors.profile.core_diagram import page
from daemon.config_file import render
from daemon.topology import mermaid
from daemon.wiring import ACTORS

REPOSITORY = Path(__file__).parents[1]
BLOCK = re.compile(r"(?<=<!-- wiring -->\n).*?(?=<!-- /wiring -->)", re.DOTALL)


def outputs() -> dict[Path, str]:
    """Every generated file and what it must hold."""
    picture = f"```mermaid\n{mermaid(ACTORS).strip()}\n```\n"
    readme = REPOSITORY / "README.md"
    return {
        REPOSITORY / "lakehouse.toml": render(),
        REPOSITORY
        / "deploy/wiring.md": f"# Wiring\n\nWritten by `make docs` from the actors' signatures.\n\n{picture}",
        REPOSITORY / "deploy/slot.md": page(),
        readme: BLOCK.sub(lambda _: picture, readme.read_text(encoding="utf-8")),
    }


if __name__ == "__main__":
    for path, text in outputs().items():
        path.write_text(text, encoding="utf-8")
