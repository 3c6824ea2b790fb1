"""What the documentation shows as the output of a program, made by running that program: ``make docs-outputs``.

A block of a page that is an output has a mark in front of it, a comment that no reader sees::

    .. output: held-too-long

    .. code-block:: text

       WARNING conn_hygiene.held: The connection of ...

In Markdown the comment is ``<!-- output: held-too-long -->``. A function of :mod:`tests.outputs.makers` is registered
under that name, and runs the real thing on a server of its own. ``make docs-outputs`` writes what comes out into the
pages, ``make docs-outputs CHECK=1`` compares it with what stands there. What is another each time, such as a pid or a
number of seconds, makes no difference in that: see :mod:`tests.outputs.comparing`. ``NAMES="doctor audit"`` makes only
these.

What looks like an output and is not made here says why, by ``.. no output: REASON``. :mod:`tests.outputs.pages` finds
the blocks, and ``tests/test_outputs.py`` fails over one that has no mark.
"""
