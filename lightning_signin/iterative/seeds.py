"""The random numbers of a level, which do not depend on whether the run was interrupted before it."""

import random
from typing import Any

import numpy as np
import torch

from lightning_signin.randomness import generators


def enter_level(level: int, start: dict[str, Any]) -> None:
    """Put the process-wide random generators into their state at a level's start.

    Level 0 draws what a fit without levels would. Each later level has its own seed, derived from the state at the
    start of the run: it does not depend on what the previous levels have drawn.

    Args:
        level: The number of the level.
        start: What `generators.capture` returned at the start of level 0.

    Example:
        >>> start = generators.capture()
        >>> enter_level(3, start)
        >>> first = torch.rand(2)
        >>> enter_level(3, start)
        >>> bool((torch.rand(2) == first).all())
        True
    """
    generators.restore(start)
    if level > 0:
        root = torch.randint(2**63 - 1, ()).item()
        seed = int(np.random.SeedSequence([int(root), level]).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
