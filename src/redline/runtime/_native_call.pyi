from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

class Caller:
    def __init__(
        self,
        run: int,
        make: Callable[[], int],
        inputs: tuple[tuple[str, tuple[int, ...]], ...],
        outputs: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...],
        empty: Callable[..., Any],
        release: bool,
        /,
    ) -> None: ...
    def __call__(self, arrays: Sequence[np.ndarray], /) -> list[np.ndarray] | None: ...
    def warm(self) -> None: ...
    def drain(self) -> list[int]: ...
