"""``python -m trainmgr.sources --name=NAME --grace=SECONDS OPTIONS -- COMMAND``: what the supervisor starts."""

from __future__ import annotations

import os
import sys

from trainmgr.sources.pattern import SourceError
from trainmgr.sources.reading import Reading
from trainmgr.sources.watch import Watch

EXIT_USAGE = 2
RANKS = ("RANK", "WORLD_SIZE")  # of the script: we are one process, whatever it is


def main(arguments: list[str]) -> int:
    """Watch a command to its end; its exit code."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    ours, command = arguments[:place], arguments[place + 1 :]
    own = dict(option.removeprefix("--").split("=", 1) for option in ours if option.startswith(("--name=", "--grace=")))
    try:
        reading = Reading.parsed(option for option in ours if not option.startswith(("--name=", "--grace=")))
        if not command:
            raise SourceError("Nothing says what is to be run: put it behind --.")
        theirs = dict(os.environ)
        for name in RANKS:
            os.environ.pop(name, None)
        watch = Watch(own.get("name", "script"), reading, command, theirs, float(own.get("grace", "30")))
    except ValueError as error:
        print(f"trainmgr.sources: {error}", file=sys.stderr)
        return EXIT_USAGE
    return watch.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
