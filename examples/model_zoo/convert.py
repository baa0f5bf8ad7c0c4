"""Unpack archives of the ONNX model zoo and compress every model in them.

    python convert.py resnet50-v1-7.tar.gz squeezenet1.1-7.tar.gz

Archives go to ``models/<name of the archive>`` beside the manifest, what comes out to ``out`` there; a second
run does what is new.
"""

import argparse
import shutil
import sys
import tarfile
from pathlib import Path

from onnxcompress import CompressError, compress_many
from onnxcompress.zoo.manifest import read_manifest
from onnxcompress.zoo.summary import markdown, write_summary


def unpack(archive: Path, models: Path) -> None:
    """Unpack `archive` into a folder of its own in `models`, unless it is there; nothing lands elsewhere."""
    target = models / archive.name.removesuffix(".tar.gz")
    if target.exists():
        return
    unfinished = target.with_name(f".{target.name}")
    with tarfile.open(archive) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            file, content = unfinished / member.name, tar.extractfile(member)
            if content is None or not file.resolve().is_relative_to(unfinished.resolve()):
                raise CompressError(f"{archive}: {member.name} belongs elsewhere, expected a file inside")
            file.parent.mkdir(parents=True, exist_ok=True)
            with content, file.open("wb") as written:
                shutil.copyfileobj(content, written)
    unfinished.rename(target)


def main() -> None:
    """Convert the archives named on the command line, and what is in ``models`` already."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archives", nargs="*", type=Path)
    parser.add_argument("--manifest", type=Path, default=Path(__file__).with_name("zoo.toml"))
    arguments = parser.parse_args()
    folder = arguments.manifest.parent
    try:
        for archive in arguments.archives:
            unpack(archive, folder / "models")
        manifest = read_manifest(arguments.manifest)
        outcomes = compress_many(manifest.jobs, out=manifest.out, resume=True)
    except CompressError as error:
        sys.exit(str(error))
    for note in write_summary(outcomes, manifest.out):
        print(note)
    print(markdown(outcomes))


if __name__ == "__main__":
    main()
