"""Files that are there whole or not at all."""

import os

from etils import epath


def write(path: epath.Path, data: bytes) -> None:
    """Writes a file beside its place (`*.tmp`), then renames it, over an older one if need be."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
