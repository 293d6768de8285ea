"""What browsing makes of announcements, and of a machine where multicast is impossible."""

from kmgr.grid.discovery import HINT, Announcement, Announcer, browse, group, interfaces_for


def told(grid: str, server: str) -> Announcement:
    return Announcement(grid, f"name of {grid}", f"srv-{server}", server, f"{server}:8440", "1")


def test_servers_of_one_grid_are_put_together_by_name() -> None:
    found = group([told("g2", "z"), told("g1", "b"), told("g2", "c"), told("g1", "a")])
    assert [(grid.name, [s.server_name for s in grid.servers]) for grid in found] == [
        ("name of g1", ["a", "b"]),
        ("name of g2", ["c", "z"]),
    ]


async def test_where_multicast_is_impossible_the_reason_and_a_way_out_are_told() -> None:
    found = await browse(0, interfaces=["203.0.113.77"])
    assert found.grids == ()
    assert HINT in found.problem
    announcer = Announcer(interfaces=["203.0.113.77"])
    await announcer.announce(told("g1", "a"))
    assert "Typing the address" in announcer.problem
    await announcer.stop()


def test_a_grid_on_loopback_is_announced_on_loopback_only() -> None:
    assert interfaces_for("127.0.0.3:8440") == ("127.0.0.1",)
    assert interfaces_for("192.0.2.7:8440") == ()
    assert interfaces_for("host.example:8440") == ()
