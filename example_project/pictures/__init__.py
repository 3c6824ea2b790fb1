"""The pictures that explain: what happens to requests and connections, as it happened in a run: ``make pictures``.

:mod:`.runs` makes the runs, each in a process of its own, and writes down what was seen. :mod:`.pages` draws that, for
light paper and for dark. Both are in ``docs/pictures``: the numbers as ``runs.json``, so that they can be drawn again.
"""
