from mysite.settings import *  # noqa: F403

CONN_HYGIENE = {"RELEASE": "always"}
