"""The `kmgr` command. A witness's part comes alone: it stays small because nothing else is loaded beside it."""

import sys
from importlib import import_module


def main() -> None:
    """Run the command line."""
    match sys.argv[1:]:
        case ["witness", "run", *words] if "--help" not in words:
            part = "kmgr.cli.witness_run"
        case ["witness", word, *_] if word != "--help":
            part = "kmgr.cli.witness"
        case _:
            part = "kmgr.cli.app"
    import_module(part).main()


if __name__ == "__main__":
    main()
