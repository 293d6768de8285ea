"""What may be fetched from where, and what an answer means: whatever another server says, there is a word for it."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kmgr.errors import KmgrError, Refused
from kmgr.templates import addresses
from kmgr.templates.addresses import Answer

SUM = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "to",
    [
        "file:///etc/passwd", "ftp://example.org/x", "nbd:unix:/run/x", "gopher://x/", "//anna:secret@example.org/x",
        "http://[::1", "http://[fe80::1%25eth0", "https://example.org:99999/x", "javascript:1",
    ],
)  # fmt: skip
def test_nothing_leads_on_to_what_is_no_address(to: str) -> None:
    with pytest.raises(Refused):
        addresses.redirected("http://example.org/office.qcow2", to)


def test_nothing_leads_on_from_https_to_http() -> None:
    assert addresses.redirected("https://a.org/x", "//b.org/y") == "https://b.org/y"
    with pytest.raises(Refused, match="from https to http"):
        addresses.redirected("https://a.org/x", "http://a.org/x")


@given(st.text(alphabet=st.sampled_from("htps:/[]@%.?#\\ \t1a\x00é"), max_size=30))
def test_wherever_an_answer_leads_there_is_an_address_or_a_reason(to: str) -> None:
    for given_url in (to, f"http://{to}", f"http://[{to}"):
        try:
            addresses.check_url(addresses.redirected("http://example.org/a/b", given_url))
        except Refused:
            continue


numbers = st.one_of(
    st.integers(0, 1 << 70).map(str), st.sampled_from(["9" * 5000, "٣", "-1", "+1", "1_0", "", "0x10"])
)


@given(
    status=st.sampled_from([200, 204, 206, 304, 400, 416, 429, 500]),
    first=numbers,
    last=numbers,
    whole=numbers,
    length=numbers,
    start=st.integers(0, 100),
)
@example(status=206, first="0", last="1", whole="9" * 5000, length="1", start=0)
@example(status=200, first="0", last="1", whole="2", length="9" * 5000, start=0)
def test_whatever_an_answer_says_of_its_length_it_is_believed_or_refused(
    status: int, first: str, last: str, whole: str, length: str, start: int
) -> None:
    headers = {"content-range": f"bytes {first}-{last}/{whole}", "content-length": length}
    try:
        found = addresses.judge(Answer(status, headers), start=start, etag="")
    except KmgrError:
        return
    assert found is None or found.at in (0, start)
    assert found is None or found.size_bytes is None or 0 <= found.size_bytes < 10**20


@pytest.mark.parametrize("between", [" ", "\t", "\x0b", " \t"])
def test_a_line_of_checksums_as_long_as_the_file_may_be_is_read_in_one_go(between: str) -> None:
    line = f"{SUM} a{between * 1_000_000}b"
    with pytest.raises(Refused, match="no SHA-256 for office"):
        addresses.sum_in(line, "office")
    assert addresses.sum_in(f"{line}\n{SUM} *office\n", "office") == SUM


@pytest.mark.parametrize(
    "line", [f"{SUM}  office", f"{SUM} *office", f"SHA256 (office) = {SUM}", f"{SUM.upper()}\toffice  ", SUM]
)
def test_the_usual_files_of_checksums_are_read(line: str) -> None:
    assert addresses.sum_in(f"{line}\n", "office") == SUM
