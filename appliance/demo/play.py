"""The demonstration from its first step to its last, and the watch over its daemons."""

import os
import time
from pathlib import Path

from appliance.demo import handles
from appliance.demo.cluster import ADMIN, Cluster
from appliance.demo.progress import Progress
from appliance.demo.scene import Director, Scene

SUMMARY = """
The grid is ready ({elapsed:.0f} s).

  Portals      {portals}
  Administrator  {admin}  {admin_password}      (log in anywhere: the console)
  User           {user}  {user_password}       (log in anywhere: a desktop)

Try this
  * Log in as {user!r} at any of the addresses and open the desktop. The browser warns about the certificate, because
    it was made here; fingerprints: {prints}
  * Log in as {admin!r} in a private window (one browser is one person): servers, images, desktops, events, all live.
  * Kill a server:   {sudo}kill -9 {pid}     (the daemon of {victim}; then see the console of {other})
    Bring it back:   make demo-start SERVER={victim}

For tools: {file}.  Ctrl-C stops the demonstration; make demo goes on with it; make demo-clean removes it.
"""


def play(grid: Cluster, image: Path, progress: Progress, scene: Scene | None = None) -> None:
    """Bring the grid up and set the scene; prints the summary when a desktop stands by."""
    scene = scene or Scene()
    progress.say(f"starting {len(grid.servers)} servers under {grid.folder}")
    grid.start()
    director = Director(grid.admin(), scene, progress)
    director.image(image, len(grid.servers))
    director.template()
    director.user(grid.password(scene.user))
    waited = director.ready()
    progress.say(f"a desktop stands by (after {waited:.0f} s)")
    print(summary(grid, scene, handles.write(grid, scene), progress.elapsed_s), flush=True)


def summary(grid: Cluster, scene: Scene, file: Path, elapsed_s: float) -> str:
    """Return what people read when all is ready."""
    victim, other = grid.servers[-1], grid.servers[0]
    return SUMMARY.format(
        elapsed=elapsed_s,
        portals="\n               ".join(f"https://{server.portal}/   ({server.name})" for server in grid.servers),
        admin=ADMIN,
        admin_password=grid.password(ADMIN),
        user=scene.user,
        user_password=grid.password(scene.user),
        prints=", ".join(f"{server.name} {server.fingerprint()[:23]}…" for server in grid.servers),
        sudo="sudo " if "SUDO_UID" in os.environ else "",
        pid=victim.daemon.pid if victim.daemon else "?",
        victim=victim.name,
        other=other.name,
        file=file,
    )


def watch(grid: Cluster) -> None:
    """Tell of daemons that end or come back, until interrupted."""
    running = {server.name: server.daemon for server in grid.servers}
    while True:
        time.sleep(1)
        for server in grid.servers:
            now = server.daemon
            if now == running[server.name]:
                continue
            running[server.name] = now
            if now is None:
                print(f"{time.strftime('%H:%M:%S')} the daemon of {server.name} has ended; its log: {server.log}")
                print(f"         start it again: make demo-start SERVER={server.name}", flush=True)
            else:
                print(f"{time.strftime('%H:%M:%S')} {server.name} runs again, process {now.pid}", flush=True)
                handles.refresh(grid)
