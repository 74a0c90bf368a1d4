"""Homomorphic protections keep the Protection contract, with one exception that is stated."""

from __future__ import annotations

import pytest
from contracts.protection import OWNERS, SEED, ExactContract, Harness, Opens, require_mean, updates
from homomorphic_parties import TemporaryJournal

from fedray.config.learning import KEY_HOLDER
from fedray.protection.fixed_point import FixedPoint
from fedray.protection.homomorphic.key_holder import KeyHolderRole
from fedray.protection.homomorphic.owner import HomomorphicSealer
from fedray.protection.homomorphic.parameters import Scheme, choose
from fedray.protection.homomorphic.server import HomomorphicProtection
from fedray.protection.identity import Identity, Trust

RUN = bytes(range(16))


class Counted:
    """A key holder whose messages count as the harness's."""

    def __init__(self, role: KeyHolderRole) -> None:
        self._role = role
        self.identity = role.identity
        self.harness: Harness | None = None

    def answer(self, message: bytes) -> bytes:
        answer = self._role.answer(message)
        assert self.harness is not None
        self.harness.bytes_down += len(message)
        self.harness.bytes_up += len(answer)
        return answer


def opened(scheme: Scheme, fixed_point: FixedPoint, weight_bound: int, is_enrolled: bool) -> Harness:
    identities = {name: Identity() for name in [*OWNERS, KEY_HOLDER]}
    enrolled = {name: one.public for name, one in identities.items()} if is_enrolled else {}
    parameters = choose(scheme, fixed_point)
    role = Counted(KeyHolderRole(identities[KEY_HOLDER], Trust(enrolled), parameters, fixed_point, 3, 2))
    sealers = {
        name: HomomorphicSealer(
            name, identities[name], Trust(enrolled), parameters, fixed_point, SEED, 3, TemporaryJournal()
        )
        for name in OWNERS
    }
    protection = HomomorphicProtection(parameters, fixed_point, weight_bound, RUN, 3, role, Trust(enrolled))
    role.harness = Harness(sealers, protection, tolerance=1.0)
    return role.harness


class HomomorphicContract(ExactContract):
    scheme: Scheme
    is_enrolled: bool

    @pytest.fixture
    def opens(self) -> Opens:
        return lambda fixed_point, weight_bound: opened(self.scheme, fixed_point, weight_bound, self.is_enrolled)

    @pytest.mark.parametrize("owner", OWNERS)
    def test_an_owner_that_is_gone_after_its_update_came_is_in_the_sum(self, harness: Harness, owner: str) -> None:
        """The exception: it cannot answer the probe, so its update is taken out, and the record and ``lost`` say so."""
        given, combiner = updates(), harness.combiner()
        for name, update in given.items():
            combiner.add(harness.sealed(combiner, name, update))
        harness.silent = {owner}
        del given[owner]
        require_mean(harness, combiner.open(), given)
        assert combiner.n_added == len(given)
        assert set(combiner.lost) == {owner}
        stages = combiner.record().stages
        assert (stages["updates"], stages["checked"], stages["opened"]) == (5, 4, 4)


class TestBfv(HomomorphicContract):
    scheme = "bfv"
    is_enrolled = True


class TestCkks(HomomorphicContract):
    scheme = "ckks"
    is_enrolled = False
