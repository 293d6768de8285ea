"""The server's own file: every problem is named, and at once."""

from pathlib import Path

import pytest

from kmgr.config import KEYS, Config, load, parse, render
from kmgr.errors import ConfigError


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"web_port": 99_999, "colour": "blue", "accelerator": "warp", "mdns": "yes"}, data_dir=tmp_path)
    for words in ("colour: unknown setting", "name: required", "web_port", "accelerator", "mdns"):
        assert words in caught.value.message


def test_the_two_ports_must_differ(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="grid_port"):
        parse({"name": "one", "web_port": 9000, "grid_port": 9000}, data_dir=tmp_path)


def test_what_is_rendered_can_be_read_back(tmp_path: Path) -> None:
    values = {"name": "one", "web_port": 8443, "mdns": False, "libvirt_uri": 'a"b\\c'}
    (tmp_path / "kmgr.toml").write_text(render(values))
    config = load(tmp_path)
    assert (config.name, config.web_port, config.mdns, config.libvirt_uri) == ("one", 8443, False, 'a"b\\c')


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "kmgr.toml").write_text("name = ")
    with pytest.raises(ConfigError, match=r"kmgr\.toml is not valid TOML"):
        load(tmp_path)


def test_an_empty_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kmgr init"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["-a", "a-", "a b", "ä", "", "x" * 64])
def test_a_server_name_must_be_a_host_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        parse({"name": name}, data_dir=tmp_path)


def test_every_field_is_a_key_and_every_key_is_explained() -> None:
    fields = set(Config.__dataclass_fields__) - {"data_dir"}
    assert fields == set(KEYS)
    assert all(key.help for key in KEYS.values())
