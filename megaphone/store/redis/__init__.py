"""Channels in Redis 7.0 and later, or Valkey 7.2 and later, which many nodes share.

Importing this package needs the extra `redis`.
"""

try:
    import hiredis  # noqa: F401
except ImportError as error:
    raise ImportError(
        "a store in Redis or Valkey needs hiredis: pip install 'megaphone-broker[redis]'"
    ) from error
