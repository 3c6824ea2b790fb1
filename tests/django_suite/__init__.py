"""Django's own test suite, run without and with the toolkit: what it expects of a connection must stay true.

`__main__` fetches the suite, runs it twice and compares; `settings` and `runner` are loaded by the suite itself.
"""
