"""What can go wrong, told apart by what the caller should do next.

KmgrError
├── ConfigError            fix the file, start again               exit 78
├── Refused                the request is wrong; do not retry      HTTP 400
│   ├── NotFound           no such thing                           HTTP 404
│   ├── Conflict           the object moved on; read it again      HTTP 409
│   └── NotAllowed         another person may, you may not         HTTP 403
│       └── NotLoggedIn    say who you are first                   HTTP 401
├── Unavailable            nothing happened; retry later           HTTP 503
├── OutcomeUnknown         it may have happened; read, then decide HTTP 504
└── InvariantBroken        a bug; stop this server                 exit 70

Every message is read by a person: it says what happened, why, and what to do.
"""


class KmgrError(Exception):
    """Base of all errors that kmgr raises on purpose; `code` is stable and meant for programs."""

    code = "error"
    http_status = 500

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class ConfigError(KmgrError):
    """The configuration is wrong: fix the file and start again."""

    code = "config"


class Refused(KmgrError):
    """The request is wrong as it stands; sending it again will not help."""

    code = "refused"
    http_status = 400


class NotFound(Refused):
    """What the request names does not exist (any more)."""

    code = "not_found"
    http_status = 404


class Conflict(Refused):
    """The thing is in another state than the request believes: read it again."""

    code = "conflict"
    http_status = 409


class NotAllowed(Refused):
    """The person may not do this; the message carries the reason."""

    code = "not_allowed"
    http_status = 403


class NotLoggedIn(NotAllowed):
    """Nobody is logged in, or the log-in was wrong."""

    code = "not_logged_in"
    http_status = 401


class Unavailable(KmgrError):
    """Nothing happened; the same request may succeed later."""

    code = "unavailable"
    http_status = 503


class OutcomeUnknown(KmgrError):
    """It may or may not have happened: read the state, then decide. Retrying with the same command id is safe."""

    code = "outcome_unknown"
    http_status = 504


class InvariantBroken(KmgrError):
    """A bug: continuing could bend the truth, so this server stops."""

    code = "invariant"
