"""Who is put to the test: the same site with the same pool, without and with the toolkit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    key: str
    name: str
    toolkit: bool
    # Django's CONN_HEALTH_CHECKS.
    checked: bool = False
    # Whom the toolkit is held against.
    rival: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {"CONN_HYGIENE": "on" if self.toolkit else "off", "HEALTH_CHECKS": "1" if self.checked else "0"}


PLAIN = Contender("plain", "Django", toolkit=False)
PLAIN_CHECKED = Contender("plain-checked", "Django, checks", toolkit=False, checked=True)
TOOLKIT = Contender("toolkit", "conn_hygiene", toolkit=True, rival="plain")
TOOLKIT_CHECKED = Contender(
    "toolkit-checked", "conn_hygiene, checks", toolkit=True, checked=True, rival="plain-checked"
)
CONTENDERS = (PLAIN, TOOLKIT, PLAIN_CHECKED, TOOLKIT_CHECKED)
