"""Resumable uploads as a tus client sees them, and downloads, at a real listener."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import pytest
from aiohttp import web

from tests.lab.people import SERVERS
from tests.lab.web_lab import ADMIN, USER, Said, Site, WebLab

MIB = 1 << 20
DISK = (bytes(510) + b"\x55\xaa" + b"installed" * 50_000).ljust(MIB, b"\0")
TUS = {"Tus-Resumable": "1.0.0"}
PIECE = {**TUS, "Content-Type": "application/offset+octet-stream"}


@pytest.fixture
async def site(lab: WebLab) -> AsyncIterator[Site]:
    site = await lab.site()
    yield site
    await site.close()


def told(**facts: str) -> dict[str, str]:
    pairs = (f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in facts.items())
    return {"Upload-Metadata": ",".join(pairs)}


async def send(site: Site, method: str, path: str, who: str = ADMIN, **more: Any) -> Said:
    headers = {"Authorization": f"Bearer {await site.lab.token(who)}", **more.pop("headers", TUS)}
    return await site.send(method, path, headers=headers, **more)


async def begin(site: Site, length: int = len(DISK), **facts: str) -> str:
    made = await send(
        site, "POST", "/api/v1/uploads", headers={**TUS, "Upload-Length": str(length), **told(name="win", **facts)}
    )
    assert made.status == 201, made.text
    return str(made.headers["Location"])


async def patch(site: Site, where: str, offset: int, data: bytes, **more: str) -> Said:
    return await send(
        site, "PATCH", where, headers={**PIECE, "Upload-Offset": str(offset), **more}, data=BytesIO(data)
    )


async def imported(site: Site, name: str = "win") -> dict[str, Any]:
    """Wait until an image has its version and nothing is under way any more."""
    async with asyncio.timeout(20):
        while True:
            _, jobs = await site.ask("GET", "/images/imports", who=ADMIN)
            _, images = await site.ask("GET", "/images", who=ADMIN)
            assert not [job["error"] for job in jobs["items"] if job["error"]]
            if not jobs["items"]:
                return next(one for one in images["items"] if one["name"] == name)
            await asyncio.sleep(0.02)


async def test_an_upload_in_pieces_becomes_an_image(site: Site) -> None:
    offer = await send(site, "OPTIONS", "/api/v1/uploads")
    assert offer.headers["Tus-Extension"] == "creation,creation-defer-length,checksum,termination,expiration"
    where = await begin(site, filename="win.raw", notes="first")
    half = len(DISK) // 2
    first = await patch(site, where, 0, DISK[:half])
    assert (first.status, first.headers["Upload-Offset"]) == (204, str(half))
    seen = await send(site, "HEAD", where)
    assert (seen.headers["Upload-Offset"], seen.headers["Upload-Length"]) == (str(half), str(len(DISK)))
    assert seen.headers["Cache-Control"] == "no-store"
    status, progress = await site.ask("GET", where.removeprefix("/api/v1"), who=ADMIN)
    assert (status, progress["done_bytes"], progress["total_bytes"]) == (200, half, len(DISK))
    assert progress["step"] == "waiting for the rest of the upload"
    assert (await patch(site, where, half, DISK[half:])).status == 204
    image = await imported(site)
    assert (image["versions"][0]["notes"], image["versions"][0]["size_bytes"]) == ("first", len(DISK))
    assert (await send(site, "HEAD", where)).status == 404
    folder = site.lab.folder / f"data-{SERVERS[0]}" / "images"
    # It is off the list a moment before its files are gone.
    async with asyncio.timeout(20):
        while list((folder / "tmp").iterdir()):  # noqa: ASYNC110 - a folder tells nobody
            await asyncio.sleep(0.02)
    assert (folder / f"{image['versions'][0]['id']}.raw").read_bytes() == DISK


async def test_what_the_protocol_forbids_has_the_protocols_answers(site: Site) -> None:
    where = await begin(site)
    assert (await patch(site, where, 7, b"x")).status == 409
    assert (await patch(site, where, 0, DISK + b"x")).status == 413
    wrong = "sha1 " + base64.b64encode(bytes(20)).decode()
    assert (await patch(site, where, 0, DISK, **{"Upload-Checksum": wrong})).status == 460
    assert (await patch(site, where, 0, DISK, **{"Upload-Checksum": "md5 eA=="})).status == 400
    assert (await send(site, "HEAD", where)).headers["Upload-Offset"] == "0"
    plain = {**TUS, "Upload-Offset": "0", "Content-Type": "text/plain"}
    assert (await send(site, "PATCH", where, headers=plain, data=b"x")).status == 415
    assert (await send(site, "HEAD", where, headers={})).status == 412
    for length in ("-1", "", "many", "1e9", "0"):
        bad = {**TUS, "Upload-Length": length, **told(name="other")}
        assert (await send(site, "POST", "/api/v1/uploads", headers=bad)).status == 400
    bad = {**TUS, "Upload-Length": "9", "Upload-Metadata": "name not-base64"}
    assert (await send(site, "POST", "/api/v1/uploads", headers=bad)).status == 400
    assert (await send(site, "DELETE", where)).status == 204
    assert (await patch(site, where, 0, DISK)).status == 404


async def test_uploads_are_for_administrators(site: Site) -> None:
    where = await begin(site)
    headers = {**TUS, "Upload-Length": "9", **told(name="x")}
    assert (await send(site, "POST", "/api/v1/uploads", who=USER, headers=headers)).status == 403
    assert (await send(site, "HEAD", where, who=USER)).status == 403


async def test_two_uploads_of_one_name_get_a_clear_answer_and_the_same_file_goes_on(site: Site) -> None:
    where = await begin(site, fingerprint="f1", filename="win.raw")
    await patch(site, where, 0, DISK[:1000])
    other = {**TUS, "Upload-Length": "5000", **told(name="win", fingerprint="f2")}
    refused = await send(site, "POST", "/api/v1/uploads", headers=other)
    assert (refused.status, refused.json["error"]["code"]) == (409, "name_taken")
    assert "win.raw is being uploaded as win by root" in refused.json["error"]["message"]
    assert await begin(site, fingerprint="f1", filename="win.raw") == where
    assert (await send(site, "HEAD", where)).headers["Upload-Offset"] == "1000"


async def test_one_name_at_two_servers_at_once_is_two_versions_and_the_same_file_only_one(
    lab: WebLab, site: Site
) -> None:
    there = await lab.site(SERVERS[1])
    other = DISK.replace(b"installed", b"different")
    places = [(site, await begin(site), DISK), (there, await begin(there), other)]
    sent = await asyncio.gather(*[patch(at, where, 0, data) for at, where, data in places])
    assert [one.status for one in sent] == [204, 204]
    await imported(site)
    versions = (await imported(there))["versions"]
    assert sorted(one["number"] for one in versions) == [1, 2]
    # Once more, with the same bytes at both.
    new = DISK.replace(b"installed", b"the third")
    places = [(at, await begin(at), new) for at in (site, there)]
    await asyncio.gather(*[patch(at, where, 0, data) for at, where, data in places])
    errors = [job["error"] for at in (site, there) for job in await ended(at)]
    assert len(errors) == 1, errors
    assert "exactly the same contents" in errors[0]
    _, images = await there.ask("GET", "/images", who=ADMIN)
    assert [len(one["versions"]) for one in images["items"] if one["name"] == "win"] == [3]
    await there.close()


async def ended(site: Site) -> list[dict[str, Any]]:
    """Wait until nothing is under way at a server; return what failed there."""
    async with asyncio.timeout(20):
        while True:
            jobs = (await site.ask("GET", "/images/imports", who=ADMIN))[1]["items"]
            if all(job["error"] for job in jobs):
                return list(jobs)
            await asyncio.sleep(0.02)


async def test_a_bad_file_is_told_and_not_kept(site: Site) -> None:
    text = b"Dear administrator\n" * 100
    where = await begin(site, length=len(text), filename="letter.txt")
    assert (await patch(site, where, 0, text)).status == 204
    assert (await failure(site)).startswith("letter.txt cannot be imported: it is a text file")
    assert len((await site.ask("GET", "/images/imports", who=ADMIN))[1]["items"]) == 1
    assert (await send(site, "HEAD", where)).status == 404


async def test_without_a_majority_the_file_is_kept_and_tried_again(lab: WebLab, site: Site) -> None:
    where = await begin(site)
    lab.grid()._log.cut_off.add(SERVERS[0])
    await patch(site, where, 0, DISK)
    assert "majority" in await failure(site)
    lab.grid()._log.cut_off.clear()
    assert (await site.ask("POST", f"/images/imports/{where.rpartition('/')[2]}/retry", who=ADMIN))[0] == 204
    assert (await imported(site))["versions"][0]["size_bytes"] == len(DISK)


class Elsewhere:
    """Another web server with files; every answer breaks off after `most` bytes."""

    def __init__(self) -> None:
        self.most = 1 << 40
        self.ranges = True
        self.asked: list[str] = []
        self.sums = f"{hashlib.sha256(DISK).hexdigest()}  win.raw\n{'0' * 64}  other.raw\n"

    async def file(self, request: web.Request) -> web.StreamResponse:
        wanted = request.headers.get("Range", "")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        answer = web.StreamResponse(status=206 if start else 200, headers={"ETag": '"1"'})
        if start:
            answer.headers["Content-Range"] = f"bytes {start}-{len(DISK) - 1}/{len(DISK)}"
        answer.content_length = len(DISK) - start
        await answer.prepare(request)
        await answer.write(DISK[start : start + self.most])
        if self.most < len(DISK) - start and request.transport is not None:
            # aiohttp forgets what it has not been asked for when a connection breaks: a busy reader has time to ask.
            await asyncio.sleep(0.3)
            request.transport.close()
        return answer


@pytest.fixture
async def elsewhere() -> AsyncIterator[tuple[Elsewhere, str]]:
    found = Elsewhere()
    app = web.Application()

    async def sums(_: web.Request) -> web.Response:
        return web.Response(text=found.sums)

    async def there(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": request.query["to"]})

    app.add_routes([web.get("/win.raw", found.file), web.get("/SHA256SUMS", sums), web.get("/go", there)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield found, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def fetch(site: Site, url: str, **more: str) -> tuple[int, Any]:
    return await site.ask("POST", "/images/imports", {"name": "win", "url": url, **more}, who=ADMIN)


async def failure(site: Site) -> str:
    async with asyncio.timeout(20):
        while True:
            jobs = (await site.ask("GET", "/images/imports", who=ADMIN))[1]["items"]
            if errors := [job["error"] for job in jobs if job["error"]]:
                return str(errors[0])
            await asyncio.sleep(0.02)


async def test_a_download_with_checksums_and_a_redirect(
    lab: WebLab, site: Site, elsewhere: tuple[Elsewhere, str]
) -> None:
    _, base = elsewhere
    lab.own_allowed = True
    status, begun = await fetch(site, f"{base}/go?to=/win.raw", sha256=hashlib.sha256(DISK).hexdigest())
    assert (status, begun["step"]) == (202, "downloading")
    assert (await imported(site))["versions"][0]["size_bytes"] == len(DISK)
    status, _ = await fetch(site, f"{base}/win.raw", sums=f"{base}/SHA256SUMS")
    assert status == 202
    assert "exactly the same contents" in await failure(site)


async def test_a_download_that_breaks_off_goes_on_where_it_was(
    lab: WebLab, site: Site, elsewhere: tuple[Elsewhere, str]
) -> None:
    there, base = elsewhere
    there.most, lab.own_allowed = 300_000, True
    assert (await fetch(site, f"{base}/win.raw"))[0] == 202
    async with asyncio.timeout(20):
        while len(there.asked) < 4:
            await asyncio.sleep(0.05)
            await lab.clock.advance(1)
    await imported(site)
    starts = [int(one.removeprefix("bytes=").rstrip("-") or 0) for one in there.asked]
    assert starts == sorted(starts)
    assert starts[1] > 0


async def test_a_file_that_is_not_the_promised_one_is_dropped(
    lab: WebLab, site: Site, elsewhere: tuple[Elsewhere, str]
) -> None:
    _, base = elsewhere
    lab.own_allowed = True
    assert (await fetch(site, f"{base}/win.raw", sha256="0" * 64))[0] == 202
    assert "SHA-256 differs" in await failure(site)
    status, said = await fetch(site, f"{base}/win.raw", sums=f"{base}/win.raw")
    assert status == 400, said


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://example.org/x", "http://", "nbd:x", "https://a:b@c/d"])
async def test_other_schemes_are_refused(site: Site, to: str) -> None:
    assert (await fetch(site, to))[0] == 400


async def test_this_servers_own_addresses_are_not_fetched(
    lab: WebLab, site: Site, elsewhere: tuple[Elsewhere, str]
) -> None:
    there, base = elsewhere
    port = base.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "0x7f.1", "[::ffff:127.0.0.1]", "0.0.0.0"):  # noqa: S104
        assert (await fetch(site, f"http://{host}:{port}/win.raw"))[0] == 202
        assert "may not be fetched by the server" in await failure(site), host
        (job,) = (await site.ask("GET", "/images/imports", who=ADMIN))[1]["items"]
        assert (await site.ask("DELETE", f"/images/imports/{job['id']}", who=ADMIN))[0] == 204
    assert there.asked == []
