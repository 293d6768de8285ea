"""Between which servers a running desktop may move, by their processors. Pure.

Under KVM a guest sees the processor of its server, and goes on using what it found there: where that is missing it
crashes, after the hand-over. So the other one must be of the same maker and kind and be able to do all the same; what
is not known is not tried. In emulation every server offers the same.
"""

from xml.etree import ElementTree as ET

from kmgr.grid.model import Processor

KVM = "kvm"
_NAMED = 3


def read(capabilities: str) -> Processor | None:
    """Return the processor that libvirt's capabilities tell of, if they do so whole."""
    try:
        root = ET.fromstring(capabilities)  # noqa: S314 - libvirt's own output
    except ET.ParseError:
        return None
    cpu = root.find("host/cpu")
    signature = None if cpu is None else cpu.find("signature")
    if cpu is None or signature is None:
        return None
    features = frozenset(one.get("name", "") for one in cpu.findall("feature"))
    kind = f"family {signature.get('family', '?')} model {signature.get('model', '?')} ({cpu.findtext('model', '')})"
    return Processor(cpu.findtext("vendor", ""), kind, features) if features else None


def why_not(accelerator: str, here: Processor | None, there: Processor | None) -> str:
    """Say why what runs `here` cannot go on `there`; empty if it can."""
    if accelerator != KVM:
        return ""
    if here is None or there is None:
        return "may have another processor: that is not known"
    if (here.vendor, here.kind) != (there.vendor, there.kind):
        return f"has another processor: {there.vendor} {there.kind}, not {here.vendor} {here.kind}"
    missing = sorted(here.features - there.features)
    if not missing:
        return ""
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return f"has a processor that lacks {', '.join(missing[:_NAMED])}{more}"
