"""`python -m tests.device FOLDER` does all jobs where, as after a plain installation, there is no `accelerate`.

peft brings that: it is missing too, until what has an adapter comes last.
"""

import json
import sys
from pathlib import Path

OPTIONAL = ("accelerate", "peft")


def main(folder: Path) -> None:
    sys.modules.update(dict.fromkeys(OPTIONAL))  # before transformers looks for them
    from tests.device.jobs import JOBS, WITH_ADAPTER, do, refusals

    do(JOBS, folder)
    for package in OPTIONAL:
        assert sys.modules.pop(package) is None
    do(WITH_ADAPTER, folder)
    (folder / "refusals.json").write_text(json.dumps(refusals()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
