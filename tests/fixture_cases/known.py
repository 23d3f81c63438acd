"""Real bugs and attacks for which fixtures stand: of other formats, and of what they have in common with this one."""

from __future__ import annotations

_TWO_VIEWS = "two readers that see two models, as zip archives whose local headers differ from the central directory"
_COUNTS = "counts that are believed before the bytes are there, as those of GGUF in llama.cpp: "
_HIDDEN = "data behind the end that a reader takes, hidden from it and shown to another"

STANDS_FOR = {
    "invalid/ali-001-itself.vqm": "links that are followed for ever",
    "invalid/cod-001-dense.vqm": "an index beyond its table, with which compiled code reads memory that is not its own",
    "invalid/ftr-001-trailing-byte.vqm": _HIDDEN,
    "invalid/ftr-001-two-files.vqm": _HIDDEN,
    "invalid/hdr-001-text.vqm": "a transfer in text mode, for which PNG put line ends into its signature",
    "invalid/idx-001-dims.vqm": _TWO_VIEWS,
    "invalid/idx-001-dtypes.vqm": _TWO_VIEWS,
    "invalid/idx-001-names.vqm": _TWO_VIEWS,
    "invalid/lim-sections-not-there.vqm": f"{_COUNTS}CVE-2024-21836",
    "invalid/met-003-overlong.vqm": "overlong UTF-8 that passes a test of the text, as in IIS: CVE-2000-0884",
    "invalid/met-004-twice.vqm": "a key twice, of which two parsers take different ones, as in CouchDB: CVE-2017-12635",
    "invalid/met-005-claim-array.vqm": f"{_COUNTS}CVE-2024-21825",
    "invalid/met-005-end-string-hostile.vqm": f"{_COUNTS}CVE-2024-23496",
    "invalid/met-006-depth-hostile.vqm": "nesting that overflows a stack, as in MessagePack for C#: CVE-2020-5234",
    "invalid/met-007-values.vqm": "few bytes that become many objects, as the entities of XML in 'billion laughs'",
    "invalid/sec-005-skippable-frame.vqm": _HIDDEN,
    "invalid/sec-005-two-frames.vqm": _HIDDEN,
    "invalid/sec-007-window-hostile.vqm": "a window for which a streaming zstd decoder allocates memory at once",
    "invalid/sec-010-bomb.vqm": "decompression bombs",
    "invalid/ten-001-nul.vqm": "a name that C cuts at U+0000, as in certificates: CVE-2009-2408",
    "invalid/ten-002-same-layer.vqm": "two members of one name in an archive, as in Android packages: CVE-2013-4787",
    "invalid/ten-003-product-overflow.vqm": "a product of sizes that overflows and seems small",
    "invalid/ten-003-rank.vqm": "more axes than an array has room for, as those of GGUF in llama.cpp: CVE-2024-21802",
}
