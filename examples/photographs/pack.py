"""``python -m examples.photographs.pack DATA FILE.zip``: photographs as one small file, to carry to another machine.

Every photograph becomes a WebP file of quality 85 in a zip archive, in the folder of its split and class. Those of
80 x 80 pixels take 2 kB each. Their pixels change, so results from a packed copy are its own.
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path

from tqdm import tqdm

from maskfeat.data.source import open_source

QUALITY = 85


def pack(data: str, file: Path) -> int:
    """Write the photographs of both splits; how many there are."""
    number = 0
    part = file.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:  # WebP is as small as it gets
        for split in ("train", "val"):
            source = open_source(data, split, video=False, train_data=data)
            for i in tqdm(range(len(source)), desc=split, file=sys.stderr):
                [[image]], label = source.read(i, None)
                encoded = io.BytesIO()
                image.save(encoded, "WEBP", quality=QUALITY, method=6)
                archive.writestr(f"{split}/{label:04d}/{i:06d}.webp", encoded.getvalue())
                number += 1
    part.replace(file)
    return number


def unpack(file: Path, folder: Path) -> Path:
    """The folder with the photographs of an archive, unpacked once; ``data=`` reads it."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            path = folder / member.filename
            if not path.exists() or path.stat().st_size != member.file_size:
                archive.extract(member, folder)  # which keeps every name below the folder
    return folder


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.photographs.pack", description=__doc__)
    parser.add_argument("data", help="folders, lists or shards of photographs with labels, as data= takes them")
    parser.add_argument("file", type=Path, help="the archive to write")
    options = parser.parse_args(words)
    number = pack(options.data, options.file)
    print(f"wrote {options.file}: {number:,} photographs, {options.file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
