import os

from mysite.settings import *  # noqa: F403
from mysite.settings import DATABASES

DATABASES["default"] |= {
    # One of them is the primary.
    "HOST": os.environ.get("DATABASE_HOSTS", "db1.internal,db2.internal"),
    "PORT": os.environ.get("DATABASE_PORTS", "5432,5432"),
}
DATABASES["default"]["OPTIONS"] |= {
    "target_session_attrs": "read-write",
    # For each host; without it a host that is gone is waited for as long as TCP does, about two minutes.
    "connect_timeout": 2,
    # A host that is gone in the middle of a query.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
