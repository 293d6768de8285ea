"""One peer of a libtorrent swarm, run by an interpreter that has libtorrent: `torrent_node.py SPEC PLACE`.

Tuned as a data centre's: everybody connected to everybody from the start, TCP, no search for peers, no limits. The
payload is plain, as by default; with `encrypted` in SPEC it is under its own encryption (RC4), for kmgr encrypts too.
Says one JSON line once it has everything: when, and what it used since `start`; then serves until it is killed.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import libtorrent as lt

PORT = 6881
SETTINGS = {
    "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "enable_incoming_utp": False, "enable_outgoing_utp": False, "allow_multiple_connections_per_ip": True,
    "out_enc_policy": 2, "in_enc_policy": 2, "unchoke_slots_limit": 8, "choking_algorithm": 0,
    "seed_choking_algorithm": 1, "connection_speed": 200, "max_out_request_queue": 1500,
    "max_allowed_in_request_queue": 3000, "send_buffer_watermark": 4 << 20, "send_buffer_watermark_factor": 150,
    "request_queue_time": 2, "mixed_mode_algorithm": 0, "aio_threads": 2, "hashing_threads": 1,
    "rate_limit_ip_overhead": False, "allowed_fast_set_size": 0, "prefer_rc4": False,
    "min_reconnect_time": 1, "peer_connect_timeout": 3,
}  # fmt: skip
ENCRYPTED = {"out_enc_policy": 0, "in_enc_policy": 0, "allowed_enc_level": 2, "prefer_rc4": True}


def main() -> None:
    """Make the torrent (without a place), or be the peer of a place."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    if len(sys.argv) < 3:
        make(spec)
    else:
        peer(spec, int(sys.argv[2]))


def make(spec: dict[str, Any]) -> None:
    """Hash the source's file."""
    files = lt.file_storage()
    files.add_file("disk", (Path(spec["folders"][0]) / "disk").stat().st_size)
    torrent = lt.create_torrent(files, spec["piece"], lt.create_torrent.v1_only)
    lt.set_piece_hashes(torrent, spec["folders"][0])
    Path(spec["torrent"]).write_bytes(lt.bencode(torrent.generate()))


def peer(spec: dict[str, Any], place: int) -> None:
    """Fetch and serve."""
    session = lt.session(
        {
            "listen_interfaces": f"{spec['addresses'][place]}:{PORT}",
            **SETTINGS,
            **(ENCRYPTED if spec["encrypted"] else {}),
        }
    )
    add = lt.add_torrent_params()
    add.ti = lt.torrent_info(spec["torrent"])
    add.save_path = spec["folders"][place]
    add.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    if place == 0:
        add.flags |= lt.torrent_flags.seed_mode
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.readline()
    began = used()
    torrent = session.add_torrent(add)
    torrent.set_max_connections(50)
    told, last = place == 0, 0.0
    while True:
        status = torrent.status()
        if time.monotonic() - last > 2 and status.num_peers < len(spec["addresses"]) - 1:
            last = time.monotonic()
            for other, address in enumerate(spec["addresses"]):
                if other != place:
                    torrent.connect_peer((address, PORT))
        if status.is_seeding and not told:
            told = True
            print(json.dumps({"done": time.monotonic()}), flush=True)
        if not told:
            time.sleep(0.02)
            continue
        time.sleep(0.1)
        Path(spec["folders"][place], "used.new").write_text(
            json.dumps({"cpu": used() - began, "sent": torrent.status().total_payload_upload})
        )
        Path(spec["folders"][place], "used.new").replace(Path(spec["folders"][place], "used"))


def used() -> float:
    """Return the processor seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
