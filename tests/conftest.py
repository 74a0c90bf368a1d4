"""What all tests share: data sets and ledgers apart from the user's, and ``tests`` as a place to import from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.register_assert_rewrite(
    "contracts.cohort", "contracts.protection", "contracts.strategy", "contracts.task", "toys"
)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDRAY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _ledgers_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test may charge what the user's own owners have spent: nobody has opened a ledger here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDRAY_LEDGERS", str(tmp_path_factory.getbasetemp() / "ledgers"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Toy models gain nothing from more threads, and lose much where tests share the processors."""
    torch.set_num_threads(1)
