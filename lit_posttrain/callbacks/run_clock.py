"""How long a run has taken, all its parts together."""

import time
from typing import Any

from lightning import Callback


class RunClock(Callback):
    """Counts seconds from its making on; a run that is resumed goes on counting.

    What lies between the last checkpoint of a part and its end was done twice and counts once.
    """

    def __init__(self) -> None:
        self._before_s = 0.0
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the seconds of the run so far."""
        return self._before_s + time.monotonic() - self._since

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds as a plain number."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the seconds of the run that is resumed."""
        self._before_s = state_dict["seconds"]
