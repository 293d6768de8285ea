"""The options that several commands share, spelled once."""

import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from kmgr.errors import ConfigError

# Not looked into here: who may not read it is told whom to be, by what uses it.
DataOption = Annotated[Path, typer.Option("--data", help="This server's data folder.", readable=False)]
NameOption = Annotated[str, typer.Option("--name", help="This server's name, a host name like 'one'.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="A line of kmgr.toml; may be given several times.")
]

PasswordFileOption = Annotated[
    Path | None, typer.Option("--password-file", help="File with the password ('-': standard input); else it asks.")
]

AnswersOption = Annotated[
    Path | None,
    typer.Option(
        "--answers", help="TOML file with answers (the options' names) and lines of kmgr.toml under [settings]."
    ),
]

DEFAULT_DATA = Path("/var/lib/kmgr")


def parse_sets(pairs: list[str]) -> dict[str, object]:
    """Read `--set` pairs as TOML would: true, false and whole numbers are themselves, the rest is text."""
    values: dict[str, object] = {}
    for pair in pairs:
        key, found, text = pair.partition("=")
        if not found:
            raise ConfigError(f"--set {pair}: write it as KEY=VALUE")
        values[key.strip()] = _value(text.strip())
    return values


def _value(text: str) -> object:
    if text in {"true", "false"}:
        return text == "true"
    return int(text) if text.isdigit() else text


@dataclass(frozen=True, slots=True)
class Answers:
    """What a file of answers says."""

    values: Mapping[str, str]
    settings: Mapping[str, Any]

    def text(self, name: str) -> str:
        """Return an answer, empty if it is not given."""
        return self.values.get(name, "")

    def path(self, name: str) -> Path | None:
        """Return an answer that names a file, None if it is not given."""
        return Path(self.values[name]) if name in self.values else None


def answers_in(path: Path | None, known: Sequence[str]) -> Answers:
    """Read a file of answers; raise `ConfigError` naming everything that is wrong with it."""
    if path is None:
        return Answers({}, {})
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
    settings = raw.pop("settings", {})
    problems = [f"{name}: unknown, known are {', '.join(known)} and [settings]" for name in raw if name not in known]
    problems += [f"{name}: must be a text" for name in known if not isinstance(raw.get(name, ""), str)]
    if not isinstance(settings, dict):
        problems.append("settings: must be a table of lines of kmgr.toml")
    if problems:
        raise ConfigError(f"{path}: {'; '.join(problems)}")
    return Answers(raw, settings)


def read_secret(path: Path | None, *, prompt: str, hidden: bool = True, twice: bool = False) -> str:
    """Return a secret from a file (`-`: standard input) or by asking; never from the command line."""
    if path is None:
        answer: str = typer.prompt(prompt, hide_input=hidden, confirmation_prompt=twice)
        return answer
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise ConfigError(f"{path} is empty: it should hold the secret on its first line")
    return text.strip().splitlines()[0]
