"""The file format of SPEC.md, as bytes and as records: chunks, sections, records of tensors, dtypes, limits."""
