"""What every test begins with: the same numbers from torch's own generator, whichever tests ran before it."""

import pytest
import torch

torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)
