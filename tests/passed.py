"""Whether the fast tests passed already on just these files: `python -m tests.passed` ends with 0 then, and says so.

`make check` notes it with `--note`, so that `make test` right after it need not repeat them. What counts is the
content of every file that git knows or would take, and the interpreter: whatever is changed, they run again.
"""

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTE = ROOT / "build" / "fast-tests-passed"


def digest(root: Path) -> str:
    """Return one number for everything under `root` that git does not ignore, empty where git cannot say."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        return ""
    found = hashlib.sha256(sys.version.encode())
    for name in sorted(set(listed.stdout.split(b"\0")) - {b""}):
        path = root / name.decode()
        content = path.read_bytes() if path.is_file() else b"gone"
        found.update(name + b"\0" + hashlib.sha256(content).digest())
    return found.hexdigest()


def main() -> int:
    """Note that they passed, or tell whether they did."""
    parser = argparse.ArgumentParser(prog="python -m tests.passed", description=__doc__.splitlines()[0])
    parser.add_argument("--note", action="store_true", help="they have just passed")
    now = digest(ROOT)
    if parser.parse_args().note:
        NOTE.parent.mkdir(exist_ok=True)
        NOTE.write_text(now)
        return 0
    if not now or not NOTE.exists() or NOTE.read_text() != now:
        return 1
    print("The fast tests passed on just these files a moment ago (make check): they are not repeated.")
    print(f"Remove {NOTE.relative_to(ROOT)} to have them run again.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
