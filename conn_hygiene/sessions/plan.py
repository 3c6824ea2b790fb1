"""What is to be done to a session when its connection goes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Plan(NamedTuple):
    """What is to be done to a session on its way back. Nothing, if all of it is empty."""

    #: Settings whose values its owner is to find again.
    follow: frozenset[str] = frozenset()
    #: Of these, what nobody has been seen to set.
    unseen: frozenset[str] = frozenset()
    #: Settings that are reset.
    resets: frozenset[str] = frozenset()
    #: What the owner has left in the session besides, as reasons; all that can be is reset then.
    left: frozenset[str] = frozenset()
    #: Values that are to be found again in place of those that the session has, by name; None for none.
    instead: Mapping[str, str | None] = {}
    #: What follows at its default as well, if it follows, since a new session may begin with something else.
    at_default: frozenset[str] = frozenset()

    def following_also(self, names: frozenset[str], *, pooled: bool) -> Plan:
        """Return this plan with *names* following as well, whatever has set them."""
        return self._replace(
            follow=self.follow | names,
            unseen=self.unseen | (names - self.follow),
            resets=self.resets | names if pooled else self.resets,
        )


#: Nothing is to be done.
NOTHING = Plan()
