"""Masked secure aggregation: the server learns the sum of a cohort's updates and nothing else.

K. Bonawitz et al., *Practical Secure Aggregation for Privacy-Preserving Machine Learning*, CCS 2017, Figure 4; above
50 owners on the k-regular graph of J. Bell et al., *Secure Single-Server Aggregation with (Poly)Logarithmic Overhead*,
CCS 2020. ``owner`` and ``server`` are the two roles; ``messages`` is all that passes between them.

Where this differs from the papers:

* Both signing of keys and the consistency check, which the paper has for servers that lie only, are always on.
* Masks come from AES-128 in counter mode under keys of HKDF-SHA256 bound to (run, round, pair), not from a generator
  seeded with the agreed key itself. The key that seals shares is bound likewise and used once, with a fixed nonce.
* An owner counts among the holders of its own shares, so that the threshold of the paper's Figure 4 holds in a
  neighbourhood too; the threshold is always more than half of the holders, also where Bell et al. allow less.
* Owners derive the graph themselves from (run, round, names) instead of taking the server's word for it; a server that
  may lie gets the full graph.
* Owners that cannot open a peer's shares say so, and an owner that too many complain of does not take part. A
  commitment to the self mask's seed lets the server find out whether it was put together from true shares.
"""
