"""Who may do what, with the reason. Pure.

Precedence: administrators may administer everything, but use only what they are
given, like everybody else; a template is given to a user, to a group, or to
everyone; nothing is given by default.
"""

from collections.abc import Iterable

from kmgr.ids import AccountName, TemplateId
from kmgr.users.model import Assignment, Person, Role, SubjectKind, Verdict


def may_use(person: Person, template: TemplateId, assignments: Iterable[Assignment]) -> Verdict:
    """Tell whether a person may use a template; the reason names the widest assignment that says so."""
    groups = {group.casefold() for group in person.groups}
    mine = (given for given in assignments if given.template == template)
    for given in sorted(mine, key=lambda given: (given.kind, given.subject)):
        match given.kind:
            case SubjectKind.EVERYONE:
                return Verdict(True, "it is given to everyone")
            case SubjectKind.USER if given.subject == person.name:
                return Verdict(True, f"it is given to {person.name}")
            case SubjectKind.GROUP if given.subject in groups:
                return Verdict(True, f"it is given to the group {given.subject}")
            case _:
                continue
    return Verdict(False, f"it is given neither to {person.name} nor to one of their groups")


def may_administer(person: Person) -> Verdict:
    """Tell whether a person may change the grid."""
    if person.role is Role.ADMIN:
        return Verdict(True, f"{person.name} is an administrator")
    return Verdict(False, f"{person.name} is not an administrator")


def may_have(person: Person, owner: AccountName | None) -> Verdict:
    """Tell whether a person may see and release somebody's desktop."""
    if owner == person.name:
        return Verdict(True, "it is their own")
    verdict = may_administer(person)
    return verdict if verdict.allowed else Verdict(False, f"it is not {person.name}'s desktop")


def may_look(person: Person, owner: AccountName | None) -> Verdict:
    """Tell whether a person may see a desktop's screen: nobody looks over a user's shoulder unasked."""
    if owner is None:
        return may_administer(person)
    return (
        Verdict(True, "it is their own") if owner == person.name else Verdict(False, f"only {owner} may look at it")
    )
