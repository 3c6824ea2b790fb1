"""Django's own test suite, run without and with the toolkit: what it expects of a connection must stay true.

`__main__` fetches the suite, runs it thrice and compares, by `comparing`; `settings` and `runner` are loaded by the
suite itself.
"""

# The environment variable that names the databases of one run, beside those of others on the same server.
RUN_VARIABLE = "DJANGO_SUITE_RUN"
