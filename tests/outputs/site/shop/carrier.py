# mypy: ignore-errors
import time


def track(number):
    """Stand in for the carrier's API, which takes its time."""
    time.sleep(0.2)
    return f"{number} is on its way"
