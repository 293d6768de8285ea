"""The one-time phrase as text: four words that a person carries from a server of the grid to the new one.

The only file that knows the word list: the 2048 English words of BIP-39, from the
`mnemonic` package. Four of them are 44 random bits: far too few for a password,
plenty for an exchange that gives away nothing and allows five tries. No two
words begin with the same four letters, so four letters of each are enough; what
is no word of the list is noticed before anything is sent, and costs no try.
"""

import difflib
from functools import cache

from mnemonic import Mnemonic

from kmgr.entropy import pick
from kmgr.errors import Refused
from kmgr.grid import authority

WORDS = 4
_TELLING = 4
_PURPOSE = "kmgr join phrase/1"


def new_phrase() -> str:
    """Return four random words with hyphens between."""
    return "-".join(pick(_words(), WORDS))


def parse(text: str) -> str:
    """Read a phrase as typed and return it as `new_phrase` spells it; raise `Refused` naming each wrong word."""
    typed = text.replace("-", " ").replace(",", " ").casefold().split()
    if len(typed) != WORDS:
        raise Refused(f"the phrase has {WORDS} words, {len(typed)} were given: copy all of it")
    wrong = [_not_a_word(word) for word in typed if _meant(word) is None]
    if wrong:
        raise Refused(f"{'; '.join(wrong)}: read the phrase again")
    return "-".join(_meant(word) or "" for word in typed)


def password_of(phrase: str) -> bytes:
    """Return what the exchange is run over; the words themselves are never stored or sent."""
    return authority.derive(parse(phrase).encode(), _PURPOSE)


@cache
def _words() -> tuple[str, ...]:
    return tuple(Mnemonic("english").wordlist)


@cache
def _by_beginning() -> dict[str, str]:
    return {word[:_TELLING]: word for word in _words()}


def _meant(typed: str) -> str | None:
    word = _by_beginning().get(typed[:_TELLING])
    return word if word is not None and (typed == word or typed == word[:_TELLING]) else None


def _not_a_word(typed: str) -> str:
    near = difflib.get_close_matches(typed[:20], _words(), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{typed[:20]!r} is not one of the words that phrases are made of{hint}"
