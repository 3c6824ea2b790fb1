"""Which process has imported the package: the one that can have inherited no connection since."""

from __future__ import annotations

import os

#: Its process id. A forked child that asks for the rest of the package later finds its parent's here.
pid = os.getpid()
