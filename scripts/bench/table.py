"""The tables of docs/performance.md: one a bench, one row a processor model and name.

A table stands between `<!-- bench NAME -->` and `<!-- end NAME -->`. `update` replaces the rows of one processor model and
leaves those of the others as they are, byte by byte. The file is written whole: temporary file, fsync, rename.
"""

import os
import tempfile
from pathlib import Path


class TableError(Exception):
    """The page cannot take the rows; says what to do."""


def update(page, bench, header, rows):
    """Puts `rows` (lists of texts as long as `header`) into the table of `bench`. The first two columns are the key:
    processor and name. A row with the key of an old one takes its place; new ones follow the last row."""
    page = Path(page)
    for row in rows:
        if len(row) != len(header):
            raise TableError(f"a row of the bench {bench} has {len(row)} cells for {len(header)} columns: report this")
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- bench {bench} -->\n", f"<!-- end {bench} -->\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise TableError(f"{page} has no one place for the bench {bench}: put `{begin.strip()}` and `{end.strip()}` back")
    head, rest = text.split(begin)
    old, tail = rest.split(end)
    lines = [line for line in old.splitlines() if line.strip()]
    new_header = line_of(header)
    if lines and lines[0] != new_header:
        raise TableError(f"the table of the bench {bench} in {page} has other columns: move it away, or give it {new_header}")
    kept = lines[2:]
    for row in rows:
        cells = line_of(row)
        key = key_of(cells)
        at = [i for i, line in enumerate(kept) if key_of(line) == key]
        if at:
            kept[at[0]] = cells
        else:
            kept.append(cells)
    rule = "|" + "---|" * len(header)
    body = "\n".join([new_header, rule, *kept]) + "\n"
    write(page, head + begin + "\n" + body + "\n" + end + tail)


def line_of(cells):
    """Cells as a Markdown row."""
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def escape(cell):
    return " ".join(str(cell).split()).replace("\\", "\\\\").replace("|", "\\|")


def key_of(line):
    """Processor and name of a row as they are written."""
    cells, cell, escaped = [], "", False
    for letter in line.strip().removeprefix("|"):
        if letter == "|" and not escaped:
            cells.append(cell.strip())
            cell = ""
        else:
            cell += letter
        escaped = letter == "\\" and not escaped
    return tuple(cells[:2])


def write(path, text):
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
