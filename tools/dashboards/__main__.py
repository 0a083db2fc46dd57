"""The files of the boards.

`make dashboards` writes them; tests/unit/test_dashboards.py holds them equal to the code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from tools.dashboards.agents import agents
from tools.dashboards.fleet import fleet
from tools.dashboards.probe import probe
from tools.helm.chart import CHART, ROOT

FOLDER = CHART / "dashboards"


def rendered() -> Mapping[Path, str]:
    """Return the content of each file."""
    return {
        FOLDER / f"{board.name}.json": json.dumps(board.build(), cls=JSONEncoder, indent=2) + "\n"
        for board in (fleet(), probe(), agents())
    }


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    for path, text in rendered().items():
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
