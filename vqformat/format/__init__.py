"""What SPEC.md says, as bytes and records: chunks, records of tensors, dtypes, limits."""
