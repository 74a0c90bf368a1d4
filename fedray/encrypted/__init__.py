"""Inference on encrypted inputs: one client, one server, no third party.

The client encrypts images under a key that never leaves it, the server runs its model on the ciphertexts, the client
decrypts the outputs. With CKKS (Cheon et al. 2017, *Homomorphic Encryption for Arithmetic of Approximate Numbers*)
through TenSEAL and SEAL; networks of affine layers and squares, and one value of many images in one ciphertext, as in
CryptoNets (Gilad-Bachrach et al. 2016, *CryptoNets: Applying Neural Networks to Encrypted Data with High Throughput and
Accuracy*), which used an exact scheme where this uses CKKS.

    model = EncryptedModel(module, input_shape=(1, 8, 8))       # at the server
    client = Client(model.public_description)                   # at the client
    outputs = client.decrypt(model(client.encrypt(images)))

Who knows what:

* The client knows inputs and outputs, and of the model what outputs tell: with enough queries, a good copy of it.
  Ciphertexts of outputs also carry noise that depends on the weights.
* The server knows the model, the shape of an input, and when it was asked. Not the inputs, nor how many images there
  were. It must never be told a decrypted output: with its ciphertext that can give the secret key away (Li and
  Micciancio 2021, *On the Security of Homomorphic Encryption on Approximate Numbers*).

    square       the activation
    stages       a module as affine maps and squares, checked before anything runs
    parameters   ring and primes, from depth and from the largest value there can be
    scheme       SEAL's objects of some parameters, into bytes and back: the only file that imports TenSEAL
    evaluation   stages on ciphertexts
    messages     what is said
    client, server    the two roles
"""

from fedray.encrypted.client import Client
from fedray.encrypted.messages import Description
from fedray.encrypted.server import EncryptedModel
from fedray.encrypted.square import Square

__all__ = ["Client", "Description", "EncryptedModel", "Square"]
