"""Homomorphic protection: owners encrypt, the server adds what it cannot read, a key holder opens one sum a round.

Two schemes, through TenSEAL (Benaissa et al. 2021) and SEAL: BFV (Fan and Vercauteren 2012) and CKKS (Cheon et al.
2017). Both carry the integers of ``FixedPoint`` and give their exact sum, so that they equal plain protection bit for
bit. CKKS is approximate by nature; here its scale is so large that the sum is recovered by rounding. Only that rounded
sum leaves the key holder: what Li and Micciancio (*On the Security of Homomorphic Encryption on Approximate Numbers*,
2021) read the secret key from, the noise in a decryption, never does.

Who knows what:

* An owner knows its own update and the public key. It cannot read another's, alone or together with other owners.
* The server reads sums that the key holder opened, and nothing else; nor does it together with any number of owners,
  even if they deviate from the protocol: beside the others' sum it learns at most whether one guess was right, and
  with a wrong guess the key is gone (see ``key_holder``).
* The key holder sees sums only. It never receives a single contribution, and must not overhear any: owners' payloads
  go to the server over a channel that it cannot read.
* Server and key holder *together* read everything. They must be run by parties that do not collude.
* The network (or the server) in the middle can swap public keys unless identities are enrolled; see ``identity.Trust``.

Not hidden: who contributed, sizes, timing. Not prevented: an owner or server that lies can spoil a round, and an owner
can lie about its own update within the clip.

    parameters   which ring and moduli, from the bound of the sum alone; imports no TenSEAL
    primes       the primes that SEAL takes for them
    words        ciphertexts as packed coefficients, and their addition
    stream       the same, out of and into SEAL's serialised form
    cipher       public and secret key: the only file that imports TenSEAL
    probe        random linear forms by which a sum is checked before it is given out
    messages     what is said
    owner, server, key_holder    the three roles
"""
