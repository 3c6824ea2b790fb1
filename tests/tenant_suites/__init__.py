"""The test suites of backends for tenants, run without and with the toolkit: they have a ``close()`` of their own.

`__main__` fetches the suites, runs each thrice and compares; the settings and `plugin` are loaded by the suites.
"""
