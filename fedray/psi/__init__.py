"""Private set intersection: which ids two parties have in common, without showing the others.

Two halves. The *asker* (the label holder) learns which of its own ids the other has too; the *answerer* (a feature
owner) learns how many ids the asker has, and nothing else. With the counting halves the asker learns one number only.

    request = asker.request()
    offer, answer = answerer.offer(), answerer.answer(request)
    rows = asker.matches(offer, answer)

The protocol is that of Meadows (*A More Efficient Cryptographic Matchmaking Protocol*, 1986) and Huberman, Franklin and
Hogg (*Enhancing Privacy and Trust in Electronic Communities*, 1999) over the curve P-256, in the implementation of
OpenMined (Angelou et al. 2020, *Asymmetric Private Set Intersection with Applications to Contact Tracing and Private
Vertical Federated Machine Learning*), with the exact ("raw") set representation. Both sides are semi-honest. Nothing of
the cryptography is made here: this package normalises and keys ids, checks messages, and divides the work.

    ids          ids made alike at every party, keyed, and pointed at
    points       messages as lists of points on the curve
    work         a party's secret, and its long computations in parts
    asking, answering    the two roles
    library      OpenMined's package, which is an extra

Imports neither Ray nor torch.
"""

from fedray.psi.answering import Answerer, CountingAnswerer
from fedray.psi.asking import Asker, CountingAsker
from fedray.psi.ids import keyed, normalised, order, pointers

__all__ = ["Answerer", "Asker", "CountingAnswerer", "CountingAsker", "keyed", "normalised", "order", "pointers"]
