"""Secure aggregation: the server learns only the sum of the clients' values.

Each pair of clients i < j agrees on a secret mask s_ij, as long as the values. One client adds it,
the other subtracts it, so it cancels in the sum. All arithmetic is modulo 2ᵏ:

    client 0 sends    x_0 + s_01 + s_02
    client 1 sends    x_1 - s_01 + s_12
    client 2 sends    x_2 - s_02 - s_12
    the server adds   x_0 + x_1 + x_2

A mask is uniform on [0, 2ᵏ), so a masked value is uniform too, for any x: a single message reveals
nothing. All messages of two clients pass through the server; they still get a mask that the server
does not know:

    1. each client makes a key pair (X25519) and publishes the public key
    2. i computes a secret from its private key and j's public key; j computes the same secret from
       its private key and i's public key; public keys alone do not give it (Diffie, Hellman 1976)
    3. HKDF turns the secret into a key for this round and pair, and ChaCha20 turns the key into
       random bits: the mask

A client and the server agree on a key in the same way, and each message has an HMAC with this key.
A message is refused if its HMAC is wrong, if it is of another round, or if its client has sent
already.

Limits. *If a client drops out* after the exchange of keys, its masks do not cancel, and the round
ends without a result: ``RoundEnded``. (The paper's full protocol shares the secrets among clients,
so that they can remove such masks.) *The server is trusted to pass on the true public keys*: with
its own keys in their place it could read everything, since no authority signs keys. *If the server
and all clients but one cooperate*, they can compute this client's values. And the sum itself may
reveal something: see ``client_privacy.py`` for noise. A sum over one client is refused.

With m clients of n values, a client agrees on m - 1 keys, makes (m - 1)n random numbers, and sends
32 bytes for its key and 4(n + 10) bytes for its values. Bonawitz et al., "Practical secure
aggregation for privacy-preserving machine learning", CCS 2017, section 4, without recovery of
dropped clients.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import numpy as np

WORDS = 10  # before the values: round, client, and 8 words of the tag
KEY_BYTES = 32


class RoundEnded(RuntimeError):
    """A client dropped out, so masks do not cancel: the round has no result."""


class Stranger(ValueError):
    """A message that is not from a client of this round."""


def _library() -> Any:
    """The primitives: X25519, HKDF, ChaCha20."""
    try:
        from cryptography.hazmat.primitives import ciphers, hashes
        from cryptography.hazmat.primitives.asymmetric import x25519
        from cryptography.hazmat.primitives.ciphers import algorithms
        from cryptography.hazmat.primitives.kdf import hkdf
    except ImportError as error:
        raise ImportError(
            'secure aggregation needs the package cryptography: pip install "minidist[privacy]"'
        ) from error

    class Library:
        private_key = x25519.X25519PrivateKey
        public_key = x25519.X25519PublicKey
        chacha = staticmethod(lambda key: ciphers.Cipher(algorithms.ChaCha20(key, bytes(16)), None))
        derive = staticmethod(
            lambda secret, info: hkdf.HKDF(hashes.SHA256(), 32, None, info).derive(secret)
        )

    return Library


class KeyPair:
    """A key pair. ``public``: 32 bytes to publish; ``private``: 32 secret bytes, random if None."""

    def __init__(self, private: bytes | None = None) -> None:
        self._library = library = _library()
        make = library.private_key
        self._private = make.generate() if private is None else make.from_private_bytes(private)
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def agree(self, public: bytes, *what: object) -> bytes:
        """The key for purpose ``what``, which only this pair and the owner of ``public`` know."""
        secret = self._private.exchange(self._library.public_key.from_public_bytes(public))
        return self._library.derive(secret, "/".join(map(str, ("minidist", *what))).encode())


def mask_of(key: bytes, length: int) -> np.ndarray:
    """``length`` uniform uint32 numbers, determined by the key."""
    stream = _library().chacha(key).encryptor().update(bytes(4 * length))
    return np.frombuffer(stream, np.uint32)


def tag_of(key: bytes, message: np.ndarray) -> np.ndarray:
    """HMAC-SHA256 of round, client and values, as 8 words."""
    signed = message[:2].tobytes() + message[WORDS:].tobytes()
    return np.frombuffer(hmac.digest(key, signed, hashlib.sha256), np.uint32)


class SecureClient:
    """One client in one round. Make a new one, with new keys, for each round."""

    def __init__(self, number: int, private: bytes | None = None) -> None:
        self.number = number
        self._keys = KeyPair(private)
        self.public = self._keys.public

    def message(
        self,
        values: np.ndarray,
        round: int,
        publics: Mapping[int, bytes],
        server: bytes,
        modulus_bits: int = 32,
    ) -> np.ndarray:
        """``values`` (n,) uint32, masked and signed, for the server: (10 + n,) uint32.

        ``publics``: the public keys of all clients of the round, with this one's, by number;
        ``server``: the server's. Raises ValueError for less than two clients, Stranger if this
        client's own key in ``publics`` is wrong.
        """
        if publics.get(self.number) != self.public:
            raise Stranger(
                f"client {self.number}: the round's list has another key for it, or none: another "
                "client could send under its number"
            )
        check_enough(len(publics))
        message = np.zeros(WORDS + len(values), np.uint32)
        message[:2] = round, self.number
        masked = message[WORDS:]
        masked[:] = values
        for other, public in publics.items():
            if other == self.number:
                continue
            low, high = sorted((self.number, other))
            key = self._keys.agree(public, "mask", round, low, high)
            mask = mask_of(key, len(values))
            if self.number == low:
                masked += mask  # uint32 adds modulo 2³², and 2ᵏ divides that
            else:
                masked -= mask
        masked &= np.uint32(2**modulus_bits - 1)
        message[2:WORDS] = tag_of(self._keys.agree(server, "tag", round, self.number), message)
        return message


class SecureServer:
    """Sums one round's messages. It sees only masked values, and their sum."""

    def __init__(self, private: bytes | None = None) -> None:
        self._keys = KeyPair(private)
        self.public = self._keys.public

    def begin(
        self, round: int, publics: Mapping[int, bytes], length: int, modulus_bits: int = 32
    ) -> None:
        """Begin a round of the clients in ``publics``, by number, with ``length`` values each."""
        check_enough(len(publics))
        self.round, self.modulus_bits = round, modulus_bits
        self._tags = {n: self._keys.agree(key, "tag", round, n) for n, key in publics.items()}
        self.missing = set(publics)
        self._sum = np.zeros(length, np.uint32)

    def receive(self, message: np.ndarray) -> None:
        """Add one client's message. Raises Stranger for a message that must not be added."""
        if message.dtype != np.uint32 or message.shape != (WORDS + self._sum.size,):
            raise Stranger(
                f"round {self.round}: a message is {message.dtype} of {message.shape}, not uint32 "
                f"of ({WORDS + self._sum.size},)"
            )
        round, client = int(message[0]), int(message[1])
        if round != self.round:
            raise Stranger(f"a message of round {round} in round {self.round} is not added")
        if client not in self._tags:
            raise Stranger(
                f"round {round}: a message of client {client}, with which no key was agreed: its "
                "masks would not cancel"
            )
        expected = tag_of(self._tags[client], message)
        if not hmac.compare_digest(expected.tobytes(), message[2:WORDS].tobytes()):
            raise Stranger(
                f"round {round}: a message with the number of client {client} was not signed by "
                "its key, or was changed: it is not added"
            )
        if client not in self.missing:
            raise Stranger(f"round {round}: client {client} has sent already: added only once")
        self.missing.remove(client)
        self._sum += message[WORDS:]

    def total(self) -> np.ndarray:
        """The sum over all clients modulo 2ᵏ, uint32. Raises RoundEnded if one did not send."""
        if self.missing:
            raise ended(self.round, self.missing)
        return self._sum & np.uint32(2**self.modulus_bits - 1)


def ended(round: int, missing: set[int]) -> RoundEnded:
    """The error of a round whose clients did not all send."""
    names = ", ".join(map(str, sorted(missing)))
    return RoundEnded(
        f"round {round} has ended without a sum: client {names} dropped out after keys were "
        "exchanged, so the masks that the others share with it do not cancel. Begin again, with "
        "new keys and the other clients"
    )


def check_enough(count: int) -> None:
    """Raise ValueError for less than two clients, whose sum would hide nothing."""
    if count < 2:
        raise ValueError(
            f"secure aggregation: the sum over {count} client is that client's values: at least "
            "two must take part"
        )
