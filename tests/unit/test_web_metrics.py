"""The figures for a monitoring system: who may read them, what they say, and in which form."""

from dataclasses import replace

from kmgr.web.exposition import Gauge, Sample, spelled
from kmgr.web.metrics import TOKEN_FILE
from tests.lab.people import SERVERS
from tests.lab.web_lab import ADMIN, USER, Site, WebLab

ONE, TWO, THREE = SERVERS
WORD = "a word that is long enough"


async def told(site: Site, who: str = ADMIN) -> dict[str, float]:
    """Return all figures by name and labels."""
    headers = {"Authorization": f"Bearer {await site.lab.token(who)}"}
    said = await site.send("GET", "/metrics", headers=headers)
    assert said.status == 200, said.text
    lines = [line for line in said.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_labels_and_help_are_escaped_and_names_without_figures_left_out() -> None:
    page = spelled(
        [
            Gauge("a", 'one\ntwo \\ "three"', (Sample(1.5, {"x": 'say "a\\b"\n'}), Sample(2, {}))),
            Gauge("b", "nothing", ()),
        ]
    )
    assert page == '# HELP a one\\ntwo \\\\ "three"\n# TYPE a gauge\na{x="say \\"a\\\\b\\"\\n"} 1.5\na 2\n'


async def test_servers_desktops_images_and_the_log_are_counted(lab: WebLab, site: Site) -> None:
    await lab.office.standby()
    await lab.office.do("server.lost", server=THREE)
    for board in lab.boards.values():
        board.put(replace(lab.vitals(TWO), problems=("its fan", "its disk"), disk_free_mib=7))
    seen = await told(site)
    assert seen['kmgr_servers{state="up"}'] == 2
    assert seen['kmgr_servers{state="lost"}'] == 1
    assert seen[f'kmgr_server_up{{server="{THREE[4:]}"}}'] == 0
    assert seen[f'kmgr_server_problems{{server="{TWO[4:]}"}}'] == 2
    assert seen[f'kmgr_server_disk_free_bytes{{server="{TWO[4:]}"}}'] == 7 << 20
    assert seen['kmgr_desktops{template="office",state="ready"}'] == 1
    assert seen['kmgr_desktops{template="office",state="broken"}'] == 0
    assert seen['kmgr_image_copies{image="debian",version="1"}'] >= 1
    assert seen["kmgr_log_applied_index"] == lab.grid().status().applied
    assert (seen["kmgr_majority"], seen["kmgr_island"]) == (1, 0)


async def test_the_age_of_each_safe_copy_is_told_and_a_desktop_without_one_counted(lab: WebLab, site: Site) -> None:
    await lab.office.template("own", kind="personal")
    await lab.office.do("assignment.add", template="tpl-own", kind="user", subject=USER)
    desktop = await lab.office.standby("tpl-own")
    await lab.office.do("desktop.claim", user=USER, template="tpl-own")
    assert (await told(site))["kmgr_desktops_without_copy"] == 1
    await lab.office.do("copy.assign", desktop=desktop, generation=1, server=TWO)
    point = {"desktop": desktop, "generation": 1, "server": TWO, "as_of": lab.clock.now_ms(), "bytes": 1 << 20}
    await lab.office.do("copy.points", server=ONE, points=[point])
    await lab.clock.advance(23)
    seen = await told(site)
    ages = {name: value for name, value in seen.items() if name.startswith("kmgr_copy_age_seconds")}
    [(name, age)] = ages.items()
    assert age == 23
    assert f'server="{ONE[4:]}",copy_on="{TWO[4:]}"' in name
    assert USER not in name
    assert seen["kmgr_desktops_without_copy"] == 0
    assert seen["kmgr_copy_target_seconds"] == 60


async def test_only_administrators_and_whoever_knows_the_word_of_the_file_may_read_them(
    lab: WebLab, site: Site
) -> None:
    word = {"Authorization": f"Bearer {WORD}"}
    for headers, status in (({}, 401), (word, 401), ({"Authorization": f"Bearer {await lab.token(USER)}"}, 403)):
        said = await site.send("GET", "/metrics", headers=headers)
        assert (said.status, "kmgr_servers" in said.text) == (status, False)
    file = lab.services().config.data_dir / TOKEN_FILE
    file.write_text("short\n")
    assert (await site.send("GET", "/metrics", headers={"Authorization": "Bearer short"})).status == 401
    assert (await site.send("GET", "/metrics", headers={"Authorization": "Bearer "})).status == 401
    file.write_text(f"{WORD}\n")
    said = await site.send("GET", "/metrics", headers=word)
    assert said.status == 200
    assert said.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    # It opens nothing else.
    assert (await site.send("GET", "/api/v1/servers", headers=word)).status == 401
