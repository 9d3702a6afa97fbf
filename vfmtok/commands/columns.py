"""Tables for a terminal."""


def aligned(rows: list[list[str]], numbers_from: int = 1) -> list[str]:
    """Lines with aligned columns: words to the left, numbers (from that column on) to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        words = [cell.ljust(width) for cell, width in zip(row[:numbers_from], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[numbers_from:], widths[numbers_from:], strict=True)]
        lines.append("  ".join(words + numbers).rstrip())
    return lines
