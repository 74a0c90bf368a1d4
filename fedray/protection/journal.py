"""What an owner has sealed, and helped to open, on its own disk: so that of each round one sum at most is ever read.

Two sums of the same round over different owners differ by single updates. A server that was lost in the middle of a
round does that round again, under another run token, and must get the same bits. So an owner seals a round once for
each server that is started, always of the same model and plan and with as many steps of training; but it helps to open
one list of owners only, whatever the server calls the run and however often owner or server were restarted. Where the
list must differ, since somebody is gone who was in the first or is back who was not, the round is abandoned.

Why this is enough. Under a key holder all owners of a sum must help to open it: one honest owner that is in two lists
stops the second. Under masks more than half of the owners that a list names must have signed it: each owner's secrets
take t of its k + 1 holders, t > (k + 1) / 2, and nobody holds shares of more than k + 1, whichever graph a run token
gives. Say that m lists of one round were opened, and that some combination of their sums is one owner's update alone.
Of n owners, all the others are in two of the lists or more, so that the lists' lengths add up to 2 n - 1 at least; more
than half of each list signed it, which is (2 n - 1 + m) / 2 signatures or more. That is above n: somebody signed two
lists. Corrupt owners do; of one cohort it takes 2 t / (k + 1) - 1 of them, more than ``corrupt`` where the server may
lie.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import msgspec

from fedray.errors import ConfigError, ProtocolError
from fedray.files import put
from fedray.protection.wire import canonical

KEPT = 16
"""Rounds that are remembered: from how far back a run may go on."""


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A round that was sealed: of what, for which servers, and for what list of owners a sum of it may be opened.

    The list is kept as a digest, beside the first server that this owner has helped to open it for.
    """

    terms: str
    n_steps: int
    runs: tuple[str, ...] = ()
    opened_in: str = ""
    owners: str = ""


class _Book(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rounds: dict[int, _Sealed]

    @property
    def newest(self) -> int:
        return max(self.rounds, default=0)


class Journal:
    """One owner's journal of one run. Several processes may hold it: of an old server's owners and a new one's.

    Args:
        path: where it is kept, in a folder that one owner has for one run; made when first used.
        is_durable: whether it outlives a loss of power too; simulated owners do without, thousands on one disk.

    Raises:
        ConfigError: what is there cannot be read.
    """

    def __init__(self, path: Path, *, is_durable: bool = True) -> None:
        self._path = path
        self._is_durable = is_durable
        self._read()

    def require_open(self, run: bytes, round: int) -> None:
        """Refuse a round that was sealed for this server, or that is long over.

        Raises:
            ProtocolError: it was, or it is.
        """
        _require_open(self._read(), run, round)

    def seal(self, run: bytes, round: int, terms: bytes, n_steps: int) -> None:
        """Write down that a round is being sealed, before it is.

        Args:
            run: the server's token of the run.
            round: number of the round.
            terms: digest of model and plan.
            n_steps: steps of training in the update. With the terms they tell it, but for noise that is charged.

        Raises:
            ProtocolError: it was sealed for this server, or of something else for another, or it is long over.
        """
        with self._locked():
            book = self._read()
            _require_open(book, run, round)
            known = book.rounds.get(round, _Sealed(terms.hex(), n_steps))
            _require_alike(known, round, terms.hex(), n_steps)
            self._write(book, round, msgspec.structs.replace(known, runs=(*known.runs, run.hex())))

    def open(self, run: bytes, round: int, owners: Sequence[str]) -> None:
        """Write down that this owner helps to open the sum over a list of owners, before it does.

        The first server may hand in another list, where owners were lost meanwhile: it can have one sum opened only.
        Servers after it may hand in its last.

        Raises:
            ProtocolError: it was not sealed for this server last, or is to be opened for others than before.
        """
        with self._locked():
            book = self._read()
            known, digest = book.rounds.get(round), sha256(canonical(list(owners))).hexdigest()
            if known is None or known.runs[-1:] != (run.hex(),):
                raise ProtocolError(
                    f"round {round}, which was not sealed for this server last", "a sealed round", "suspect a replay"
                )
            if known.owners not in ("", digest) and known.opened_in != run.hex():
                raise ProtocolError(
                    f"round {round} for other owners than before the server was lost",
                    "the same list of owners: the difference of two sums is a single update",
                    "the round is abandoned; go on with the next",
                )
            first = known.opened_in or run.hex()
            self._write(book, round, msgspec.structs.replace(known, opened_in=first, owners=digest))

    def _read(self) -> _Book:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Book)
        except FileNotFoundError:
            return _Book({})
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(
                f"{self._path} cannot be read ({type(error).__name__})",
                "the journal of rounds that this owner has sealed",
                "restore it from a copy; without it a round could be replayed",
            ) from error

    def _write(self, book: _Book, round: int, entry: _Sealed) -> None:
        """In one step, before anything that was written down is done."""
        rounds = {**book.rounds, round: entry}
        kept = _Book({number: rounds[number] for number in sorted(rounds)[-KEPT:]})
        put(self._path, msgspec.json.encode(kept), is_durable=self._is_durable)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _require_open(book: _Book, run: bytes, round: int) -> None:
    known = book.rounds.get(round)
    is_over = known is None and round <= book.newest
    if is_over or (known is not None and run.hex() in known.runs):
        raise ProtocolError(
            f"round {round} again",
            f"a round after {book.newest}, the last sealed, or one that another server began",
            "go on with the next round; suspect a replay where no server was lost",
        )


def _require_alike(known: _Sealed, round: int, terms: str, n_steps: int) -> None:
    """Another model, plan or length of training makes another update of the same owner, and a second sum to compare."""
    if known.terms != terms:
        raise ProtocolError(
            f"round {round} again with another model or plan",
            "the model and plan that it was sealed with",
            "go on from the newest checkpoint; suspect a replay where no server was lost",
        )
    if known.n_steps != n_steps:
        raise ProtocolError(
            f"round {round} again with {n_steps} steps of training",
            f"{known.n_steps}, as before the server was lost",
            "the owner sits out this round; see whether deadline_s cut its training short",
        )
