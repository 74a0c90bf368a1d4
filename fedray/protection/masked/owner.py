"""The owner's half of a masked sum: what it checks before it gives anything, and what it gives.

It trusts no one to be honest but a majority of its neighbours. It holds its secrets for one round, gives shares of
others' secrets only once, only for a list of survivors that enough neighbours have signed too, and never both kinds
for one owner. Keys and seeds come from the operating system's generator and are never written or logged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from threading import Lock

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedray.errors import ProtocolError
from fedray.protection.encoding import Encoding
from fedray.protection.identity import Identity, Trust, is_signed
from fedray.protection.journal import Journal
from fedray.protection.masked import masks, shamir
from fedray.protection.masked.graph import Graph, Rules
from fedray.protection.masked.masks import Mask
from fedray.protection.masked.messages import (
    Alive,
    AliveSigned,
    Briefing,
    Delivery,
    Invite,
    KeyList,
    Keys,
    Receipt,
    Reveal,
    Revealed,
    Shared,
)
from fedray.protection.wire import Message, canonical, decode, encode
from fedray.values import Assignment, Payload, Update

_NONCE = bytes(12)
"""Every channel key seals one message only."""


@dataclass
class _Round:
    """One owner's secrets of one round, and how far the round has come."""

    run: bytes
    number: int
    channel: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    mask: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    self_seed: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    graph: Graph | None = None
    names_digest: bytes = b""
    peers: Mapping[str, Keys] = field(default_factory=dict)
    channels: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    shares: dict[str, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    owners: frozenset[str] = frozenset()
    alive: tuple[str, ...] = ()


class MaskedSealer:
    """One owner's role.

    Args:
        owner: its name.
        identity: its signing key.
        trust: whose public keys it takes for true.
        rules: what it holds every round to.
        encoding: how updates become integers.
        seed: the experiment's seed, for stochastic rounding only.
        journal: rounds that it has sealed and helped to open.
    """

    def __init__(
        self,
        owner: str,
        identity: Identity,
        trust: Trust,
        rules: Rules,
        encoding: Encoding,
        seed: int,
        journal: Journal,
    ) -> None:
        self._owner = owner
        self._identity = identity
        self._trust = trust
        self._rules = rules
        self._encoding = encoding
        self._seed = seed
        self._journal = journal
        self._rounds: dict[int, _Round] = {}
        self._lock = Lock()

    @property
    def identity(self) -> bytes:
        return self._identity.public

    def answer(self, message: bytes) -> bytes:
        asked: Message = decode(message, Invite, KeyList, Delivery, Alive, Reveal)
        with self._lock:  # the next round is prepared while this one is opened
            return encode(self._answered(asked))

    def _answered(self, asked: Message) -> Message:
        match asked:
            case Invite():
                return self._join(asked)
            case KeyList():
                return self._share(asked)
            case Delivery():
                return self._receive(asked)
            case Alive():
                return self._sign(asked)
            case Reveal():
                return self._reveal(asked)
        raise AssertionError(asked)

    def _join(self, asked: Invite) -> Keys:
        """Fresh keys for a round not sealed for this server; older ones, and those for another, are forgotten."""
        self._journal.require_open(asked.run, asked.round)
        made = _Round(asked.run, asked.round)
        still = {n: one for n, one in self._rounds.items() if n >= asked.round - 1 and one.run == asked.run}
        self._rounds = {**still, asked.round: made}
        channel, mask = (key.public_key().public_bytes_raw() for key in (made.channel, made.mask))
        signature = self._identity.sign("keys", asked.run, asked.round, self._owner, channel, mask)
        return Keys(asked.run, asked.round, self._owner, self.identity, channel, mask, signature)

    def _share(self, asked: KeyList) -> Shared:
        """Check everyone's keys, then share both secrets with the neighbours."""
        current = self._at(asked)
        if current.graph is not None:
            raise ProtocolError(f"a second list of keys for round {asked.round}", "one", "suspect a server that lies")
        graph = self._graph(asked)
        peers = self._verified(asked, graph)
        current.channels = {name: masks.agreed(current.channel, keys.channel) for name, keys in peers.items()}
        current.graph, current.peers = graph, peers
        current.names_digest = sha256(canonical(asked.names)).digest()
        holders = graph.holders(self._owner)
        key_shares = shamir.split(current.mask.private_bytes_raw(), graph.threshold, len(holders))
        self_shares = shamir.split(current.self_seed, graph.threshold, len(holders))
        by_holder = dict(zip(holders, zip(key_shares, self_shares, strict=True), strict=True))
        current.shares[self._owner] = by_holder.pop(self._owner)
        sealed = {name: self._sealed(current, name, *shares) for name, shares in by_holder.items()}
        committed = commitment(current.self_seed, current.run, current.number, self._owner)
        return Shared(asked.run, asked.round, self._owner, committed, sealed)

    def _receive(self, asked: Delivery) -> Receipt:
        """Open the neighbours' shares; say whose cannot be opened."""
        current = self._at(asked)
        self._graph_of(current)
        unreadable = []
        for name, sealed in asked.sealed.items():
            try:
                current.shares[name] = self._opened(current, name, sealed)
            except (InvalidTag, KeyError):
                unreadable.append(name)
        current.secrets = {name: masks.agreed(current.mask, keys.mask) for name, keys in current.peers.items()}
        return Receipt(asked.run, asked.round, self._owner, sorted(unreadable))

    def seal(self, update: Update, assignment: Assignment, terms: bytes) -> tuple[Payload, bytes]:
        """Clip, scale, round and mask in one pass over cache-sized pieces."""
        briefing = decode(assignment.briefing, Briefing)
        current = self._at(briefing)
        if not current.secrets:
            raise ProtocolError("a briefing before the shares", "the shares first", "check the server")
        self._require(current, briefing.owners, within=set(self._graph_of(current).names))
        if assignment.plan.round != current.number or assignment.owner != self._owner:
            raise ProtocolError("a briefing for another round or owner", "one for this assignment", "check the server")
        self._encoding.require(update, assignment.weight_bound)
        self._journal.seal(current.run, current.number, terms, update.n_steps)
        current.owners = frozenset(briefing.owners)
        streams = [mask.stream() for mask in self._masks(current, terms)]
        sealed, scratch = np.empty(self._encoding.length, dtype=self._encoding.ring), masks.scratch()
        for part, piece in self._encoding.pieces(update, assignment, self._seed):
            target = sealed[part]
            np.copyto(target, piece, casting="unsafe")
            for stream in streams:
                stream.apply(target, scratch)
        return sealed, b""

    def _sign(self, asked: Alive) -> AliveSigned:
        """Sign one list of survivors, and no other: neither for this server nor for one that is started after it."""
        current = self._at(asked)
        if not current.owners:
            raise ProtocolError("a list of survivors before the update", "it after the update", "check the server")
        self._require(current, asked.owners, within=current.owners)
        if current.alive and current.alive != tuple(asked.owners):
            raise ProtocolError(
                f"a second list of survivors for round {asked.round}", "the list that was signed", "the server lies"
            )
        self._journal.open(current.run, current.number, asked.owners)
        current.alive = tuple(asked.owners)
        signature = self._identity.sign("alive", *_alive_fields(current))
        return AliveSigned(asked.run, asked.round, self._owner, signature)

    def _reveal(self, asked: Reveal) -> Revealed:
        """Give one share for each peer, once enough holders have signed the same list; then forget the round."""
        current = self._at(asked)
        graph = self._graph_of(current)
        if not current.alive:
            raise ProtocolError("a request for shares before the survivors are known", "it after", "check the server")
        n_signed = 1 + _count(self._signers(current, asked), graph.threshold - 1)
        if n_signed < graph.threshold:
            raise ProtocolError(
                f"{n_signed} signatures on the list of survivors",
                f"{graph.threshold}, of owners that hold shares",
                "suspect a server that tells owners different lists",
            )
        del self._rounds[current.number]
        held = {name: shares for name, shares in current.shares.items() if name in current.owners}
        return Revealed(
            asked.run,
            asked.round,
            self._owner,
            of_self_masks={name: of_self for name, (_, of_self) in held.items() if name in current.alive},
            of_keys={name: of_key for name, (of_key, _) in held.items() if name not in current.alive},
        )

    def _signers(self, current: _Round, asked: Reveal) -> Iterator[str]:
        """Neighbours that are alive and have signed the list that this owner signed."""
        fields = _alive_fields(current)
        for name, signature in asked.signatures.items():
            keys = current.peers.get(name)
            if keys and name in current.alive and is_signed(keys.identity, signature, "alive", *fields):
                yield name

    def _at(self, asked: Invite | KeyList | Delivery | Briefing | Alive | Reveal) -> _Round:
        current = self._rounds.get(asked.round)
        if current is None or current.run != asked.run:
            raise ProtocolError(
                f"round {asked.round} that this owner has not joined, or has closed",
                "a round that begins with an invitation and ends once",
                "suspect a replay",
            )
        return current

    def _graph_of(self, current: _Round) -> Graph:
        if current.graph is None:
            raise ProtocolError("a message before the list of keys", "the list of keys first", "check the server")
        return current.graph

    def _graph(self, asked: KeyList) -> Graph:
        names, fewest, most = asked.names, self._rules.min_owners, self._encoding.n_owners
        if names != sorted(set(names)) or self._owner not in names or not fewest <= len(names) <= most:
            raise ProtocolError(
                f"a cohort of {len(set(names))}",
                f"sorted, with this owner, of {fewest} to {most}",
                "suspect a server that wants to read single updates",
            )
        return self._rules.graph(asked.run, asked.round, names)

    def _verified(self, asked: KeyList, graph: Graph) -> Mapping[str, Keys]:
        """The keys of all neighbours, each signed by an identity that this owner trusts, no two alike."""
        peers = {keys.owner: keys for keys in asked.keys}
        found = sorted(keys.owner for keys in asked.keys)
        if tuple(found) != graph.neighbours(self._owner):
            raise ProtocolError("keys of others than the neighbours", "each neighbour's, once", "check the server")
        for name, keys in peers.items():
            if not is_keys_signed(keys, asked.run, asked.round):
                raise ProtocolError(f"keys of {name!r} that it did not sign", "signed keys", "suspect swapped keys")
            self._trust.require(name, keys.identity)
        own = (self._rounds[asked.round].channel, self._rounds[asked.round].mask)
        public = [key.public_key().public_bytes_raw() for key in own]
        public += [key for keys in peers.values() for key in (keys.channel, keys.mask)]
        if len(set(public)) < len(public):
            raise ProtocolError("the same key twice", "fresh keys of every owner", "suspect an owner that copies keys")
        return peers

    def _require(self, current: _Round, names: list[str], within: set[str] | frozenset[str]) -> None:
        """Accept a list of owners that is no smaller than it must be and holds no one new."""
        is_list = names == sorted(set(names)) and self._owner in names and within >= set(names)
        enough = len(names) >= self._rules.min_owners
        if not (is_list and enough and self._graph_of(current).is_enough(set(names), self._owner)):
            raise ProtocolError(
                f"a list of {len(names)} owners",
                f"at least {self._rules.min_owners} that were there before, this owner and "
                f"{self._graph_of(current).threshold} holders of its shares among them",
                "the round is abandoned; nothing was revealed",
            )

    def _masks(self, current: _Round, terms: bytes) -> Iterator[Mask]:
        """The self mask, and one with each neighbour that takes part."""
        yield Mask.own(current.self_seed, current.run, current.number, self._owner)
        for name, secret in current.secrets.items():
            if name in current.owners:
                yield Mask.pair(secret, current.run, current.number, terms, self._owner, name)

    def _sealed(self, current: _Round, holder: str, of_key: bytes, of_self: bytes) -> bytes:
        cipher, data = self._channel(current, self._owner, holder, holder)
        return cipher.encrypt(_NONCE, of_key + of_self, data)

    def _opened(self, current: _Round, sender: str, sealed: bytes) -> tuple[bytes, bytes]:
        cipher, data = self._channel(current, sender, self._owner, sender)
        shares = cipher.decrypt(_NONCE, sealed, data)
        return shares[: shamir.SHARE_BYTES], shares[shamir.SHARE_BYTES :]

    def _channel(self, current: _Round, sender: str, receiver: str, peer: str) -> tuple[AESGCM, bytes]:
        """The cipher for the one message from sender to receiver, and what it is bound to."""
        bound = ("shares", current.run, current.number, sender, receiver)
        return AESGCM(masks.derived(current.channels[peer], 32, *bound)), canonical(*bound, current.names_digest)


def commitment(self_seed: bytes, run: bytes, round: int, owner: str) -> bytes:
    """What tells a true self seed from a false one, and nothing of it."""
    return sha256(canonical("fedray", "self seed", run, round, owner, self_seed)).digest()


def is_keys_signed(keys: Keys, run: bytes, round: int) -> bool:
    """Whether these keys are for this round and their owner signed them."""
    fields = (run, round, keys.owner, keys.channel, keys.mask)
    return (keys.run, keys.round) == (run, round) and is_signed(keys.identity, keys.signature, "keys", *fields)


def alive_fields(run: bytes, round: int, owners: list[str], alive: list[str]) -> tuple[object, ...]:
    """What a survivor signs: the round, who was to add pairwise masks, and who is alive."""
    return run, round, owners, alive


def _count(found: Iterator[str], enough: int) -> int:
    """How many there are; more than enough are not looked for."""
    return sum(1 for _ in islice(found, enough))


def _alive_fields(current: _Round) -> tuple[object, ...]:
    return alive_fields(current.run, current.number, sorted(current.owners), list(current.alive))
