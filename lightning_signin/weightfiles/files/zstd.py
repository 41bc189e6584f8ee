"""Zstandard, from Python 3.14's standard library or the package ``zstandard``."""

from collections.abc import Callable
from typing import NamedTuple

from lightning_signin.errors import SignInError

MAGIC = b"\x28\xb5\x2f\xfd"
_LEVEL = 3  # higher levels gain little on weights, and take tens of times as long
_ALWAYS = 2**30  # bytes
_RATIO = 1000


def compress(data: bytes) -> bytes:
    """Compress into one Zstandard frame.

    Returns:
        The frame, with its own checksum.

    Raises:
        ModuleNotFoundError: If Zstandard is not installed.
        SignInError: If the data is so uniform that `decompress` would reject it.

    Example:
        >>> decompress(compress(b"weights"), "the file")
        b'weights'
    """
    packed = _codec().compress(data)
    if len(data) > _limit(packed):
        raise SignInError(
            f"The weights are almost all equal: Zstandard compresses {len(data)} bytes to {len(packed)}, a ratio that "
            "`decompress` rejects as unsafe. Write them with zstd=False."
        )
    return packed


def decompress(data: bytes, source: str) -> bytes:
    """Decompress data that is no larger than 1 GiB or a thousand times its compressed form.

    Without a limit, a file of a few bytes could fill the memory.

    Returns:
        The data.

    Raises:
        ModuleNotFoundError: If Zstandard is not installed.
        SignInError: If the data is damaged or larger than that.
    """
    codec = _codec()
    try:
        size = codec.size(data)
        if size is None or size > _limit(data):
            raise SignInError(
                f"{source} is damaged or foreign: it claims to hold {size} bytes. Write or copy it again."
            )
        whole = codec.decompress(data, size)
    except codec.error as error:
        raise SignInError(f"{source} is not a complete Zstandard file: {error}. Write or copy it again.") from error
    if len(whole) != size:
        raise SignInError(f"{source} is truncated: it has {len(whole)} of {size} bytes. Write or copy it again.")
    return whole


def _limit(packed: bytes) -> int:
    return max(_ALWAYS, _RATIO * len(packed))


class _Codec(NamedTuple):
    compress: Callable[[bytes], bytes]
    size: Callable[[bytes], int | None]  # as stated in the first frame
    decompress: Callable[[bytes, int], bytes]
    error: type[Exception]


def _codec() -> _Codec:
    try:
        from compression import zstd
    except ModuleNotFoundError:
        return _codec_of_package()
    return _Codec(
        lambda data: zstd.compress(data, _LEVEL),
        lambda data: zstd.get_frame_info(data).decompressed_size,
        lambda data, size: zstd.ZstdDecompressor().decompress(data, size),
        zstd.ZstdError,
    )


def _codec_of_package() -> _Codec:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Zstandard needs Python 3.14 or the package zstandard: pip install 'lightning-signin[zstd]'.",
            name="zstandard",
        ) from error
    return _Codec(
        zstandard.ZstdCompressor(level=_LEVEL).compress,
        lambda data: zstandard.get_frame_parameters(data).content_size,
        lambda data, size: zstandard.ZstdDecompressor().decompress(data),
        zstandard.ZstdError,
    )
