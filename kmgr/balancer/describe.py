"""A grid described in a text file, and a plan told in words: what the balancer would do, without a grid.

One thing a line, `#` begins a comment, names are free:

    server   one  up        cpus=16 memory=65536 free=40000 disk=500000 disk_free=300000 holds=win:1
    template win  win:1     memory=4096 standby=4 maximum=20
    desktop  win-7 win one in_use user=anna

Sizes are in MiB. What is not said is ample: a server is up, idle, has the same
processor (`processor=WORD`) as the others and holds every version;
a desktop is of its template's version and as large as that says. Pure.
"""

from collections.abc import Callable, Mapping

from kmgr.balancer.model import (
    Action,
    Assign,
    DropCopy,
    Forget,
    ForgetCopy,
    GoOn,
    Place,
    Plan,
    PutAside,
    Relocate,
    Retire,
    View,
)
from kmgr.errors import Refused
from kmgr.grid.model import Processor, Server, ServerState, Vitals
from kmgr.ids import AccountName, DesktopId, ImageId, ServerId, TemplateId, VersionId
from kmgr.provision.model import Desktop, DesktopState
from kmgr.templates.model import Kind, Refresh, Template

_SERVER = {"cpus": 8, "memory": 65_536, "free": -1, "disk": 500_000, "disk_free": -1}
_TEMPLATE = {"memory": 2048, "vcpus": 2, "standby": 2, "maximum": 10}


def parse(text: str) -> View:
    """Return the grid that a text describes; raise `Refused` naming the line that says nothing useful."""
    reading = _Reading()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            reading.take(words)
        except (ValueError, KeyError, IndexError) as error:
            raise Refused(f"line {number} is not understood ({line.strip()!r}): {_why(error)}") from error
    return reading.view()


def tell(decided: Plan, view: View) -> list[str]:
    """Return a plan in words, a line for each change and each shortage."""
    names = {str(s.id): s.name for s in view.servers} | {str(t.id): t.name for t in view.templates}
    names |= {str(d.id): d.name for d in view.desktops}
    lines = [_words(action, lambda thing: names.get(str(thing), str(thing))) for action in decided.actions]
    lines += [f"short: {names[short.template]} lacks {short.missing}: {short.reason}" for short in decided.short]
    return lines or ["nothing to do"]


class _Reading:
    """What was read so far."""

    def __init__(self) -> None:
        self._servers: dict[str, Server] = {}
        self._vitals: dict[ServerId, Vitals] = {}
        self._holds: dict[str, frozenset[str] | None] = {}
        self._templates: dict[str, Template] = {}
        self._desktops: dict[str, Desktop] = {}

    def take(self, words: list[str]) -> None:
        """Read one line."""
        kind, name, *rest = words
        plain = [word for word in rest if "=" not in word]
        told = dict(word.split("=", 1) for word in rest if "=" in word)
        match kind:
            case "server":
                self._server(name, plain, told)
            case "template":
                self._template(name, plain, told)
            case "desktop":
                self._desktop(name, plain, told)
            case _:
                raise ValueError(f"a line begins with server, template or desktop, not {kind!r}")
        _only(plain, told)

    def view(self) -> View:
        """Return all of it."""
        versions = {t.version for t in self._templates.values()} | {d.version for d in self._desktops.values()}
        holders = {
            version: frozenset(
                self._servers[name].id for name, held in self._holds.items() if held is None or str(version) in held
            )
            for version in sorted(versions)
        }
        return View(
            servers=tuple(self._servers.values()),
            templates=tuple(self._templates.values()),
            desktops=tuple(self._desktops.values()),
            holders=holders,
            vitals=self._vitals,
            asks={},
        )

    def _server(self, name: str, plain: list[str], told: dict[str, str]) -> None:
        state = ServerState(plain.pop(0)) if plain else ServerState.UP
        server = ServerId(name)
        self._servers[name] = Server(server, name, "", "", state, "", "", 0, 0)
        held = told.pop("holds", None)
        self._holds[name] = None if held is None else frozenset(filter(None, held.split(",")))
        given = {**_SERVER, **{key: _count(told.pop(key)) for key in _SERVER if key in told}}
        accelerator, processor = told.pop("accelerator", "kvm"), told.pop("processor", "any")
        if state in (ServerState.LOST, ServerState.REMOVED):
            return
        self._vitals[server] = Vitals(
            server,
            heard_at=0.0,
            cpus=given["cpus"],
            memory_mib=given["memory"],
            memory_free_mib=given["free"] if given["free"] >= 0 else given["memory"],
            disk_mib=given["disk"],
            disk_free_mib=given["disk_free"] if given["disk_free"] >= 0 else given["disk"],
            accelerator=accelerator,
            processor=Processor("", processor, frozenset()),
            can_run_desktops=True,
        )

    def _template(self, name: str, plain: list[str], told: dict[str, str]) -> None:
        given = {**_TEMPLATE, **{key: _count(told.pop(key)) for key in _TEMPLATE if key in told}}
        self._templates[name] = Template(
            id=TemplateId(name),
            name=name,
            notes="",
            image=ImageId(""),
            version=VersionId(plain.pop(0)),
            vcpus=given["vcpus"],
            memory_mib=given["memory"],
            standby=given["standby"],
            maximum=given["maximum"],
            refresh=Refresh.ON_LOGOUT,
            enabled=True,
            broken_cause="",
            created_at=0,
            changed_at=0,
            kind=Kind(told.pop("kind", "pooled")),
        )

    def _desktop(self, name: str, plain: list[str], told: dict[str, str]) -> None:
        template, server = self._templates[plain.pop(0)], self._servers[plain.pop(0)]
        state = DesktopState(plain.pop(0)) if plain else DesktopState.READY
        user = told.pop("user", "somebody" if state is DesktopState.IN_USE else "")
        self._desktops[name] = Desktop(
            id=DesktopId(name),
            name=name,
            template=template.id,
            version=VersionId(told.pop("version", template.version)),
            server=server.id,
            state=state,
            generation=1,
            vcpus=template.vcpus,
            memory_mib=_count(told.pop("memory", str(template.memory_mib))),
            user=AccountName(user) if user else None,
            claimed_at=None,
            step="",
            cause="",
            created_at=0,
            changed_at=0,
            ready_at=0 if state in (DesktopState.READY, DesktopState.IN_USE) else None,
            kind=template.kind,
        )


def _words(action: Action, name: Callable[[object], str]) -> str:
    match action:
        case Place(template, version, server):
            return f"place a desktop of {name(template)} ({version}) on {name(server)}"
        case Retire(desktop, why):
            return f"remove {desktop.name} from {name(desktop.server)}: {why}"
        case Relocate(desktop, target, why):
            return f"move {desktop.name} of {desktop.user} from {name(desktop.server)} to {name(target)}: {why}"
        case Forget(desktop):
            return f"forget {name(desktop)}"
        case Assign(desktop, server):
            return f"let {name(server)} hold the safe copy of {desktop.name}"
        case GoOn(desktop, target, _):
            return f"start {desktop.name} from its safe copy on {name(target)}"
        case PutAside(desktop, _):
            return f"let {desktop.name} go on from the disk that is being put back"
        case DropCopy(copy) | ForgetCopy(copy):
            return f"delete the copy of {name(copy.desktop)} on {name(copy.server)}"


def _count(word: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise ValueError(f"{word!r} is no number")
    return int(word)


def _only(plain: list[str], told: Mapping[str, str]) -> None:
    left = [*plain, *told]
    if left:
        raise ValueError(f"nobody knows what {', '.join(left)} means here")


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"there is no {error.args[0]!r} above it"
    return "something is missing" if isinstance(error, IndexError) else str(error)
