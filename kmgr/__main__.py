"""The `kmgr` command. A witness's part comes alone: it stays small because nothing else is loaded beside it."""

import sys
from importlib import import_module


def main() -> None:
    """Run the command line."""
    alone = sys.argv[1:2] == ["witness"] and "--help" not in sys.argv[2:3]
    import_module("kmgr.cli.witness" if alone else "kmgr.cli.app").main()


if __name__ == "__main__":
    main()
