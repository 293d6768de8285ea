"""Quotas on the page of people and in the API."""

from tests.lab.web_lab import ADMIN, USER, Site, WebLab
from tests.unit.test_web_api import good, refused


async def test_a_quota_is_set_shown_felt_and_dropped(lab: WebLab, site: Site) -> None:
    page = (await site.page("/console/users", who=ADMIN)).text
    assert "How many desktops at once" in page and "as many as they like" in page
    dialog = (await site.page("/console/quotas/new", who=ADMIN)).text
    assert "all members of a group together" in dialog
    wanted = {"whom": "user", "subject": USER, "template": "", "most": "0"}
    assert (await site.submit("/console/quotas/new", wanted, who=ADMIN)).status == 303
    assert USER in (await site.page("/console/part/users", who=ADMIN)).text.partition('id="quotas"')[2]
    (only,) = (await good(site, "GET", "/quotas"))["items"]
    assert (only["whom"], only["subject"], only["template"], only["most"]) == ("user", USER, None, 0)
    await lab.office.standby()
    told = await refused(site, 403, "POST", "/desktops", {"template": "office"}, who=USER)
    assert told == "You may have no desktop at present: ask your administrator."
    drop = {"whom": "user", "subject": USER, "template": ""}
    assert (await site.submit("/console/quotas/drop", drop, who=ADMIN)).status == 303
    assert (await good(site, "GET", "/quotas"))["items"] == []


async def test_the_api_sets_changes_and_drops_quotas(lab: WebLab, site: Site) -> None:
    body = {"whom": "group", "subject": "Students", "template": "office", "most": 20}
    (made,) = (await good(site, "PUT", "/quotas", body))["items"]
    assert (made["subject"], made["template_name"]) == ("students", "office")
    assert made["meaning"] == "all members of students together"
    (changed,) = (await good(site, "PUT", "/quotas", {**body, "most": 25}))["items"]
    assert changed["most"] == 25
    assert "no template" in await refused(site, 404, "PUT", "/quotas", {**body, "template": "none"})
    await refused(site, 400, "PUT", "/quotas", {**body, "most": -1})
    await refused(site, 403, "PUT", "/quotas", body, who=USER)
    await site.ask("DELETE", "/quotas?whom=group&subject=students&template=office", who=ADMIN)
    assert (await good(site, "GET", "/quotas"))["items"] == []
