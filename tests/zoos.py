"""What the tests of zoos share: small jobs, passes that misbehave, a look at what a run left."""

from pathlib import Path

from onnxcompress.zoo import Job
from onnxcompress.zoo.jobs import digest

TESTDATA = Path(__file__).parent.parent / "testdata"
NAMES = ("lenet5", "lenet300", "transformer")
LENET, SMALL, TRANSFORMER = (TESTDATA / f"{name}_digits.onnx" for name in NAMES)

_BAD = '''
import os, signal, time
from dataclasses import dataclass
from onnxcompress.base import Effect, Pass

@dataclass(frozen=True, kw_only=True)
class Bad(Pass):
    """Misbehave."""
    effect = Effect.LOSSY

class Crash(Bad):
    name = "crash"
    def call(self, model, context):
        os.kill(os.getpid(), signal.SIGSEGV)

class Bug(Bad):
    name = "bug"
    def call(self, model, context):
        raise ValueError("three is two")

class Hog(Bad):
    name = "hog"
    def call(self, model, context):
        kept = [bytearray(b"x" * 20_000_000) for each in range(100) if time.sleep(0.02) is None]

class Sleep(Bad):
    name = "sleep"
    def call(self, model, context):
        context.progress(0, 1, "asleep")
        time.sleep(600)
'''


def add_bad_passes(folder: Path) -> Path:
    """Make a distribution in `folder` with the passes above; return its path entry."""
    path = folder / "plug"
    info = path / "bad-1.0.dist-info"
    info.mkdir(parents=True)
    (path / "bad.py").write_text(_BAD)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    names = ("crash", "bug", "hog", "sleep")
    points = "".join(f"{name} = bad:{name.capitalize()}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[onnxcompress.passes]\n{points}")
    return path


def small_jobs(count: int, passes: str = "prune(sparsity={})") -> list[Job]:
    """Return `count` jobs that differ in a number of `passes`."""
    shares = [round(0.1 + 0.8 * number / count, 3) for number in range(count)]
    return [Job(model=SMALL, passes=passes.format(share), recipe=f"r{share}") for share in shares]


def made(out: Path) -> dict[str, str]:
    """Return the models below `out` and their hashes; whatever else is left there is an error."""
    files = [each for each in out.rglob("*") if each.is_file() and ".zoo" not in each.parts]
    known = (".onnx", ".onnx.data", ".json", ".html", "summary.md", "summary.csv")
    assert not [each for each in files if not each.name.endswith(known)]
    assert not list((out / ".zoo").glob("runs/*/*/made/*"))
    return {str(each.relative_to(out)): digest(each) for each in files if each.suffix == ".onnx"}


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """Return for each model below `out` what changes when it is written again."""
    found = ((each, each.stat()) for each in out.rglob("*.onnx") if ".zoo" not in each.parts)
    return {str(each.relative_to(out)): (stat.st_ino, stat.st_mtime_ns) for each, stat in found}
