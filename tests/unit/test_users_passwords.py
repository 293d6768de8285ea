"""Passwords of built-in accounts."""

import asyncio
import time
from pathlib import Path

import pytest

from kmgr.errors import Refused
from kmgr.users.directory import AccountClosed, Unknown, WrongPassword
from kmgr.users.local_directory import LocalDirectory
from kmgr.users.passwords import LEAST_LENGTH, MOST_LENGTH, hash_password, verify
from tests.lab.people import RIGHT, Office


async def test_a_password_fits_its_own_hash_only() -> None:
    hashed = await hash_password("pässword 1")
    assert hashed.startswith("$argon2id$")
    assert "pässword" not in hashed
    assert await verify("pässword 1", hashed)
    assert not await verify("pässword 2", hashed)
    assert not await verify("", hashed)


async def test_two_hashes_of_one_password_differ() -> None:
    assert await hash_password("password 1") != await hash_password("password 1")


@pytest.mark.parametrize("length", [0, LEAST_LENGTH - 1, MOST_LENGTH + 1])
async def test_a_password_too_short_or_too_long_is_refused(length: int) -> None:
    with pytest.raises(Refused, match=f"{LEAST_LENGTH} to {MOST_LENGTH}"):
        await hash_password("x" * length)


async def test_a_longer_password_than_any_never_fits() -> None:
    hashed = await hash_password("x" * MOST_LENGTH)
    assert await verify("x" * MOST_LENGTH, hashed)
    assert not await verify("x" * (MOST_LENGTH + 1), hashed)


@pytest.mark.parametrize("hashed", [None, "", "nonsense", "$argon2id$broken"])
async def test_without_a_good_hash_nothing_fits(hashed: str | None) -> None:
    assert not await verify("nobody has this password", hashed)


async def test_a_crowd_that_logs_in_leaves_the_loops_threads_to_others(every_thread_busy: None) -> None:
    async with asyncio.timeout(30):
        hashed = await hash_password("password 1")
        assert all(await asyncio.gather(*(verify("password 1", hashed) for _ in range(3))))


async def test_a_name_nobody_has_takes_as_long_as_one_that_exists() -> None:
    hashed = await hash_password(RIGHT)

    async def fastest(password_hash: str | None) -> float:
        taken = []
        for _ in range(3):
            began = time.process_time()
            await verify("wrong password", password_hash)
            taken.append(time.process_time() - began)
        return min(taken)

    known, unknown = await fastest(hashed), await fastest(None)
    assert 0.4 < unknown / known < 2.5


async def test_the_built_in_directory_tells_a_closed_account_only_with_its_password(tmp_path: Path) -> None:
    office = Office(tmp_path)
    await office.account("root", role="admin")
    await office.account("anna")
    await office.do("account.update", name="anna", disabled=True)
    directory = LocalDirectory(office.grid)
    with pytest.raises(AccountClosed, match="disabled"):
        await directory.authenticate("anna", RIGHT)
    with pytest.raises(WrongPassword):
        await directory.authenticate("anna", "wrong")
    with pytest.raises(Unknown):
        await directory.authenticate("nobody", RIGHT)
    office.close()
