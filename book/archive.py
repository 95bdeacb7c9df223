"""Pack the built book as one zip that opens offline: the same bytes for the same pages.

make zip
"""

import sys
import zipfile
from pathlib import Path

HTML = Path(__file__).resolve().parents[1] / "_build" / "html"
FIRST = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


def pack(html, out):
    """Write the files of the folder `html` to `out`, below a folder named like the zip."""
    files = sorted(path for path in html.rglob("*") if path.is_file() and path.name != "built")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in files:
            name = f"{out.stem}/{path.relative_to(html).as_posix()}"
            entry = zipfile.ZipInfo(name, FIRST)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes())


def main():
    """Pack the whole book."""
    out = Path(sys.argv[1])
    pack(HTML, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; unpack it and open index.html")


if __name__ == "__main__":
    main()
