"""From a replicated change's outcome to an answer or an error, for those who only go on if it was made.

Pure.
"""

from collections.abc import Mapping
from typing import Any

from kmgr.errors import Conflict, NotAllowed, NotFound, Refused
from kmgr.grid.envelope import Applied, Outcome, Rejected


def applied(outcome: Outcome) -> Mapping[str, Any]:
    """Return the values of an applied change; raise the error that fits the code of a rejected one."""
    match outcome:
        case Applied(values):
            return values
        case Rejected("not_found", detail):
            raise NotFound(detail)
        case Rejected("conflict", detail):
            raise Conflict(detail)
        case Rejected("not_allowed", detail):
            raise NotAllowed(detail)
        case Rejected(code, detail):
            raise Refused(detail, code=code)
