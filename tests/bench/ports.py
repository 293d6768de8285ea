"""Where the benchmarks' grids listen: far from the demonstration's and the tests'."""

WEB_PORT = 19443


def quiet(_: str) -> None:
    """Say nothing: figures are what is printed."""
