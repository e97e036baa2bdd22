"""A module for `workers.Worker.run`: does what its argument says, in Python."""


def main(argv: list[str]) -> int | None:
    names: dict = {}
    exec(argv[0], names)
    return names.get("status")
