"""The pictures of pages in the docs: ``python -m tests.browser.pictures [DIRECTORY] [--only NAME]``.

Each module here has a function ``take_all(directory: Path) -> None`` that saves its pictures there, as PNG files whose
names begin with the module's. What it shows it starts by itself, and ends again; the server to use is in
``DATABASE_URL`` by then.
"""
