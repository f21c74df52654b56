"""The connection to a store that many nodes share: Redis 7.0 and later, or Valkey 7.2 and later.

Importing this package needs the extra `redis`.
"""

try:
    import hiredis  # noqa: F401
except ImportError as error:
    raise ImportError(
        "a store in Redis or Valkey needs hiredis: pip install 'megaphone-broker[redis]'"
    ) from error
