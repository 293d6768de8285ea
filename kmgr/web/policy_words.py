"""What a template's policy means for the person who uses a desktop of it, in plain words. Pure."""

from kmgr.templates.machine import Firmware, Hardware, Machine
from kmgr.templates.model import Kind
from kmgr.templates.policy import Day, IdleThen, Policy, Refresh, clock_time
from kmgr.web.words import span

_DAYS = {
    Day.MON: "Monday",
    Day.TUE: "Tuesday",
    Day.WED: "Wednesday",
    Day.THU: "Thursday",
    Day.FRI: "Friday",
    Day.SAT: "Saturday",
    Day.SUN: "Sunday",
}
_WORKDAYS = tuple(Day)[:5]


def days(of: tuple[Day, ...]) -> str:
    """Return days of the week as people say them."""
    if of == tuple(Day):
        return "every day"
    if of == _WORKDAYS:
        return "Monday to Friday"
    return ", ".join(_DAYS[day] for day in of)


def leaving(policy: Policy, kind: Kind) -> str:
    """Say what becomes of a desktop when its user closes the window, and when it is thrown away."""
    if kind is Kind.PERSONAL:
        return "It is yours: close the window or log out, and everything stays as you left it."
    match policy.refresh:
        case Refresh.NEVER:
            return "It is kept for you, with everything that you save on it."
        case Refresh.MANUAL:
            return "It is kept for you until you give it back; then it is thrown away with all that was saved on it."
        case Refresh.SCHEDULE if policy.schedule is not None:
            when = f"{days(policy.schedule.days)} at {clock_time(policy.schedule.at)}"
            thrown = f"It is made anew {when}, or later if you are at it then; what was saved on it is gone then."
            return f"{thrown}{_kept(policy, ' Close the window, and it is kept for you for {}.')}"
        case _:
            thrown = "When you log out it is thrown away with all that was saved on it."
            otherwise = "Close the window, and it is kept for you as long as you are logged in. "
            told = (
                "Close the window, and it is kept for you for {}, on any computer. After that, or when you log out, "
            )
            kept = _kept(policy, told + "it is thrown away with all that was saved on it.")
            return kept or otherwise + thrown


def idling(policy: Policy, kind: Kind) -> str:
    """Say what happens when nobody does anything, empty if nothing does."""
    if policy.idle_s is None:
        return ""
    gone = policy.idle_then is IdleThen.LOG_OUT and kind is Kind.POOLED
    what = "it is given back and thrown away" if gone else "its screen closes"
    warned = f"you are warned {span(policy.idle_warning_s)} before"
    return f"If nobody does anything for {span(policy.idle_s)}, {what}; {warned}."


def closed(policy: Policy, kind: Kind) -> str:
    """Say why a screen was closed for idleness and what is left of the desktop."""
    why = f"Nobody did anything at it for {span(policy.idle_s or 0)}."
    if policy.idle_then is IdleThen.LOG_OUT and kind is Kind.POOLED:
        return f"{why} It was given back; your desktops have a fresh one for you."
    return f"{why} {_kept(policy, 'It is kept for you for {}.') or 'It is kept for you as you left it.'}"


def _kept(policy: Policy, words: str) -> str:
    return "" if policy.keep_s is None else words.format(span(max(60, policy.keep_s)))


def machine(of: Machine) -> str:
    """Say what kind of machine desktops are, empty for the usual kind."""
    starts = {Firmware.BIOS: "", Firmware.UEFI: "starts by UEFI", Firmware.SECURE: "starts by UEFI with secure boot"}
    parts = [starts[of.firmware], "has a TPM" * of.tpm, "has a SATA disk" * (of.hardware is Hardware.PLAIN)]
    return ", ".join(part for part in parts if part)
