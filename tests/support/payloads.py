"""A pickle that writes a file when it is loaded."""

import os
from pathlib import Path
from typing import Any


class Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.open, (self.canary, os.O_CREAT | os.O_WRONLY)
