"""Prints a file that comes with the package: ``python -m conn_hygiene.contrib.prometheus alerts > alerts.yml``."""

from __future__ import annotations

import argparse
import sys

from conn_hygiene.contrib.prometheus import ALERTS, DASHBOARD

_FILES = {"alerts": ALERTS, "dashboard": DASHBOARD}


def main() -> None:
    """Print the file that the command line names."""
    parser = argparse.ArgumentParser("python -m conn_hygiene.contrib.prometheus", description=__doc__)
    parser.add_argument("file", choices=_FILES, help="alert rules for Prometheus, or a dashboard for Grafana")
    parser.add_argument("--path", action="store_true", help="print where it is, and not what is in it")
    arguments = parser.parse_args()
    file = _FILES[arguments.file]
    sys.stdout.write(f"{file}\n" if arguments.path else file.read_text("utf-8"))


if __name__ == "__main__":
    main()
