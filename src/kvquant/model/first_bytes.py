"""What a file is that is no GGUF, by how it starts, and what to do about it."""

from __future__ import annotations

MAGIC = b"GGUF"

FIRST_BYTES = 512
"""How many bytes `named_by_first_bytes` wants to see."""

_AGAIN = "get the file again"
_CONVERT = "convert the model to GGUF with llama.cpp's convert_hf_to_gguf.py"

_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer and not the file", "download it with git lfs pull"),
    (b"PK\x03\x04", "a ZIP archive, perhaps a PyTorch checkpoint", _CONVERT),
    (b"\x80\x02", "a Python pickle, perhaps a PyTorch checkpoint", _CONVERT),
    (b"\x80\x04", "a Python pickle, perhaps a PyTorch checkpoint", _CONVERT),
    (b"\x89HDF", "an HDF5 file", _CONVERT),
    (b"lmgg", "in the GGML format of before August 2023", "get the model as GGUF"),
    (b"fmgg", "in the GGMF format of before August 2023", "get the model as GGUF"),
    (b"tjgg", "in the GGJT format of before August 2023", "get the model as GGUF"),
    (b"algg", "a LoRA adapter in the format of before 2024", "give the model it was made for, as GGUF"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", "unpack it first"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it first"),
    (b"BZh", "compressed with bzip2", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"FUGG", "a GGUF file with its bytes swapped", _AGAIN),
)
"""(how the file starts, what it is, what to do)."""

_TEXTS: tuple[tuple[bytes, str, str], ...] = (
    (b"<", "a web page", "download the file itself, not its page"),
    (b"{", "a JSON file", "give the GGUF file; a shape or a Hugging Face config.json goes to --shape"),
)


def named_by_first_bytes(head: bytes) -> tuple[str, str] | None:
    """Return what a file is and what to do, None where it cannot be told.

    head: the file's first FIRST_BYTES, fewer where it is shorter.
    """
    if not head:
        return "empty: a download that failed", _AGAIN
    if head.startswith(MAGIC):
        return None
    if MAGIC.startswith(head):
        return f"cut off after {len(head)} bytes", _AGAIN
    if not any(head):
        return f"nothing but zeros in its first {len(head)} bytes: a download that did not finish", _AGAIN
    # Eight bytes of length, then a JSON object.
    if head[8:9] == b"{" and head[4:8] == bytes(4):
        return "a safetensors file", _CONVERT
    known = next((rest for start, *rest in _STARTS if head.startswith(start)), None)
    head = head.rstrip(b"\0")
    if known is None and _is_text(head):
        text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        known = next((rest for start, *rest in _TEXTS if text.startswith(start)), None)
        first = text.split(b"\n")[0][:40].decode("utf-8", "replace")
        known = known or [f"a text that starts with {first!r}", "get the file itself"]
    return None if known is None else (known[0], known[1])


def _is_text(head: bytes) -> bool:
    """Whether the bytes are UTF-8 without control characters, a character cut off at the end aside."""
    text = head.decode("utf-8", "ignore")
    complete = len(text.encode()) > len(head) - 4
    return complete and all(char.isprintable() or char in "\r\n\t\ufeff" for char in text)
