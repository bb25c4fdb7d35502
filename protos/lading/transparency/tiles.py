"""Where the hashes of a tree are in tiles: C2SP tlog-tiles. Height 8: a full tile holds 256 hashes, 8,192 bytes."""

WIDTH = 256
HEIGHT = 8


def path_of(level: int | str, index: int, width: int = WIDTH) -> str:
    """Path of a tile: (0, 1234067) → `tile/0/x001/x234/067`; a partial one ends in `.p/W`. Level `entries` likewise."""
    groups = [f"{index % 1000:03d}"]
    while index >= 1000:
        index //= 1000
        groups.insert(0, f"x{index % 1000:03d}")
    partial = "" if width == WIDTH else f".p/{width}"
    return f"tile/{level}/{'/'.join(groups)}{partial}"


def tiles_of(size: int) -> list[tuple[int, int, int]]:
    """All tiles of a tree of `size` leaves: (level, index, width), lowest level first."""
    found = []
    level, count = 0, size
    while count:
        full, partial = divmod(count, WIDTH)
        found += [(level, index, WIDTH) for index in range(full)]
        if partial:
            found.append((level, full, partial))
        level, count = level + 1, count // WIDTH
    return found
