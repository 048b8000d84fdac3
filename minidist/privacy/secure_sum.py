"""Secure aggregation: the server learns the sum of what clients send, and nothing else.

Each pair of clients i < j agrees on a secret mask s_ij, as long as the values. One adds it, the
other subtracts it, so in the sum it cancels. Everything is modulo 2ᵏ:

    client 0 sends    x_0 + s_01 + s_02
    client 1 sends    x_1 - s_01 + s_12
    client 2 sends    x_2 - s_02 - s_12
    the server adds   x_0 + x_1 + x_2

A mask is uniform on [0, 2ᵏ), so a masked value is uniform too, whatever x is: a message alone says
nothing. How two clients get a mask that the server does not know, although all that they say goes
through the server:

    1. each client makes a key pair (X25519) and publishes the public half
    2. i computes a secret from its private key and j's public key; j computes the same the other
       way around; from the public halves alone nobody can (Diffie, Hellman 1976)
    3. the secret becomes a key by HKDF, bound to round and pair, and the key a stream of random
       bits by ChaCha20: the mask

Client and server agree on a key in the same way, and each message carries its HMAC. So a message
is refused if no agreed key signed it, if it is of another round, or if its client has sent already.

What it does not do. *If a client drops out* after the keys were exchanged, its masks stay in the
sum, and the round ends: ``RoundEnded``. (The paper's full protocol shares the secrets out, so that
the others can take such masks away.) *The server is trusted to pass on the true public keys*: one
that puts its own in their place reads everything, since there is no authority that signs keys. *If
the server and all clients but one work together*, they subtract what they know. And the sum itself
may tell something: see ``client_privacy.py`` for noise. A sum over one client is refused.

With m clients of n values: a client agrees on m - 1 keys and makes (m - 1)n random numbers, and
sends 32 bytes for its key and 4(n + 10) bytes for its values. Bonawitz et al., "Practical secure
aggregation for privacy-preserving machine learning", CCS 2017, section 4: the masks, for those who
stay.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import numpy as np

WORDS = 10  # in front of the values: round, client, and 8 of the tag
KEY_BYTES = 32


class RoundEnded(RuntimeError):
    """A client dropped out, and its masks stay in the sum: the round has no result."""


class Stranger(ValueError):
    """A message that is not of a client of this round."""


def _library() -> Any:
    """The primitives: X25519, HKDF, ChaCha20."""
    try:
        from cryptography.hazmat.primitives import ciphers, hashes
        from cryptography.hazmat.primitives.asymmetric import x25519
        from cryptography.hazmat.primitives.ciphers import algorithms
        from cryptography.hazmat.primitives.kdf import hkdf
    except ImportError as error:
        raise ImportError(
            "secure aggregation takes its keys from the package cryptography: "
            'pip install "minidist[privacy]"'
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
    """A key pair: ``public`` are 32 bytes for everybody; ``private``, 32 bytes, random if None."""

    def __init__(self, private: bytes | None = None) -> None:
        self._library = library = _library()
        make = library.private_key
        self._private = make.generate() if private is None else make.from_private_bytes(private)
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def agree(self, public: bytes, *what: object) -> bytes:
        """The key for this purpose that the owner of ``public`` finds too, and nobody else."""
        secret = self._private.exchange(self._library.public_key.from_public_bytes(public))
        return self._library.derive(secret, "/".join(map(str, ("minidist", *what))).encode())


def mask_of(key: bytes, length: int) -> np.ndarray:
    """uint32, uniform, the same for all who have the key."""
    stream = _library().chacha(key).encryptor().update(bytes(4 * length))
    return np.frombuffer(stream, np.uint32)


def tag_of(key: bytes, message: np.ndarray) -> np.ndarray:
    """HMAC-SHA256 of round, client and values, as 8 words."""
    said = message[:2].tobytes() + message[WORDS:].tobytes()
    return np.frombuffer(hmac.digest(key, said, hashlib.sha256), np.uint32)


class SecureClient:
    """One client in one round. Make a new one, with new keys, for the next."""

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

        ``publics``: the public keys of all clients of the round, this one's too, by number;
        ``server`` is the server's. Raises ValueError if nobody else is there to hide among.
        """
        if publics.get(self.number) != self.public:
            raise Stranger(
                f"client {self.number}: the round's list has another key for it, or none: "
                "somebody else would send in its name"
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
    """Adds up one round's messages. It sees masked values, and then their sum."""

    def __init__(self, private: bytes | None = None) -> None:
        self._keys = KeyPair(private)
        self.public = self._keys.public

    def begin(
        self, round: int, publics: Mapping[int, bytes], length: int, modulus_bits: int = 32
    ) -> None:
        """A round of these clients, by number, with ``length`` values each."""
        check_enough(len(publics))
        self.round, self.modulus_bits = round, modulus_bits
        self._tags = {n: self._keys.agree(key, "tag", round, n) for n, key in publics.items()}
        self.missing = set(publics)
        self._sum = np.zeros(length, np.uint32)

    def receive(self, message: np.ndarray) -> None:
        """Add one client's message. Raises Stranger for whatever is not to be added."""
        if message.dtype != np.uint32 or message.shape != (WORDS + self._sum.size,):
            raise Stranger(
                f"round {self.round}: a message is {message.dtype} of {message.shape}, not uint32 "
                f"of ({WORDS + self._sum.size},)"
            )
        round, client = int(message[0]), int(message[1])
        if round != self.round:
            raise Stranger(f"a message of round {round} in round {self.round}: it is not added")
        if client not in self._tags:
            raise Stranger(
                f"round {round}: a message of client {client}, with whom no key was agreed: its "
                "mask would stay in the sum"
            )
        expected = tag_of(self._tags[client], message)
        if not hmac.compare_digest(expected.tobytes(), message[2:WORDS].tobytes()):
            raise Stranger(
                f"round {round}: a message in the name of client {client} that its key did not "
                "sign, or that was changed on its way: it is not added"
            )
        if client not in self.missing:
            raise Stranger(f"round {round}: client {client} has sent already: added once")
        self.missing.remove(client)
        self._sum += message[WORDS:]

    def total(self) -> np.ndarray:
        """The sum modulo 2ᵏ, uint32, of all clients. Raises RoundEnded if one did not send."""
        if self.missing:
            raise ended(self.round, self.missing)
        return self._sum & np.uint32(2**self.modulus_bits - 1)


def ended(round: int, missing: set[int]) -> RoundEnded:
    """The error of a round whose clients did not all send."""
    names = ", ".join(map(str, sorted(missing)))
    return RoundEnded(
        f"round {round} has ended without a sum: client {names} dropped out after keys were "
        "exchanged, and the masks that the others share with it do not cancel. Begin again, with "
        "new keys, among those who are there"
    )


def check_enough(count: int) -> None:
    """Raise ValueError if a sum over so many clients hides nothing."""
    if count < 2:
        raise ValueError(
            f"secure aggregation: the sum over {count} client is that client's values: at least "
            "two must take part"
        )
