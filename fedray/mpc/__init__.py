"""Secure multi-party computation: three parties compute on tensors that none of them can read.

Replicated secret sharing over the integers modulo 2**64 (T. Araki, J. Furukawa, Y. Lindell, A. Nof, K. Ohara,
*High-Throughput Semi-Honest Secure Three-Party Computation with an Honest Majority*, CCS 2016) with fixed-point numbers
and binary circuits for comparison (P. Mohassel, P. Rindal, *ABY3: A Mixed Protocol Framework for Machine Learning*, CCS
2018). It protects against ONE party that follows the protocol and is curious. Two parties that put their shares
together read everything, and a party that lies can make results wrong.

``ring``, ``randomness``, ``shares`` and ``channel`` are what a party computes with; ``products``, ``comparison`` and
``approximations`` are the protocols; ``operators`` names them; ``worker`` is a party, ``engine`` what drives three.
"""
