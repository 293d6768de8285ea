"""`python -m appliance.demo run | start SERVER | clean`: what `make demo` calls.

`run` stays in the foreground, watches the daemons, and takes everything down on
Ctrl-C; a later `run` goes on with the same grid. Nothing is killed but what its
own files name.
"""

import argparse
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance.demo import accelerator, handles
from appliance.demo.cluster import NAMES, Cluster
from appliance.demo.play import play, watch
from appliance.demo.progress import Progress
from appliance.image import kiosk
from kmgr.errors import KmgrError, Unavailable

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Do what was asked; errors become one sentence and exit status 1."""
    options = options_of(sys.argv[1:])
    if os.geteuid() != 0:
        print("demo: namespaces and libvirt need root: run it with sudo", file=sys.stderr)
        return 1
    # A closed terminal or `kill` ends it as orderly as Ctrl-C, which a shell in the background may have switched off.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        match options.action:
            case "run":
                return run(options.folder, NAMES[: options.servers], options.address)
            case "start":
                return start(options.folder, options.server)
            case _:
                return clean(options.folder)
    except KeyboardInterrupt:
        return 130
    except (KmgrError, OSError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1


def run(folder: Path, names: tuple[str, ...], address: str) -> int:
    """Bring the grid up, say where it is, and watch it until Ctrl-C."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"the demonstration in {folder} runs already, in another terminal") from None
        progress = Progress()
        progress.say("golden image: built once, from Debian packages (about 2 minutes the first time)")
        image = progress.during("building the golden image", kiosk.cached)
        fast = accelerator.best(image)
        progress.say(
            "KVM works here" if fast == "kvm" else "KVM does not run guests here: desktops are emulated, and slow"
        )
        grid = Cluster(folder, names=names, host=address, accelerator=fast, say=progress.say)
        try:
            play(grid, image, progress)
            watch(grid)
        except KeyboardInterrupt:
            return 0
        finally:
            # A second Ctrl-C must not leave half of it running.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            progress.say("stopping (`make demo` goes on from here, `make demo-clean` removes it)")
            grid.stop()
            handles.remove(folder)
            progress.say("all stopped")
    return 0


def start(folder: Path, name: str) -> int:
    """Start one server of a running demonstration again."""
    known = handles.names(folder)
    if name not in known:
        raise Unavailable(f"which server? SERVER={'|'.join(known or NAMES)} (is the demonstration running?)")
    grid = Cluster(folder, names=known, accelerator=handles.accelerator(folder))
    server = grid.server(name)
    server.start()
    handles.refresh(grid)
    print(f"{name} runs: https://{server.portal}/")
    return 0


def clean(folder: Path) -> int:
    """Stop what still runs and remove the folder."""
    found = tuple(sorted(path.name for path in folder.glob("*") if (path / "libvirt").is_dir()))
    if found:
        Cluster(folder, names=found).stop()
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{folder} is removed")
    return 0


def options_of(words: Sequence[str]) -> argparse.Namespace:
    """Return what a command line asks for; options may stand anywhere, also between action and server."""
    parser = argparse.ArgumentParser(prog="python -m appliance.demo", description="A whole grid on this machine.")
    parser.add_argument("action", choices=("run", "start", "clean"))
    parser.add_argument("server", nargs="?", default="", help="for start: which server")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "demo")
    parser.add_argument("--servers", type=int, choices=range(1, len(NAMES) + 1), default=len(NAMES))
    parser.add_argument("--address", default="127.0.0.1", help="an address of this machine that browsers can reach")
    return parser.parse_intermixed_args(words)


if __name__ == "__main__":
    sys.exit(main())
